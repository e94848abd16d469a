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
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from fxprune.axes import Axis
from fxprune.errors import RuleError
from fxprune.rules import POINTWISE, find_rule
from fxprune.rules.call import Call
from fxprune.rules.labels import Label, Zero
from fxprune.rules.movement import Concatenate, ConstantPad, Repeat, RepeatInterleave, Roll, Select, Take
from fxprune.rules.notation import Dim, Layout, Pattern
from fxprune.rules.pointwise import Pointwise
from fxprune.rules.registry import overloads
from fxprune.rules.views import Expand, Move, View
from fxprune.slices import Slices, State, added, met, multiplied
from fxprune.units import Units

Known = tuple[Slices | None, ...]
"""What is known of a tensor, for each dimension; None where there are just numbers."""

MAX_GRID = 1 << 22  # views of more positions along dimensions that merge or split are not followed

# Rules that say what happens where all that a unit owns is zero, not what becomes of one operand.
_AS_A_WHOLE = frozenset(
    op
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
    for op in (*overloads(f"{name}.input {name}.data {name}_cell"), *overloads(f"_thnn_fused_{name}_cell"))
)
# Random operators that leave zeros alone.
_SCALES_AT_RANDOM = frozenset(overloads("native_dropout rrelu rrelu_"))
# Of a plane that is one number they make one that is the same number.
_KEEPS_NUMBERS = frozenset(
    overloads(
        "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d "
        "adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "_adaptive_avg_pool2d _adaptive_avg_pool3d reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
        "replication_pad2d replication_pad3d upsample_nearest1d upsample_nearest1d.vec upsample_nearest2d "
        "upsample_nearest2d.vec upsample_nearest3d upsample_nearest3d.vec upsample_linear1d upsample_linear1d.vec "
        "upsample_bilinear2d upsample_bilinear2d.vec upsample_trilinear3d upsample_trilinear3d.vec "
        "mean.dim amax amin pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle"
    )
)


def results_of(call: Call, operands: Sequence[Known]) -> list[Known]:
    """Return what is known of each result of a call.

    Args:
        call: the call.
        operands: what is known of its operands; running statistics count as constant while nothing but the call uses them.
    """
    rule = find_rule(call.op, lambda: POINTWISE)
    nothing = [_nothing(shape) for shape in call.shapes]
    if call.op in _AS_A_WHOLE or not any(slices is not None for known in operands for slices in known):
        return nothing
    try:
        found = _carried(rule, call, operands)
    except RuleError:  # nor did the rule fit in the analysis
        return nothing
    return [tuple(s if s is not None and s.tells else None for s in known) for known in found or nothing]


def _nothing(shape: Sequence[int]) -> Known:
    return (None,) * len(shape)


@functools.singledispatch
def _carried(rule: Any, call: Call, operands: Sequence[Known]) -> list[Known] | None:
    """Return what a rule's operator makes of what is known; None where that is not known."""
    return None


# Rules that a pattern says.


@_carried.register
def _by_pattern(rule: Pattern, call: Call, operands: Sequence[Known]) -> list[Known]:
    reading = _Reading(rule, call, operands)
    return [reading.result(index) for index in range(len(call.shapes))]


class _Reading:
    """Reads the text that says how zeros travel, slice by slice."""

    def __init__(self, rule: Pattern, call: Call, operands: Sequence[Known]) -> None:
        self.call, self.operands = call, list(operands)
        self.layout: Layout = rule.layout(call)
        dims = [dim for dims in (*self.layout.operands.values(), *self.layout.results) for dim in dims or ()]
        # Where every position counts a zero may turn up at another one.
        self.whole = {name for dim in dims for name in dim.whole}
        self.mixed = {name for dim in dims for name in dim.mixed}
        self.zeros, self.mixed_zeros = self.layout.zeros, rule.mixed_zeros
        if self.mixed_zeros is not None:
            # Where the rule counts on masks to make zeros, norms need them in what they divide.
            self.mixed_zeros = self.mixed_zeros.replace("z", "0" if rule.mixes == "norm" else "n")
        self._read_running_mean()

    def _read_running_mean(self) -> None:
        """Let zeros pass a batch norm whose running mean is zero there, too; otherwise the modes differ."""
        if "batch_norm" not in self.call.op.name() or self.call.arguments.get("running_mean") is None:
            return
        index = _number_of(self.call, "running_mean")
        inputs, means = (self.operands[i][d] if len(self.operands[i]) > d else None for i, d in ((0, 1), (index, 0)))
        still = None
        if inputs is not None and means is not None:
            zero = (inputs.states == State.ZERO) & (means.states == State.ZERO)
            still = Slices(
                np.where(zero, State.ZERO, np.minimum(inputs.states, State.FINITE)).astype(np.int8), 0.0 * inputs.values
            )
        self.operands[0] = tuple(still if d == 1 else s for d, s in enumerate(self.operands[0]))
        self.zeros = "0*1+2"

    def result(self, index: int) -> Known:
        """Return what is known of one of the results."""
        dims = self.layout.results[index]
        if dims is None:
            return _nothing(self.call.shapes[index])
        parts = self.zeros.split(",")
        zeros = parts[min(index, len(parts) - 1)].strip()
        return tuple(self._along(dim, zeros, index) for dim in dims)

    def _along(self, dim: Dim, zeros: str, index: int) -> Slices | None:
        names = [name for name in dim.names if name not in self.whole]
        found = None
        if self.mixed_zeros is None:
            forms = [(names, zeros)]
        else:
            apart = [name for name in names if name not in self.mixed]
            forms = [(apart, zeros), (names if len(apart) < len(names) else [], self.mixed_zeros)]
        for some, text in forms:
            if some:
                grid = self._sum(text, some, index).expand([self.layout.sizes[name] for name in some])
                grid = grid.reshape([self.layout.sizes[name] if name in some else 1 for name in dim.names])
                found = grid if found is None else found.join(grid)
        if found is None:
            return None
        return found.expand([self.layout.sizes[name] for name in dim.names]).reshape([-1])

    def _sum(self, text: str, names: Sequence[str], index: int) -> Slices:
        terms = []
        for term in text.split("+"):
            factors = [(factor, self._factor(factor, names)) for factor in term.split("*")]
            present = [(factor, slices) for factor, slices in factors if slices is not None]
            if len(present) == 1 and self._passes_numbers(present[0][0], index):
                terms.append(present[0][1])
            elif present:
                terms.append(multiplied([slices for _, slices in present]))
        return added(terms) if terms else Slices.all(State.FINITE, [1] * len(names))

    def _factor(self, factor: str, names: Sequence[str]) -> Slices | None:
        one = [1] * len(names)
        if factor == "z":
            return Slices.all(State.ZERO, one)
        if factor == "n":
            return Slices.all(State.FINITE, one)
        if factor == "u":  # of zeros
            zero = added([Slices.all(State.FINITE, one)])
            for i in range(len(self.operands)):
                here = self.on(i, names)
                zero = Slices(
                    np.where(here.states == State.ZERO, State.UNKNOWN, zero.states).astype(np.int8), 0.0 * here.values
                )
            return zero
        operand = int(factor)
        return None if operand >= len(self.operands) or self.call.operands[operand] is None else self.on(operand, names)

    def _passes_numbers(self, factor: str, index: int) -> bool:
        """Tell whether a term that is an operand alone is that operand, number by number."""
        if not factor.isdecimal() or self.call.op.namespace != "aten":
            return False
        arguments, operand = self.call.arguments, int(factor)
        if arguments.get("bias") is not None and operand == _number_of(self.call, "bias"):
            return True
        if operand == 0 and "beta" in arguments:
            return bool(arguments["beta"] == 1)
        return operand == 0 and index == 0 and self.call.op in _KEEPS_NUMBERS and not _counts_its_border(self.call)

    def on(self, operand: int, names: Sequence[str]) -> Slices:
        """Return what is known of an operand on the grid of ``names``; of size one along those that it does not have."""
        found = None
        for slices, dim in zip(self.operands[operand], self.layout.operands.get(operand, ()), strict=False):
            shared = [name for name in dim.names if name in names]
            if slices is None or not shared:
                continue
            grid = slices.reshape([self.layout.sizes[name] for name in dim.names])
            grid = grid.meet([k for k, name in enumerate(dim.names) if name not in names])
            grid = grid.transpose(sorted(range(len(shared)), key=lambda k: names.index(shared[k])))
            grid = grid.reshape([self.layout.sizes[name] if name in shared else 1 for name in names])
            found = grid if found is None else found.join(grid)
        return Slices.all(State.FINITE, [1] * len(names)) if found is None else found


def _number_of(call: Call, argument: str) -> int:
    """Return which operand an argument is."""
    tensors = [a.name for a in call.op._schema.arguments if "Tensor" in str(a.type)]
    return tensors.index(argument)


def _counts_its_border(call: Call) -> bool:
    """Tell whether a pooling takes zeros around a plane into its averages, or divides by another number."""
    padded = any(np.atleast_1d(call.arguments.get("padding", 0))) and "avg_pool" in call.op.name()
    divisor = call.arguments.get("divisor_override") is not None
    return divisor or (padded and bool(call.arguments.get("count_include_pad", True)))


# Element by element.


@_carried.register
def _element_wise(rule: Pointwise, call: Call, operands: Sequence[Known]) -> list[Known] | None:
    if not call.shapes or any(shape != call.shapes[0] for shape in call.shapes):
        return None
    random = torch.Tag.nondeterministic_seeded in call.op.tags
    if random and call.op not in _SCALES_AT_RANDOM:
        return None
    shape = call.shapes[0]
    known = tuple(
        _element_wise_along(rule, call, operands, d, size, random) for d, size in zip(range(-len(shape), 0), shape, strict=True)
    )
    return [known] * len(call.shapes)


def _element_wise_along(
    rule: Pointwise, call: Call, operands: Sequence[Known], d: int, size: int, random: bool
) -> Slices | None:
    sides = [known[d] if len(known) >= -d else None for known in operands]
    if all(side is None for side in sides):
        return None
    plain = Slices.all(State.FINITE, [size])
    sides = [plain if side is None else side.expand([size]) for side in sides]
    given = [i for i, label in enumerate(call.operands) if label is not None]
    states = np.stack([side.states for side in sides if side is not None])
    numbers = np.stack([side.values for side in sides if side is not None])
    found, values = plain.states.copy(), plain.values.copy()
    for combination in np.unique(states[given], axis=1).T:
        at = np.flatnonzero((states[given] == combination[:, None]).all(0))
        exact = None
        if (combination >= State.CONSTANT).all() and not random:
            exact = _called_on(call, numbers[given][:, at])
        if exact is not None:
            slices = Slices.of_numbers(exact, np.ones(len(at), bool))
            found[at], values[at] = slices.states, slices.values
        else:
            found[at] = _called_on_zeros(rule, call, [State(s) for s in combination], d)
    return Slices(found, values)


def _called_on(call: Call, numbers: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Return what an operator makes of numbers, one row for each tensor; None if it does not take them."""
    waiting = iter(torch.from_numpy(numbers.copy()))

    def stand_in(leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        if not isinstance(leaf, Tensor):
            return leaf
        values = next(waiting)
        return values if leaf.is_floating_point() else values.to(leaf.dtype)

    try:
        with _disable_current_modes(), torch.no_grad():
            result = call.op(**pytree.tree_map(stand_in, call.arguments))
    except Exception:  # it does not take vectors in place of its operands
        return None
    returned = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    if len(returned) != 1 or returned[0].shape != numbers.shape[1:] or returned[0].is_complex():
        return None
    exact: np.ndarray[Any, np.dtype[np.float64]] = returned[0].double().numpy()
    return exact


_OF_ZERO = {Zero.UNKNOWN: State.UNKNOWN, Zero.FINITE: State.FINITE, Zero.ZERO: State.ZERO}
_TO_ZERO = {State.UNKNOWN: Zero.UNKNOWN, State.FINITE: Zero.FINITE, State.CONSTANT: Zero.FINITE, State.ZERO: Zero.ZERO}


def _called_on_zeros(rule: Pointwise, call: Call, states: Sequence[State], d: int) -> State:
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
        parts = [known[k] or Slices.all(State.FINITE, [label.shape[k]]) for label, known in given]
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
        old = operands[0][d] or Slices.all(State.FINITE, [size])
        slices = met([old, filled]) if any(other != d for other in widths) else old
        before, after = (filled.expand([width]) for width in widths.get(d, (0, 0)))
        parts = [before, slices, after]
        found.append(Slices(np.concatenate([p.states for p in parts]), np.concatenate([p.values for p in parts])))
    return [tuple(found)]
