"""apart: calls a function in a process of its own, which is ended if it takes too long."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

_GRACE_SECONDS = 10.0  # for a process that has answered to end by itself
_Result = TypeVar("_Result")


class NoAnswerError(Exception):
    """The process took too long or died."""


def call_apart(function: Callable[[str], _Result], name: str, seconds: float) -> _Result:
    """Return ``function(name)``, computed in a new process.

    Args:
        function: a function of a module.
        name: its argument.
        seconds: the time that it has.

    Raises:
        NoAnswerError: it was not done in time, or the process died.
    """
    context = multiprocessing.get_context("spawn")  # a fork would keep the memory and the threads of this process
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(function, name, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise NoAnswerError(f"not done after {seconds:g} seconds")
        result: _Result = receiver.recv()
        process.join(_GRACE_SECONDS)
        return result
    except EOFError:  # it ended without an answer
        process.join()
        raise NoAnswerError(f"the process died with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        receiver.close()


def _send(function: Callable[[str], object], name: str, sender: Connection) -> None:
    logging.disable()  # torch logs whole graphs where it refuses one, and a capture goes on from there
    sender.send(function(name))
    sender.close()
