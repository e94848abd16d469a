"""Operators that pick positions by the values of a tensor: embeddings, indexing, gather and scatter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from fxprune.rules.call import Call
from fxprune.rules.labels import Label, Zero
from fxprune.rules.movement import replaced
from fxprune.rules.notation import Pattern
from fxprune.rules.registry import overloads, register
from fxprune.rules.views import reshape
from fxprune.units import Axis, Index


def _positions(index: Label, size: int) -> Index | None:
    """Return the values of an index where they are known and are positions."""
    values = index.constant
    if values is None or values.is_floating_point():
        return None
    with _disable_current_modes():
        flat = values.numpy().reshape(-1).astype(np.intp)
    return np.where(flat < 0, flat + size, flat)


def look_up(call: Call, axis: Axis, index: Label) -> tuple[Axis, ...]:
    """Return the axes that picking positions of ``axis`` by ``index`` gives, and couple what goes together.

    Where the index is a constant, an entry of it goes when the position goes that it names. Otherwise ``axis`` stays whole.
    """
    positions = _positions(index, axis.size)
    if positions is None:
        call.freeze(axis, "is indexed by values that are not known")
        return index.axes
    picked = reshape(call, Label((axis.take(positions),), (Zero.FINITE,)), index.shape)
    for one, other in zip(picked.axes, index.axes, strict=True):
        call.couple(one, other)
    return index.axes


@dataclass(frozen=True)
class IndexSelect:
    """Picks positions along one dimension by the values of operand 1."""

    notation: str = "x n, i -> x n[i]"

    def apply(self, call: Call) -> list[Label]:
        """Return the label with the picked rows."""
        label, index, d = call.operand(0), call.operand(1), call.dim()
        axes = look_up(call, label.axes[d], index)
        return [Label((*label.axes[:d], *axes, *label.axes[d + 1 :]), (*label.zeros[:d], Zero.FINITE, *label.zeros[d + 1 :]))]


@dataclass(frozen=True)
class AdvancedIndex:
    """``x[:, i, j]``: tensors in place of some dimensions, broadcast against each other."""

    notation: str = "x n y, i -> x i y"

    def apply(self, call: Call) -> list[Label]:
        """Return the label of the picked elements."""
        label = call.operand(0)
        given = list(call["indices"])
        indices = {d: call.operand(1 + d) for d, index in enumerate(given) if isinstance(index, Tensor)}
        flags = [i for i in given if isinstance(i, Tensor) and not i.dtype.is_floating_point and i.dtype.itemsize == 1]
        single = next(iter(indices.values())) if len(indices) == 1 else None
        if flags or single is None:
            return self._whole(call, label, list(indices), bool(flags))
        (d,) = indices
        axes = look_up(call, label.axes[d], single)
        zeros = (*label.zeros[:d], *(Zero.FINITE for _ in axes), *label.zeros[d + 1 :])
        return [Label((*label.axes[:d], *axes, *label.axes[d + 1 :]), zeros)]

    def _whole(self, call: Call, label: Label, dims: list[int], flags: bool) -> list[Label]:
        """Keep the indexed dimensions and the indices whole; the others pass where their place is clear."""
        for index in call.operands[1:]:
            for axis in index.axes if index is not None else ():
                call.freeze(axis, "is an index together with others")
        for d in dims:
            call.freeze(label.axes[d], "is indexed by several tensors, or by flags")
        shape = call.shapes[0]
        together = dims == list(range(dims[0], dims[-1] + 1))
        after = len(label) - 1 - dims[-1]
        rest = [d for d in range(len(label)) if d not in dims]
        if flags or not together:
            for d in rest:
                call.freeze(label.axes[d], "is next to dimensions that are indexed by flags or apart")
            return [Label.whole(shape, call.why("is indexed"))]
        middle = [Axis.whole(n, call.why("is an index")) for n in shape[dims[0] : len(shape) - after]]
        head, tail = label.axes[: dims[0]], label.axes[dims[-1] + 1 :]
        zeros = (*label.zeros[: dims[0]], *(Zero.FINITE for _ in middle), *label.zeros[dims[-1] + 1 :])
        return [Label((*head, *middle, *tail), zeros)]


@dataclass(frozen=True)
class Gather:
    """Picks elements along a dimension, other ones at each place of the others."""

    notation: str = "x !n, x i -> x i"

    def apply(self, call: Call) -> list[Label]:
        """Couple the other dimensions; the picked one stays whole."""
        label, index, d = call.operand(0), call.operand(1), call.dim()
        states = []
        for k, (one, two) in enumerate(zip(label.axes, index.axes, strict=True)):
            if k == d:
                call.freeze(one, "is gathered from by values")
            else:
                call.couple(one.take(np.arange(two.size)), two)
            states.append(Zero.FINITE if k == d else label.zeros[k])
        return [Label(index.axes, tuple(states))]


@dataclass(frozen=True)
class Scatter:
    """Writes along a dimension to places that operand 1 names."""

    notation: str = "x !n, x !i, x !i -> x !n"

    def apply(self, call: Call) -> list[Label]:
        """Couple the other dimensions; the written one stays whole."""
        label, d = call.operand(0), call.dim()
        states = [Zero.FINITE if k == d else zero for k, zero in enumerate(label.zeros)]
        for other in call.operands[1:]:
            if other is None or len(other) != len(label):
                continue
            for k, (one, two) in enumerate(zip(label.axes, other.axes, strict=True)):
                if k == d:
                    call.freeze(one, "is written to at places given by values")
                    call.freeze(two, "is written to places given by values")
                else:
                    call.couple(one.take(np.arange(two.size)), two)
                    states[k] = min(states[k], other.zeros[k] if other.constant is None else Zero.ZERO)
        return [replaced(label, {}, dict(enumerate(states)))]


def _written(call: Call) -> str:
    """Return the pattern of a write through indices: everything stays whole."""
    return ", ".join(["*x"] * len(call.operands)) + " -> *y"


def _index_add(call: Call) -> str:
    d = call.dim()
    names = [f"!x{k}" if k == d else f"x{k}" for k in range(len(call.operand(0)))]
    source = ["!i" if k == d else name for k, name in enumerate(names)]
    return f"{' '.join(names)}, !i, {' '.join(source)} -> {' '.join(names)}"


register(overloads("embedding"), Pattern("!v d, ...b -> ...b d", zeros="0"))
register(
    overloads("embedding_bag embedding_bag.padding_idx _embedding_bag _embedding_bag_forward_only"),
    Pattern("!v d, _, _, _ -> !b d, _, _, _", zeros="0"),
)
register(overloads("index_select"), IndexSelect())
register(overloads("index.Tensor _unsafe_index.Tensor"), AdvancedIndex())
register(overloads("gather take_along_dim"), Gather())
register(
    overloads("scatter.src scatter.value scatter_add scatter_reduce.two scatter.reduce scatter_ scatter_add_.default"),
    Scatter(),
)
register(overloads("index_put index_put_ _unsafe_index_put masked_scatter"), Pattern(_written, "*x, *i, *v -> *x"))
register(overloads("index_add index_copy"), Pattern(_index_add, "x !n, !i, x !i -> x !n", zeros="0+2"))
register(overloads("index_fill.int_Scalar"), Pattern("*x, *i -> *x"))
register(overloads("bucketize.Tensor searchsorted.Tensor"), Pattern(_written, "*x, *i -> *y"))
register(overloads("one_hot"), Pattern("...x -> ...x *n"))
