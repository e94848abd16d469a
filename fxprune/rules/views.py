"""Views: the same elements under another shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fxprune.algebra.axes import Axis
from fxprune.rules.call import Call
from fxprune.rules.card import Coded, OpCard, PositionsLeft
from fxprune.rules.labels import Label, Zero
from fxprune.rules.movement import results_on
from fxprune.rules.notation import Pattern
from fxprune.rules.parsing import marked
from fxprune.rules.registry import register_aten


def reshape(call: Call, label: Label, shape: Sequence[int]) -> Label:
    """Return the label of a tensor after a view, by merging and splitting its axes."""
    axes: list[Axis] = []
    states: list[Zero] = []
    for old, new in _blocks(label.shape, shape):
        if old == new and [label.shape[d] for d in old] == [shape[d] for d in new]:
            axes += [label.axes[d] for d in old]
            states += [label.zeros[d] for d in old]
            continue
        axis, state = Axis.whole(1), Zero.ZERO
        for d in old:
            axis = label.axes[d] if d == old[0] else axis.merge(label.axes[d])
            if not label.axes[d].is_whole:  # a whole axis has no removed positions, so its state says nothing
                state = min(state, label.zeros[d])
        for d in new[:-1]:
            part, axis = call.units.split(axis, shape[d], call.why("has to keep the layout of this view"))
            axes.append(part)
        axes += [axis] * (len(new) > 0)
        states += [state] * len(new)
    return Label(tuple(axes), tuple(states))


def _blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Yield the smallest runs of dimensions that hold the same elements in both shapes.

    Example: for (6, 5) and (2, 3, 5) they are (0) and (0, 1), then (1) and (2).
    """
    i = j = 0
    if 0 in old:
        i, j = len(old), len(new)
        yield range(i), range(j)
    while i < len(old) or j < len(new):
        a, b, size_a, size_b = i, j, 1, 1
        if i < len(old) and j < len(new) and old[i] == new[j]:  # two sizes of one are a run of their own
            i, j = i + 1, j + 1
        while (i, j) == (a, b) or size_a != size_b:
            if (size_a <= size_b and i < len(old)) or j >= len(new):
                size_a, i = size_a * old[i], i + 1
            else:
                size_b, j = size_b * new[j], j + 1
        yield range(a, i), range(b, j)


def view(call: Call) -> list[Label]:
    """Give operand 0 another shape: axes merge and split as the sizes say."""
    label = call.operand(0)
    if 0 in label.shape:
        return [Label.whole(call.shapes[0])]
    result = reshape(call, label, call.shapes[0])
    # Operand 1 of ``view_as`` gave the shape.
    for one, other in zip(result.axes, call.operand(1).axes if len(call.operands) > 1 else (), strict=False):
        call.couple(one, other)
    return [result]


def _moved(call: Call) -> str:
    """Return the pattern of a new order of dimensions; the operator itself tells it, of a tensor whose sizes number them."""
    names = marked(len(call.operand(0)), (), "")
    (numbered,) = results_on(call, np.empty(range(len(names))))
    return f"{' '.join(names)} -> {' '.join(names[size] for size in numbered.shape)}"


def _kept_or_whole(call: Call) -> str:
    """Return the pattern of a view under another dtype: elements may merge or split along the last dimension."""
    same = call.operand(0).shape == call.shapes[0]
    return "...x -> ...x" if same else "...x !a -> ...x !b"


def sizes_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    """Return the shape that is left of the result, by the argument that names it, if there is one."""
    shape = list(left.shape(results[0]))
    if "sizes" in call.arguments:  # those of the dimensions that ``unflatten`` makes of a single dimension
        d = call.dim()
        return {"sizes": shape[d : d + len(call["sizes"])]}
    return {name: shape for name in ("size", "shape") if name in call.arguments}


def _keeps_dtype(call: Call) -> bool:
    return bool(call["self"].dtype == call["other"].dtype)


register_aten(
    "view _unsafe_view reshape _reshape_alias reshape_as view_as flatten.using_ints unflatten.int ravel squeeze "
    "squeeze.dim squeeze.dims unsqueeze view_copy squeeze_copy squeeze_copy.dim squeeze_copy.dims unsqueeze_copy "
    "atleast_1d atleast_2d _reshape_copy",
    OpCard(Coded("(a b) c -> a (b c)", view), sizes_left),
)
for _names, _notation in (
    ("permute permute_copy", "a b c -> c a b"),
    ("transpose.int transpose_copy.int swapdims swapaxes t numpy_T t_copy", "a b -> b a"),
    ("movedim.int movedim.intlist moveaxis.int moveaxis.intlist", "a b c -> b c a"),
    ("mT adjoint mH", "...x a b -> ...x b a"),
):
    register_aten(_names, OpCard(Pattern(_moved, _notation, zeros="0"), keeps_numbers=True))
# Operand 1 gives its dtype or its device alone.
register_aten("type_as to.other", OpCard(Pattern("...x, ...y -> ...x", zeros="0"), keeps_numbers=_keeps_dtype))
register_aten("view.dtype", Pattern(_kept_or_whole, "...x !a -> ...x !b", zeros="0"))
register_aten("view_as_complex view_as_complex_copy", Pattern("...x !c -> ...x", zeros="0"))
register_aten("view_as_real view_as_real_copy", Pattern("...x -> ...x !c", zeros="0"))
