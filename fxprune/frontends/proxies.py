"""The symbolic values that a model's code computes with while it is traced."""

from __future__ import annotations

import dis
import operator
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

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
    """A symbolic value that asks its tracer when the code needs a number: a length, an index, a dtype."""

    def __getattr__(self, name: str) -> Any:
        tracer: Any = self.tracer
        found = _Attribute(self, name)
        # Functions such as torch.finfo take no symbolic dtype.
        return tracer.decide(found, lambda value: value) if name == "dtype" and tracer.decisions is not None else found

    def __len__(self) -> int:
        return self.tracer.decide(self, len)  # type: ignore[attr-defined, no-any-return]

    def __index__(self) -> int:
        return self.tracer.decide(self, operator.index)  # type: ignore[attr-defined, no-any-return]

    def __iter__(self) -> Iterator[fx.Proxy]:
        """Return the elements, as many as the code has names for; torch.fx would disassemble all of the code each time."""
        asking, parts = sys._getframe(1), cast(Any, self)
        code, at = asking.f_code.co_code, asking.f_lasti
        if code[at] == _UNPACK and code[at - 2] != dis.EXTENDED_ARG:
            return (parts[i] for i in range(code[at + 1]))
        return self.tracer.iter(self)


_UNPACK = dis.opmap["UNPACK_SEQUENCE"]


class _Attribute(_Asking, fx.proxy.Attribute):
    """An attribute or a method of a symbolic value."""


class Proxy(_Asking):
    """A symbolic value whose ``x += y`` becomes ``x = x + y`` in the graph, on a node marked as in-place.

    Both give the same result, or the graph would fail its check. In place needs less memory, so the mark lets
    :mod:`fxprune.passes.in_place` bring it back.
    """

    __iadd__ = _augmented(operator.add)
    __isub__ = _augmented(operator.sub)
    __imul__ = _augmented(operator.mul)
    __itruediv__ = _augmented(operator.truediv)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write into the view that an index gives; an index with tensors or masks gives a copy, and is refused."""
        parts = index if isinstance(index, tuple) else (index,)
        if not all(part is None or part is ... or (isinstance(part, int | slice) and type(part) is not bool) for part in parts):
            raise TraceError(f"the code assigns to {self.node.format_node()} by an index of tensors")
        part: Any = operator.getitem(self, index)
        part.fill_(value) if isinstance(value, int | float) else part.copy_(value)
