"""Notes where torch.export refuses something, also where the code that is exported catches the error and goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# The modules of torch that define the errors of exports. Kernels raise other errors, those of an ordinary run.
_RAISING = ("torch.fx.", "torch._subclasses.", "torch._dynamo.", "torch._export.", "torch._higher_order_ops.")
# Reads of memory, which a fake tensor does not have: they fail with ordinary errors.
_READS = frozenset({Tensor.numpy, Tensor.tolist, Tensor.data_ptr, Tensor.__array__, Tensor.__format__})
# What Python calls where it needs the number behind a symbol.
_ASKING = {
    torch.SymInt: ("__bool__", "__int__", "__index__", "__format__"),
    torch.SymFloat: ("__bool__", "__int__", "__float__", "__format__"),
    torch.SymBool: ("__bool__", "__int__", "__format__"),
}


class _Noting(TorchFunctionMode):
    def __init__(self, note: Callable[[Exception], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except Exception as error:
            if func in _READS or type(error).__module__.startswith(_RAISING):
                self._note(error)
            raise


@contextlib.contextmanager
def noting_refusals(note: Callable[[Exception], None]) -> Iterator[None]:
    """Call ``note`` with each error by which torch.export refuses a call of the code that runs within the context.

    Such errors say that the code needs a value, or that an operator does not run without values.
    """
    thread = threading.get_ident()

    def telling(ask: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(symbol: Any, *args: Any) -> Any:
            try:
                return ask(symbol, *args)
            except Exception as error:
                if threading.get_ident() == thread:
                    note(error)
                raise

        return call

    with contextlib.ExitStack() as stack:
        for kind, names in _ASKING.items():
            for name in names:
                stack.enter_context(patch.object(kind, name, telling(getattr(kind, name))))
        stack.enter_context(_Noting(note))
        yield
