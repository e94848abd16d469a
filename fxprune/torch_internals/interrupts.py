"""Interrupts: Ctrl+C at any moment leaves the process, models and graphs as they were.

Python runs the handler of a signal between any two instructions: also within the exit of a context, which then puts back only a
part, and within calls of torch from C++, some of which end the process or turn the interrupt into another error. So a signal
waits: until :func:`let_interrupts_in`, which stands where an exception does no harm, or until the work is done. The second one
does not wait.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

# Whose handlers may raise; the one of Ctrl+C last, as it is put back last.
_SIGNALS = [getattr(signal, name) for name in ("SIGALRM", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT") if hasattr(signal, name)]


class _Waiting:
    """The handlers that signals wait for, those that came, and how many rewrites are under way that nothing may interrupt."""

    def __init__(self) -> None:
        self.handlers: dict[int, Any] = {}
        self.came: list[tuple[int, FrameType | None]] = []
        self.rewrites = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        self.came.append((number, frame))
        if len(self.came) > 1 and not self.rewrites:
            self.let_in()

    def let_in(self) -> None:
        came, self.came = self.came, []
        for number, frame in came:
            self.handlers[number](number, frame)


_WAITING: list[_Waiting] = []  # one at most: only the main thread handles signals


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let signals wait until :func:`let_interrupts_in` or the end of the context; within another such context do nothing."""
    if _WAITING or threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting = _Waiting()
    try:
        for each in _SIGNALS:
            if callable(handler := signal.getsignal(each)):
                waiting.handlers[each] = handler
                signal.signal(each, waiting.note)
        _WAITING.append(waiting)
        yield
    finally:
        _WAITING.clear()
        for each, handler in waiting.handlers.items():
            if signal.getsignal(each) == waiting.note:
                signal.signal(each, handler)
        waiting.let_in()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let signals wait until the end of the context, whatever is called in it: for rewrites in place."""
    with interrupts_wait():
        waiting = _of_this_thread()
        waiting.rewrites += 1
        try:
            yield
        finally:
            waiting.rewrites -= 1


def let_interrupts_in() -> None:
    """Run the handlers of the signals that wait, unless a rewrite is under way."""
    if _WAITING and _WAITING[0].came:
        waiting = _of_this_thread()
        if not waiting.rewrites:
            waiting.let_in()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let signals in at once within the context, which runs code of the user; unless a rewrite is under way."""
    waiting = _of_this_thread()
    if not waiting.handlers or waiting.rewrites:
        yield
        return
    try:
        for each, handler in waiting.handlers.items():
            signal.signal(each, handler)
        waiting.let_in()
        yield
    finally:
        for each in waiting.handlers:
            signal.signal(each, waiting.note)


def _of_this_thread() -> _Waiting:
    is_main = threading.current_thread() is threading.main_thread()
    return _WAITING[0] if _WAITING and is_main else _Waiting()
