"""Where in the model's code a node of a graph comes from."""

from __future__ import annotations

import functools
import linecache
import os
import re
from types import FrameType

import torch
from torch import fx

from fxprune.graph.metadata import STACK_TRACE
from fxprune.torch_internals.graphs import TRACER_FILE

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_NOT_THE_MODEL = (os.path.dirname(torch.__file__) + os.sep, _PACKAGE + os.sep)


def code_line(node: fx.Node) -> str:
    """Return ``file:line`` of the model's code that made a node; empty if unknown."""
    return _last_line(STACK_TRACE.get(node) or "")


@functools.lru_cache(maxsize=1 << 12)
def _last_line(trace: str) -> str:
    for file, line in reversed(_FRAME.findall(trace)):
        if not file.startswith(_NOT_THE_MODEL):
            return f"{file}:{line}"
    return ""


def calling_lines(frame: FrameType | None, around: str = "") -> str:
    """Return the model's lines from the outermost call down to ``frame``, as a traceback has them.

    These are the lines of ``fx.Tracer.record_stack_traces`` without those of torch, in a tenth of the time. The walk ends at
    the innermost call of a module, a function called ``inside_module``; ``around`` holds the lines around that call.
    """
    lines: list[str] = []
    while frame is not None and (line := _line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)) is not None:
        lines.append(line)
        frame = frame.f_back
    return around + "".join(reversed(lines))


@functools.lru_cache(maxsize=1 << 15)
def _line(file: str, number: int, function: str) -> str | None:
    """Return a frame's line, empty outside the model's code; None at the end of the walk: a trace, or a call of a module."""
    if not file.startswith(_NOT_THE_MODEL):
        return f'  File "{file}", line {number}, in {function}\n    {linecache.getline(file, number).strip()}\n'
    is_end = function == ("trace" if file.startswith(TRACER_FILE) else "inside_module")
    return None if is_end else ""
