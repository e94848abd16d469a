"""Operators that pick and order positions: every result position is a position of an operand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.algebra.axes import Axis, Index
from fxprune.errors import RuleError
from fxprune.rules.call import Call
from fxprune.rules.card import Coded, OpCard, PositionsLeft
from fxprune.rules.labels import Label, Zero
from fxprune.rules.notation import Pattern
from fxprune.rules.parsing import along, marked
from fxprune.rules.registry import register_aten
from fxprune.torch_internals.operators import no_modes


def replaced(label: Label, changes: dict[int, Axis], states: dict[int, Zero] | None = None) -> Label:
    """Return a label with other axes and states in some dimensions."""
    axes = tuple(changes.get(d, axis) for d, axis in enumerate(label.axes))
    return Label(axes, tuple((states or {}).get(d, zero) for d, zero in enumerate(label.zeros)))


def spliced(label: Label, start: int, stop: int, between: Label) -> Label:
    """Return a label with the dimensions of another label in place of its dimensions from ``start`` to ``stop``."""
    axes = (*label.axes[:start], *between.axes, *label.axes[stop:])
    return Label(axes, (*label.zeros[:start], *between.zeros, *label.zeros[stop:]))


def results_on(call: Call, operand: NDArray[Any]) -> list[NDArray[Any]]:
    """Return what the operator of a call gives on numbers in place of operand 0."""
    with no_modes():
        result = call.op(**(call.arguments | {"self": torch.from_numpy(operand)}))
        return [part.numpy() for part in ([result] if isinstance(result, Tensor) else result)]


def take(call: Call) -> list[Label]:
    """Pick positions along some dimensions of operand 0."""
    label, picks = call.operand(0), positions_taken(call)
    if not picks:
        for axis in label.axes:
            call.keep_whole(axis, "is rolled over the flattened tensor")
        return [label]
    return [replaced(label, {d: label.axes[d].take(i) for d, i in picked.items()}) for picked in picks]


def positions_taken(call: Call) -> list[dict[int, Index]]:
    """Return the picked positions by dimension for each result: ``[{1: arange(0, 4)}]`` for ``x[:, :4]``.

    The operator itself tells them, called on the numbers of positions. A roll over the flattened tensor has no results.
    """
    shape = call.operand(0).shape
    if "shifts" in call.arguments and not call["dims"] and len(shape) > 1:
        return []
    picks: list[dict[int, Index]] = [{} for _ in call.shapes]
    for d in [call.dim()] if "dim" in call.arguments else call.dims("dims"):
        numbers = np.arange(shape[d]).reshape([-1 if k == d else 1 for k in range(len(shape))])
        for picked, result in zip(picks, results_on(call, numbers), strict=True):
            picked[d] = result.reshape(-1)
    return picks


def select(call: Call) -> list[Label]:
    """Pick positions one by one, so that they can never go: ``select`` picks one position, ``unbind`` all of them."""
    label, d = call.operand(0), call.dim()
    indices = [call["index"]] if "index" in call.arguments else range(label.shape[d])
    picked = label.axes[d].take(np.array([i % label.shape[d] for i in indices], np.intp))
    call.keep_whole(picked, "is picked by its index")
    return [spliced(label, d, d + 1, Label((), ()))] * len(call.shapes)


def _unfold(call: Call) -> list[Label]:
    """Keep whole a dimension that is cut into windows."""
    label, d = call.operand(0), call.dim("dimension")
    call.keep_whole(label.axes[d], "is cut into windows")
    base = replaced(label, {d: call.whole(call.shapes[0][d], "counts windows")})
    return [Label((*base.axes, call.whole(call["size"], "is a window")), (*base.zeros, Zero.FINITE))]


def _scattered(call: Call) -> list[Label]:
    """Couple the positions of operand 0 that operand 1 is written over with its own; one picked by its index stays whole."""
    label, source, d = call.operand(0), call.operand(1), call.dim()
    if "index" in call.arguments:
        places = np.array([call["index"] % label.shape[d]])
        source = spliced(source, d, d, Label((call.whole(1, "is picked by its index"),), (Zero.ZERO,)))
    else:
        places = np.arange(label.shape[d])[slice(call["start"], call["end"], call["step"])]
    for k, (one, two) in enumerate(zip(label.axes, source.axes, strict=True)):
        call.couple(one.take(places) if k == d else one, two)
    return [replaced(label, {}, {k: min(label.zeros[k], source.zeros[k]) for k in range(len(label))})]


def _diagonal(call: Call) -> str:
    rank = len(call.operand(0))
    pair = (call["dim1"] % rank, call["dim2"] % rank)
    rest = [f"x{k}" for k in range(rank) if k not in pair]
    return f"{' '.join(marked(rank, pair, '!x{}'))} -> {' '.join(rest)} !n"


def _diag_embed(call: Call) -> str:
    """Return the pattern of a diagonal matrix; beside the main diagonal the row and the column of an element differ."""
    rank = len(call.shapes[0])
    pair = (call["dim1"] % rank, call["dim2"] % rank)
    rest = [f"x{k}" for k in range(rank - 2)]
    names = iter(rest)
    before, after = ("!i", "!j") if call["offset"] else ("i", "i")
    result = [after if k in pair else next(names) for k in range(rank)]
    return f"{' '.join([*rest, before])} -> {' '.join(result)}"


def _parts_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    d = call.dim()
    sizes = [left.size(label.axes[d]) for label in results]
    if "indices" in call.arguments:
        return {"indices": [int(end) for end in np.cumsum(sizes)[:-1]]}
    (name,) = {"split_sizes", "split_size", "chunks", "sections"} & call.arguments.keys()
    # Where sizes stand in place of a number the caller calls ``split`` instead.
    return {name: sizes if sizes != [label.shape[d] for label in results] else call[name]}


def places_left(left: PositionsLeft, axis: Axis) -> Callable[[int], int]:
    """Return the function that gives the place of a position among the positions left: how many are left before it."""
    counts = np.concatenate([[0], np.cumsum(left(axis))])
    return lambda position: int(counts[position])


def slice_left(flags: NDArray[np.bool_], given: slice) -> tuple[int, int, int] | None:
    """Return start, stop and step of a slice among the positions left; None where no single step picks them.

    Example: of 0 to 5 without 1, ``[::2]`` picks 0, 2, 4, which are places 0, 1, 3: no step gives these.
    """
    start, stop, step = given.indices(len(flags))
    before = np.concatenate([[0], np.cumsum(flags)])
    if step == 1:
        return int(before[start]), int(before[max(stop, start)]), 1
    picked = np.arange(start, stop, step)
    places = before[picked[flags[picked]]]
    steps = np.unique(np.diff(places))
    if not len(places):
        return 0, 0, 1
    step = int(steps[0]) if len(steps) else 1
    return (int(places[0]), int(places[-1]) + 1, step) if len(steps) < 2 else None


def _slice_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    axis = call.operand(0).axes[call.dim()]
    given = {name: call[name] for name in ("start", "end", "step")}
    if left.size(axis) == axis.size:
        return given
    found = slice_left(left(axis), slice(*given.values()))
    if found is None:
        raise RuleError(f"a slice with step {given['step']} would have to pick uneven places of what is left")
    return dict(zip(given, found, strict=True))


def _narrow_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    d = call.dim()
    axis = call.operand(0).axes[d]
    start = call["start"] % axis.size if call["start"] < 0 else call["start"]
    return {"start": places_left(left, axis)(start), "length": left.size(results[0].axes[d])}


def _index_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    axis = call.operand(0).axes[call.dim()]
    place = places_left(left, axis)(call["index"] % axis.size)
    return {"index": place if call["index"] >= 0 else place - left.size(axis)}


def _shifts_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    label = call.operand(0)
    if not call["dims"]:
        return {"shifts": [_shift_left(call["shifts"][0], label.axes[0], left)]} if len(label) == 1 else {}
    dims = call.dims("dims")
    # Where a dimension is rolled twice, the first roll takes both shifts and the second one none.
    whole = {d: sum(shift for shift, other in zip(call["shifts"], dims, strict=True) if other == d) for d in dims}
    return {"shifts": [_shift_left(whole.pop(d, 0), label.axes[d], left) for d in dims]}


def _shift_left(shift: int, axis: Axis, left: PositionsLeft) -> int:
    size = left.size(axis)
    if size == axis.size:
        return shift
    # A roll by 3 brings the last 3 positions to the front; the new shift is how many of them are left.
    shifted = size - places_left(left, axis)(axis.size - shift % axis.size)
    return shifted if shift >= 0 else shifted - size


register_aten("slice.Tensor slice_copy.Tensor", OpCard(Coded("x n -> x n[start:end:step]", take), _slice_left))
register_aten("narrow narrow_copy", OpCard(Coded("x n -> x n[start:start+length]", take), _narrow_left))
register_aten(
    "split.Tensor split.sizes split_with_sizes chunk unsafe_split.Tensor unsafe_split_with_sizes unsafe_chunk "
    "tensor_split.sections tensor_split.indices split_copy.Tensor split_with_sizes_copy",
    OpCard(Coded("x (a+b) -> x a, x b", take), _parts_left),
)
register_aten("flip", Coded("x n -> x n[::-1]", take))
register_aten("roll", OpCard(Coded("x n -> x n[-shift:]+n[:-shift]", take), _shifts_left))
register_aten("select.int select_copy.int", OpCard(Coded("x !i -> x", select), _index_left))
register_aten("unbind.int unbind_copy.int", Coded("x !i -> x, x", select))
register_aten("unfold unfold_copy", Coded("!x -> !n !w", _unfold))
register_aten("slice_scatter", OpCard(Coded("x n, x k -> x n", _scattered), _slice_left))
register_aten("select_scatter", OpCard(Coded("x !i, x -> x !i", _scattered), _index_left))
register_aten("tril triu tril_ triu_", Pattern("...x !i !j -> ...x !i !j", zeros="0"))
register_aten("diagonal diagonal_copy", Pattern(_diagonal, "x !i !j -> x !n", zeros="0"))
register_aten("diag_embed", Pattern(_diag_embed, "x i -> x i i", zeros="0"))
# A cumulative sum of ones numbers the positions, and the numbers change if positions before them go.
register_aten("cumsum cumprod cummax cummin", Pattern(along("!x{}", "!x{}"), "x !n -> x !n", zeros="0, n"))
register_aten("logcumsumexp argsort argsort.stable", Pattern(along("!x{}", "!x{}"), "x !n -> x !n", zeros="n"))
register_aten("sort sort.stable", Pattern(along("!x{}", "!x{}"), "x !n -> x !n, x !n", zeros="0, n"))
