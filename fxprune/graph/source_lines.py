"""Where in the model's code a node of a graph comes from."""

from __future__ import annotations

import functools
import linecache
import os
import re
from types import CodeType, FrameType

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
    while frame is not None:
        at = id(frame.f_code), frame.f_lasti
        if at not in _LINES:
            if len(_LINES) >= _MOST:
                _LINES.clear()
            _LINES[at] = frame.f_code, _line(frame)
        line = _LINES[at][1]
        if line is None:
            break
        lines.append(line)
        frame = frame.f_back
    return around + "".join(reversed(lines))


_MOST = 1 << 15  # entries of _LINES
# By the id of the code object and the instruction. The entry holds the code object, so that no other takes the id; the code
# object itself as key would be hashed in full at each look-up.
_LINES: dict[tuple[int, int], tuple[CodeType, str | None]] = {}


def _line(frame: FrameType) -> str | None:
    """Return the frame's line, empty outside the model's code; None at the end of the walk: a trace, or a call of a module."""
    file = frame.f_code.co_filename
    if not file.startswith(_NOT_THE_MODEL):
        number = frame.f_lineno
        text = f'  File "{file}", line {number}, in {frame.f_code.co_name}\n'
        return f"{text}    {linecache.getline(file, number).strip()}\n"
    is_end = frame.f_code.co_name == "trace" if file.startswith(TRACER_FILE) else frame.f_code.co_name == "inside_module"
    return None if is_end else ""
