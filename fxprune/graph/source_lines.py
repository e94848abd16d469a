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
    """Return file and line of the model's code that made a node, where they are known."""
    return _last_line(STACK_TRACE.get(node) or "")


@functools.lru_cache(maxsize=1 << 12)
def _last_line(trace: str) -> str:
    for file, line in reversed(_FRAME.findall(trace)):
        if not file.startswith(_NOT_THE_MODEL):
            return f"{file}:{line}"
    return ""


def calling_lines(frame: FrameType | None, around: str = "") -> str:
    """Return the lines of the model's code that a frame was called from, the outermost first, as a traceback has them.

    What ``fx.Tracer.record_stack_traces`` gives, without the lines of torch itself, and in a tenth of the time.

    Args:
        frame: the frame, included.
        around: the lines around the innermost frame of a function called ``inside_module``, which are not looked at again.
    """
    lines: list[str] = []
    while frame is not None:
        at = id(frame.f_code), frame.f_lasti
        known = _LINES.get(at)
        if known is None:
            if len(_LINES) >= _MOST:
                _LINES.clear()
            known = _LINES[at] = frame.f_code, _line(frame)
        line = known[1]
        if line is _END:
            break
        lines.append(line)
        frame = frame.f_back
    return around + "".join(reversed(lines))


_MOST = 1 << 15  # lines to know at a time
# By the identity of the code, which is kept so that no other takes it: Python hashes all of a code object each time.
_LINES: dict[tuple[int, int], tuple[CodeType, str]] = {}
_END = "what is around a trace called for the capture; what is around a call of a module is known"


def _line(frame: FrameType) -> str:
    file = frame.f_code.co_filename
    if not file.startswith(_NOT_THE_MODEL):
        number = frame.f_lineno
        text = f'  File "{file}", line {number}, in {frame.f_code.co_name}\n'
        return f"{text}    {linecache.getline(file, number).strip()}\n"
    is_end = frame.f_code.co_name == "trace" if file.startswith(TRACER_FILE) else frame.f_code.co_name == "inside_module"
    return _END if is_end else ""
