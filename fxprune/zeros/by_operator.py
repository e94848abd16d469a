"""How operators carry the states of slices from their operands to their results.

Along each dimension of a tensor a slice may be known to be zero throughout, or one number throughout. Example: the weights of
channel 3 are masked and its bias is -0.5, so that channel 3 is -0.5 at every place, and zero behind a ReLU. Rules that are
patterns are read by their zeros text, see ``by_pattern.py``; element-wise operators are called on the numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.algebra.axes import Axis
from fxprune.algebra.units import Units
from fxprune.errors import RuleError
from fxprune.rules import find_rule
from fxprune.rules.call import Call
from fxprune.rules.card import Coded
from fxprune.rules.joining import joined, pad, pad_widths
from fxprune.rules.labels import Label, Zero
from fxprune.rules.movement import positions_taken, select, take
from fxprune.rules.notation import Pattern
from fxprune.rules.pointwise import called_on, element_wise
from fxprune.rules.registry import op_card
from fxprune.rules.views import view
from fxprune.torch_internals.operators import no_modes
from fxprune.zeros.by_pattern import Known, Reading, nothing_of
from fxprune.zeros.slice_states import Slices, SliceState, join, meet, met, of_numbers, of_states, or_finite, unless_finite

MAX_GRID = 1 << 22  # a view that merges or splits dimensions of more positions is not followed


def results_of(call: Call, operands: Sequence[Known]) -> list[Known]:
    """Return the known slices of each result of a call, from those of its operands."""
    nothing = [nothing_of(shape) for shape in call.shapes]
    # The zeros text of an LSTM holds where all tensors of a unit are zero, not where a single operand is.
    if op_card(call.op).as_a_whole or not any(slices is not None for known in operands for slices in known):
        return nothing
    try:
        found = _carried(call, operands)
    except RuleError:  # the pattern does not fit the shapes, and the analysis kept the axes whole for that
        return nothing
    return [tuple(map(unless_finite, known)) for known in found or nothing]


def _carried(call: Call, operands: Sequence[Known]) -> list[Known] | None:
    """Return the known slices of each result, by the kind of rule; None for rules of other kinds."""
    rule = find_rule(call.op)
    if isinstance(rule, Pattern):
        reading = Reading(rule, call, operands)
        return [reading.result(index) for index in range(len(call.shapes))]
    carry = _CARRIED_BY.get(rule.apply) if isinstance(rule, Coded) else None
    return None if carry is None else carry(call, operands)


def _element_wise(call: Call, operands: Sequence[Known]) -> list[Known] | None:
    if len(set(call.shapes)) != 1 or torch.Tag.nondeterministic_seeded in call.op.tags:
        return None
    rank = len(call.shapes[0])
    return [tuple(_element_wise_along(call, operands, d) for d in range(-rank, 0))] * len(call.shapes)


def _element_wise_along(call: Call, operands: Sequence[Known], d: int) -> Slices | None:
    """Return the slices along dimension ``d``, counted from the end; calls the operator once per combination of states."""
    given = [known for known, label in zip(operands, call.operands, strict=True) if label is not None]
    sides = [known[d] if len(known) >= -d else None for known in given]
    if all(side is None for side in sides):
        return None
    wide = np.stack([np.broadcast_to(or_finite(side, 1), [call.shapes[0][d]]) for side in sides])
    found: Slices = np.empty_like(wide[0])
    for combination in np.unique(wide["state"], axis=1).T:
        at = np.flatnonzero((wide["state"] == combination[:, None]).all(0))
        exact = _called_on(call, wide["value"][:, at]) if (combination >= SliceState.CONSTANT).all() else None
        if exact is not None:
            found[at] = of_numbers(exact)
        else:
            found[at] = of_states(_called_on_zeros(call, [SliceState(s) for s in combination], d))
    return found


def _called_on(call: Call, numbers: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return the result of an operator on numbers, one row for each tensor; None if the operator does not take them."""
    waiting: Iterator[Tensor] = iter(torch.from_numpy(numbers.copy()))

    def stand_in(leaf: Tensor) -> Tensor:
        values = next(waiting)
        return values if leaf.is_floating_point() else values.to(leaf.dtype)

    with no_modes(), torch.no_grad():
        returned = called_on(call, stand_in)
    if returned is None or len(returned) != 1 or returned[0].shape != numbers.shape[1:] or returned[0].is_complex():
        return None
    return np.asarray(returned[0].double().numpy(), np.float64)


def _called_on_zeros(call: Call, states: Sequence[SliceState], d: int) -> SliceState:
    """Return the state of a result slice, from the rule on two positions whose operands are in these states."""
    waiting = iter(states)

    def small(label: Label) -> Label:
        state = next(waiting)
        zero = Zero.FINITE if state is SliceState.CONSTANT else Zero[state.name]
        return Label((Axis.whole(2),), (zero,)) if len(label) >= -d else Label((), ())

    labels = [None if label is None else small(label) for label in call.operands]
    tiny = dataclasses.replace(call, operands=labels, shapes=[(2,)] * len(call.shapes), units=Units(), mixings=[], axes={})
    return SliceState[element_wise(tiny)[0].zeros[0].name]


def _viewed(call: Call, operands: Sequence[Known]) -> list[Known] | None:
    old, new = call.operand(0).shape, call.shapes[0]
    if 0 in old:
        return None
    found: list[Slices | None] = [None] * len(new)
    for before, after in _runs(old, new):
        known = [(k, slices) for k, d in enumerate(before) if (slices := operands[0][d]) is not None]
        if not known or math.prod(old[d] for d in before) > MAX_GRID:
            continue
        grids = [slices.reshape([-1 if i == k else 1 for i in range(len(before))]) for k, slices in known]
        grid = np.broadcast_to(functools.reduce(join, grids), [old[d] for d in before]).reshape([new[d] for d in after])
        for k, d in enumerate(after):
            found[d] = meet(grid, [i for i in range(len(after)) if i != k])
    return [tuple(found)]


def _runs(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Yield runs of dimensions that hold the same elements in both shapes, sizes of one together with their neighbours.

    So a new dimension of size one takes over what is known along its neighbour. Example: for (6, 5) and (2, 3, 5, 1) the runs
    are (0) and (0, 1), then (1) and (2, 3).
    """
    left, right = np.cumprod(np.array(old, np.int64)), np.cumprod(np.array(new, np.int64))
    i = j = 0
    for count in np.intersect1d(left, right):
        ends = int(np.searchsorted(left, count, "right")), int(np.searchsorted(right, count, "right"))
        yield range(i, ends[0]), range(j, ends[1])
        i, j = ends


def _taken(call: Call, operands: Sequence[Known]) -> list[Known]:
    known = list(enumerate(operands[0]))
    return [tuple(s[picks[d]] if s is not None and d in picks else s for d, s in known) for picks in positions_taken(call)]


def _selected(call: Call, operands: Sequence[Known]) -> list[Known]:
    d = call.dim()
    return [(*operands[0][:d], *operands[0][d + 1 :])] * len(call.shapes)


def _concatenated(call: Call, operands: Sequence[Known]) -> list[Known]:
    given = [(k, known) for k, known in zip(call.operands, operands, strict=True) if k is not None and k.shape != (0,)]
    rank = len(call.shapes[0])
    found: list[Slices | None] = []
    for k in range(rank):
        parts = [or_finite(known[k], label.shape[k]) for label, known in given]
        found.append((np.concatenate if k == call["dim"] % rank else met)(parts))
    return [tuple(found)]


def _padded(call: Call, operands: Sequence[Known]) -> list[Known] | None:
    if call.arguments.get("mode", "constant") != "constant" or min(call["pad"], default=0) < 0:
        return None
    filled = of_numbers(np.array([float(call.arguments.get("value") or 0.0)]))
    widths = pad_widths(call)
    found: list[Slices | None] = []
    for d, size in enumerate(call.operand(0).shape):
        old = or_finite(operands[0][d], size)
        slices = met([old, filled]) if any(other != d for other in widths) else old
        before, after = (np.broadcast_to(filled, [width]) for width in widths.get(d, (0, 0)))
        found.append(np.concatenate([before, slices, after]))
    return [tuple(found)]


_CARRIED_BY: dict[Callable[[Call], list[Label]], Callable[[Call, Sequence[Known]], list[Known] | None]] = {
    element_wise: _element_wise,
    view: _viewed,
    take: _taken,
    select: _selected,
    joined: _concatenated,
    pad: _padded,
}
