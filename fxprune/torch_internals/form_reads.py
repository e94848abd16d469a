"""Tells which code asks for the form of a tensor: its dtype, whether it requires gradients, how it lies in memory."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fxprune.torch_internals.switches import shared

Watch = Callable[[str, Tensor, FrameType], None]


class _Watching(threading.local):
    watch: Watch | None = None


_WATCHING = _Watching()


@contextlib.contextmanager
def watching_forms(watch: Watch) -> Iterator[None]:
    """Call ``watch`` with the fact, the tensor and the frame of the code where code outside of this package and of torch's core
    asks for ``"dtype"``, ``"requires_grad"`` or ``"contiguous"``; ``torch.nn`` counts as such code.
    """
    with _forms_replaced(), patch.object(_WATCHING, "watch", watch):
        yield


def _tell(fact: str, tensor: Any) -> None:
    if _WATCHING.watch is not None:
        frame = sys._getframe(2)
        name = str(frame.f_globals.get("__name__", ""))
        if not name.startswith(("fxprune.", "torch.")) or name.startswith("torch.nn."):
            _WATCHING.watch(fact, tensor, frame)


def _attribute(name: str) -> property:
    base = getattr(torch._C.TensorBase, name)

    def get(tensor: Tensor) -> Any:
        _tell(name, tensor)
        return base.__get__(tensor)

    def write(tensor: Tensor, value: Any) -> None:
        base.__set__(tensor, value)

    return property(get, write)


def _function(fact: str, function: Any) -> Any:
    def call(tensor: Any, *args: Any, **options: Any) -> Any:
        _tell(fact, tensor)
        return function(tensor, *args, **options)

    return call


@shared
def _forms_replaced() -> AbstractContextManager[Any]:
    base, kinds = torch._C.TensorBase, ("is_floating_point", "is_complex")
    replaced: dict[str, Any] = {name: _function("dtype", getattr(base, name)) for name in kinds}
    replaced |= {name: _attribute(name) for name in ("dtype", "requires_grad")}
    replaced["is_contiguous"] = _function("contiguous", base.is_contiguous)
    stack = contextlib.ExitStack()
    for name, value in replaced.items():
        stack.enter_context(patch.object(Tensor, name, value, create=True))
    for name in kinds:
        stack.enter_context(patch.object(torch, name, _function("dtype", getattr(torch, name))))
    return stack
