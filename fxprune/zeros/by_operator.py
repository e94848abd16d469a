"""How operators carry what is known of the values of slices from their operands to their results.

Of a tensor is known, along each dimension and at each position, whether the slice there is zero throughout, or one number
throughout: where the weights of a channel are masked, nothing but its bias is left, and behind a ReLU that of the bias. The
text in which rules say how zeros travel is read here slice by slice; element-wise operators are called on the numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.algebra.axes import Axis
from fxprune.algebra.units import Units
from fxprune.errors import RuleError
from fxprune.rules import POINTWISE, find_rule
from fxprune.rules.call import Call
from fxprune.rules.joining import Concatenate, ConstantPad, Repeat, RepeatInterleave
from fxprune.rules.labels import Label, Zero
from fxprune.rules.movement import Roll, Select, Take
from fxprune.rules.notation import Pattern
from fxprune.rules.pointwise import Pointwise, called_on
from fxprune.rules.registry import op_card
from fxprune.rules.views import Expand, Move, View
from fxprune.torch_internals.operators import no_modes
from fxprune.zeros.by_pattern import Known, Reading, nothing_of
from fxprune.zeros.slice_states import Slices, SliceState, met

MAX_GRID = 1 << 22  # views of more positions along dimensions that merge or split are not followed


def results_of(call: Call, operands: Sequence[Known]) -> list[Known]:
    """Return what is known of each result of a call.

    Args:
        call: the call.
        operands: what is known of its operands; running statistics count as constant while nothing but the call uses them.
    """
    rule = find_rule(call.op, lambda: POINTWISE)
    nothing = [nothing_of(shape) for shape in call.shapes]
    if op_card(call.op).as_a_whole or not any(slices is not None for known in operands for slices in known):
        return nothing
    try:
        found = _carried(rule, call, operands)
    except RuleError:  # nor did the rule fit in the analysis
        return nothing
    return [tuple(s if s is not None and s.tells else None for s in known) for known in found or nothing]


@functools.singledispatch
def _carried(rule: Any, call: Call, operands: Sequence[Known]) -> list[Known] | None:
    """Return what a rule's operator makes of what is known; None where that is not known."""
    return None


# Rules that a pattern says.


@_carried.register
def _by_pattern(rule: Pattern, call: Call, operands: Sequence[Known]) -> list[Known]:
    reading = Reading(rule, call, operands)
    return [reading.result(index) for index in range(len(call.shapes))]


# Element by element.


@_carried.register
def _element_wise(rule: Pointwise, call: Call, operands: Sequence[Known]) -> list[Known] | None:
    if not call.shapes or any(shape != call.shapes[0] for shape in call.shapes):
        return None
    if torch.Tag.nondeterministic_seeded in call.op.tags:
        return None
    shape = call.shapes[0]
    known = tuple(
        _element_wise_along(rule, call, operands, d, size) for d, size in zip(range(-len(shape), 0), shape, strict=True)
    )
    return [known] * len(call.shapes)


def _element_wise_along(rule: Pointwise, call: Call, operands: Sequence[Known], d: int, size: int) -> Slices | None:
    sides = [known[d] if len(known) >= -d else None for known in operands]
    if all(side is None for side in sides):
        return None
    plain = Slices.all(SliceState.FINITE, [size])
    sides = [plain if side is None else side.expand([size]) for side in sides]
    given = [i for i, label in enumerate(call.operands) if label is not None]
    states = np.stack([side.states for side in sides if side is not None])
    numbers = np.stack([side.values for side in sides if side is not None])
    found, values = plain.states.copy(), plain.values.copy()
    for combination in np.unique(states[given], axis=1).T:
        at = np.flatnonzero((states[given] == combination[:, None]).all(0))
        exact = None
        if (combination >= SliceState.CONSTANT).all():
            exact = _called_on(call, numbers[given][:, at])
        if exact is not None:
            slices = Slices.of_numbers(exact, np.ones(len(at), bool))
            found[at], values[at] = slices.states, slices.values
        else:
            found[at] = _called_on_zeros(rule, call, [SliceState(s) for s in combination], d)
    return Slices(found, values)


def _called_on(call: Call, numbers: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Return what an operator makes of numbers, one row for each tensor; None if it does not take them."""
    waiting: Iterator[Tensor] = iter(torch.from_numpy(numbers.copy()))

    def stand_in(leaf: Tensor) -> Tensor:
        values = next(waiting)
        return values if leaf.is_floating_point() else values.to(leaf.dtype)

    with no_modes(), torch.no_grad():
        returned = called_on(call, stand_in)
    if returned is None or len(returned) != 1 or returned[0].shape != numbers.shape[1:] or returned[0].is_complex():
        return None
    exact: np.ndarray[Any, np.dtype[np.float64]] = returned[0].double().numpy()
    return exact


_OF_ZERO = {Zero.UNKNOWN: SliceState.UNKNOWN, Zero.FINITE: SliceState.FINITE, Zero.ZERO: SliceState.ZERO}
_TO_ZERO = {
    SliceState.UNKNOWN: Zero.UNKNOWN,
    SliceState.FINITE: Zero.FINITE,
    SliceState.CONSTANT: Zero.FINITE,
    SliceState.ZERO: Zero.ZERO,
}


def _called_on_zeros(rule: Pointwise, call: Call, states: Sequence[SliceState], d: int) -> SliceState:
    """Return what an operator makes of zeros and other numbers, as its rule finds out on two positions."""
    waiting = iter(states)
    labels: list[Label | None] = []
    for label in call.operands:
        if label is None:
            labels.append(None)
            continue
        state = next(waiting)
        labels.append(Label((Axis.whole(2),), (_TO_ZERO[state],)) if len(label) >= -d else Label((), ()))
    small = dataclasses.replace(call, operands=labels, shapes=[(2,)] * len(call.shapes), units=Units(), mixings=[], axes={})
    return _OF_ZERO[rule.apply(small)[0].zeros[0]]


# Views and moves.


@_carried.register
def _viewed(rule: View, call: Call, operands: Sequence[Known]) -> list[Known] | None:
    old, new = call.operand(0).shape, call.shapes[0]
    if 0 in old:
        return None
    found: list[Slices | None] = [None] * len(new)
    for before, after in _runs(old, new):
        grid = None
        for k, d in enumerate(before):
            slices = operands[0][d]
            if slices is not None:
                wide = slices.reshape([old[d] if i == k else 1 for i in range(len(before))])
                grid = wide if grid is None else grid.join(wide)
        if grid is None or math.prod(old[d] for d in before) > MAX_GRID:
            continue
        grid = grid.expand([old[d] for d in before]).reshape([new[d] for d in after])
        for k, d in enumerate(after):
            found[d] = grid.meet([i for i in range(len(after)) if i != k])
    return [tuple(found)]


def _runs(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Yield the smallest runs of dimensions that hold the same elements in both shapes."""
    left, right = np.cumprod(np.array(old, np.int64)), np.cumprod(np.array(new, np.int64))
    i = j = 0
    for count in np.intersect1d(left, right):
        ends = int(np.searchsorted(left, count, "right")), int(np.searchsorted(right, count, "right"))
        yield range(i, ends[0]), range(j, ends[1])
        i, j = ends


@_carried.register
def _moved(rule: Move, call: Call, operands: Sequence[Known]) -> list[Known]:
    return [tuple(operands[0][d] for d in rule.order(call))]


@_carried.register
def _expanded(rule: Expand, call: Call, operands: Sequence[Known]) -> list[Known]:
    shape = call.shapes[0]
    known = (None,) * (len(shape) - len(operands[0])) + tuple(operands[0])
    return [tuple(None if s is None else s.expand([size]) for s, size in zip(known, shape, strict=True))]


@_carried.register
def _taken(rule: Take, call: Call, operands: Sequence[Known]) -> list[Known] | None:
    if isinstance(rule, Roll) and not call["dims"] and len(operands[0]) > 1:
        return None  # over the flattened tensor
    results = []
    for picked in rule.pick(call):
        results.append(tuple(s.take(picked[d]) if s is not None and d in picked else s for d, s in enumerate(operands[0])))
    return results


@_carried.register
def _selected(rule: Select, call: Call, operands: Sequence[Known]) -> list[Known]:
    d = call.dim()
    return [(*operands[0][:d], *operands[0][d + 1 :])] * len(call.shapes)


@_carried.register
def _concatenated(rule: Concatenate, call: Call, operands: Sequence[Known]) -> list[Known]:
    given = [(k, known) for k, known in zip(call.operands, operands, strict=True) if k is not None and k.shape != (0,)]
    rank = len(call.shapes[0])
    d = call["dim"] % rank
    found: list[Slices | None] = []
    for k in range(rank):
        parts = [known[k] or Slices.all(SliceState.FINITE, [label.shape[k]]) for label, known in given]
        if all(known[k] is None for _, known in given):
            found.append(None)
        elif k == d:
            found.append(Slices(np.concatenate([p.states for p in parts]), np.concatenate([p.values for p in parts])))
        else:
            found.append(met(parts))
    return [tuple(found)]


@_carried.register
def _repeated(rule: Repeat, call: Call, operands: Sequence[Known]) -> list[Known]:
    shape, before = call.shapes[0], call.operand(0).shape
    missing = len(shape) - len(before)
    known = (None,) * missing + tuple(operands[0])
    return [
        tuple(
            None if s is None or not before[d - missing] else s.take(np.arange(size) % before[d - missing])
            for d, (s, size) in enumerate(zip(known, shape, strict=True))
        )
    ]


@_carried.register
def _interleaved(rule: RepeatInterleave, call: Call, operands: Sequence[Known]) -> list[Known] | None:
    if call["dim"] is None:
        return None
    d, times = call.dim(), call["repeats"]
    index = np.arange(call.operand(0).shape[d]).repeat(times)
    return [tuple(s.take(index) if s is not None and k == d else s for k, s in enumerate(operands[0]))]


@_carried.register
def _padded(rule: ConstantPad, call: Call, operands: Sequence[Known]) -> list[Known] | None:
    pad, rank = call["pad"], len(operands[0])
    if call.arguments.get("mode", "constant") != "constant" or min(pad, default=0) < 0:
        return None
    filled = Slices.of_numbers(np.array([float(call.arguments.get("value") or 0.0)]), np.ones(1, bool))
    widths = {rank - 1 - k: (pad[2 * k], pad[2 * k + 1]) for k in range(len(pad) // 2) if pad[2 * k] or pad[2 * k + 1]}
    found: list[Slices | None] = []
    for d, size in enumerate(call.operand(0).shape):
        old = operands[0][d] or Slices.all(SliceState.FINITE, [size])
        slices = met([old, filled]) if any(other != d for other in widths) else old
        before, after = (filled.expand([width]) for width in widths.get(d, (0, 0)))
        parts = [before, slices, after]
        found.append(Slices(np.concatenate([p.states for p in parts]), np.concatenate([p.values for p in parts])))
    return [tuple(found)]
