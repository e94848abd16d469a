"""What a model's code gets in place of values while it is traced."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx
from torch.fx.proxy import TraceError

from fxprune.graph.metadata import IN_PLACE


def _augmented(operation: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], Any]:
    def record(self: fx.Proxy, other: Any) -> Any:
        result = operation(self, other)
        if isinstance(result, fx.Proxy):
            IN_PLACE.set(result.node, True)
        return result

    return record


class _Asking(fx.Proxy):
    """A symbolic value that leaves to its tracer what it does not know."""

    def __getattr__(self, name: str) -> Any:
        tracer: Any = self.tracer
        found = _Attribute(self, name)
        # Functions such as torch.finfo take no symbolic dtype.
        return tracer.decide(found, lambda value: value) if name == "dtype" and tracer.decides else found

    def __len__(self) -> int:
        return self.tracer.decide(self, len)  # type: ignore[attr-defined, no-any-return]

    def __index__(self) -> int:
        return self.tracer.decide(self, operator.index)  # type: ignore[attr-defined, no-any-return]


class _Attribute(_Asking, fx.proxy.Attribute):
    """An attribute of a symbolic value, or a method of it."""


class Proxy(_Asking):
    """A symbolic value that notes where the model's code writes ``x += y``, which the graph has as ``x = x + y``.

    Python falls back to the latter for an object without the former. Which of the two it is makes no difference to the
    result, or the graph would not have passed its check, but the former needs less memory: see :mod:`fxprune.passes.in_place`.
    """

    __iadd__ = _augmented(operator.add)
    __isub__ = _augmented(operator.sub)
    __imul__ = _augmented(operator.mul)
    __itruediv__ = _augmented(operator.truediv)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write into the part that an index shows, which for anything but an index of tensors is a view."""
        parts = index if isinstance(index, tuple) else (index,)
        if not all(part is None or part is ... or (isinstance(part, int | slice) and type(part) is not bool) for part in parts):
            raise TraceError(f"the code assigns to {self.node.format_node()} by an index of tensors")
        part: Any = operator.getitem(self, index)
        if isinstance(value, int | float):
            part.fill_(value)
        else:
            part.copy_(value)
