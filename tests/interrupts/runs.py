"""One interrupt: a call, the moment, and what is changed afterwards."""

from __future__ import annotations

import gc
import signal
import time
import warnings
from typing import Any

from tests.interrupts import state
from tests.interrupts.calls import SUBJECTS, Subject


def duration(name: str) -> float:
    """Return how many seconds a call takes, once everything is loaded that it loads."""
    seconds = []
    for _ in range(3):
        subject = SUBJECTS[name]()
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            subject.call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def result(name: str) -> dict[str, Any]:
    """Return the graph that a call leaves where nobody interrupts it; nothing of a call that changes no graph."""
    subject = SUBJECTS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject.call()
    return {} if subject.graph is None else state.of_graph(subject.graph)


def interrupted(name: str, after: float, complete: dict[str, Any]) -> tuple[bool, list[str]]:
    """Interrupt a call after some seconds; tell whether that came in time, and what is changed."""
    subject = SUBJECTS[name]()
    process = state.of_process()
    before = _of(subject)
    came = False
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)  # as that of Ctrl+C
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inside = state.of_process()
            try:
                signal.setitimer(signal.ITIMER_REAL, after)
                subject.call()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                came = True
            changed = state.differences(inside, state.of_process())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    gc.collect()
    changed += [each for each in state.differences(process, state.of_process()) if each not in changed]
    now = _of(subject)
    changed += [name for part in ("model", "example") for name in state.differences(before[part], now[part])]
    if subject.graph is not None and now["graph"] not in (before["graph"], complete):
        changed += [f"graph: {name}" for name in state.differences(before["graph"], now["graph"])]
    return came, changed


def _of(subject: Subject) -> dict[str, Any]:
    return {
        "model": state.of_modules(subject.model),
        "example": {"example": state.of_values(subject.example)},
        "graph": None if subject.graph is None else state.of_graph(subject.graph),
    }
