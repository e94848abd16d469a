"""Where in the model's code a node of a graph comes from."""

from __future__ import annotations

import os
import re

import torch
from torch import fx

from fxprune import state

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_NOT_THE_MODEL = tuple(os.path.dirname(module.__file__) + os.sep for module in (torch, state) if module.__file__)


def code_line(node: fx.Node) -> str:
    """Return file and line of the model's code that made a node, where they are known."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    for file, line in reversed(frames):
        if not file.startswith(_NOT_THE_MODEL):
            return f"{file}:{line}"
    return ""
