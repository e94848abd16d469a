"""Corrections: what a masked graph has to do at a mixing point so that it computes what the smaller graph will.

A mask makes removed positions of a parameter zero. Behind the parameter they may have other values, and a mean counts zeros
too. This file decides on the correction of each call; :mod:`fxprune.passes.compensate` writes it into the graph. The analysis
keeps an axis whole for which there is no correction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fxprune.algebra.axes import Axis, Rows
from fxprune.algebra.units import Units
from fxprune.analysis.batch_sizes import Batches
from fxprune.analysis.operators import runs_own_code
from fxprune.analysis.steps import MixingPoint, Step
from fxprune.rules.call import Call
from fxprune.rules.card import OpCard, OverKept
from fxprune.rules.labels import Label, Zero
from fxprune.rules.registry import op_card
from fxprune.torch_internals.operators import is_mutable
from fxprune.torch_internals.tensors import pytree

# The value whose positions change nothing, by the kind of the mixing point.
_NEUTRAL = {
    "contract": 0.0,
    "sum": 0.0,
    "norm": 0.0,
    "mean": 0.0,
    "prod": 1.0,
    "max": -math.inf,
    "min": math.inf,
    "softmax": -math.inf,
    "logsumexp": -math.inf,
}


@dataclass(frozen=True, eq=False)
class Place:
    """A dimension of a tensor that a node reads; ``input`` is the node that returns the tensor."""

    node: str
    input: str
    dim: int
    axis: Axis


@dataclass(frozen=True, eq=False)
class Fill:
    """Set the removed positions of an operand to ``value``: to -inf in front of a softmax."""

    place: Place
    value: float


@dataclass(frozen=True, eq=False)
class Clear:
    """Set the removed positions of the node's result to zero, as those of a log_softmax, which are -inf."""

    place: Place


@dataclass(frozen=True, eq=False)
class Rescale:
    """Multiply a mean over 8 positions, 2 of them removed and zero, by 8 / 6: it becomes the mean over the 6 kept ones."""

    place: Place


@dataclass(frozen=True, eq=False)
class Restrict:
    """Call the function of ``fxprune.functional`` that takes the statistics over kept positions alone.

    ``reads`` has the node that returns each tensor that the function is given, by the operator's name of the argument.
    """

    places: tuple[Place, ...]
    form: OverKept
    call: Call
    reads: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Impossible:
    """No correction exists for an axis at a call."""

    axis: Axis
    step: Step
    text: str


Correction = Fill | Clear | Rescale | Restrict | Impossible


def corrections(
    gm: fx.GraphModule,
    values: dict[str, Any],
    steps: Sequence[Step],
    points: Iterable[MixingPoint],
    units: Units,
    is_live: Callable[[Axis], bool],
) -> Iterator[Correction]:
    """Yield the corrections of an analysed graph, call by call.

    Args:
        gm: the graph, with example values on its inputs.
        values: the value of every node, a label in place of each tensor.
        is_live: tells whether an axis loses positions.
    """
    by_step: dict[int, list[MixingPoint]] = {}
    for point in points:
        if not point.neutral:
            by_step.setdefault(point.step, []).append(point)
    nodes = {node.name: node for node in gm.graph.nodes}
    together: dict[str, list[Step]] = {}
    for step in steps:
        together.setdefault(step.node, []).append(step)
    used, batches = _used_steps(values, steps), Batches(gm)
    for number, step in enumerate(steps):
        found = [p for p in by_step.get(number, ()) if is_live(p.axis)]
        unknown = any(zero is Zero.UNKNOWN for label in step.results for zero in label.zeros)
        if step.call is not None and number in used and (found or unknown):
            node, beside = nodes.get(step.node), together[step.node]
            yield from _Corrected(step, step.call, node, values, beside, units, is_live, batches).all(found)


def _used_steps(values: dict[str, Any], steps: Sequence[Step]) -> set[int]:
    """Return the numbers of the calls that an output of the graph depends on, or that write to an operand."""
    waiting = [leaf.producer for leaf in pytree.tree_leaves(values.get("output")) if isinstance(leaf, Label)]
    waiting += [n for n, step in enumerate(steps) if step.call is not None and is_mutable(step.call.op)]
    found: set[int] = set()
    while waiting:
        number = waiting.pop()
        if number not in found and number >= 0:
            found.add(number)
            waiting += [label.producer for label in steps[number].operands]
    return found


@dataclass
class _Corrected:
    """A call that needs corrections; ``beside`` are all calls of its node."""

    step: Step
    call: Call
    node: fx.Node | None  # None inside a part that differs by mode
    values: dict[str, Any]
    beside: list[Step]
    units: Units
    is_live: Callable[[Axis], bool]
    batches: Batches

    @property
    def card(self) -> OpCard:
        return op_card(self.call.op)

    def all(self, points: list[MixingPoint]) -> Iterator[Correction]:
        contracted: dict[str, list[MixingPoint]] = {}
        counted: list[MixingPoint] = []
        for point in points:
            if point.kind == "contract":
                contracted.setdefault(point.name, []).append(point)
            elif point.kind in ("var", "normalize") or self.card.over_kept is not None:
                counted.append(point)
            else:
                yield from self._filled(point, point.zero is Zero.ZERO and _NEUTRAL[point.kind] == 0.0)
        for sides in contracted.values():
            yield from self._contracted(sides)
        if counted:
            yield self._restricted(counted)
        yield from self._kept_finite([point.axis.rows for point in points])

    def _place(self, operand: int, dim: int) -> Place | None:
        """Return the place of an operand of the call, if the operand is also one of the node."""
        label = self.call.operands[operand]
        read = self._read(label) if label is not None else None
        return None if read is None or label is None else self._place_of(read.name, dim, label.axes[dim])

    def _place_of(self, value: str, dim: int, axis: Axis) -> Place | None:
        """Return the place of a dimension, unless its size grows with the batch: a keep vector has a fixed size."""
        # Only an axis with a reason can have a part of an input's axis.
        if axis.why is not None and self.batches.grows(value, dim):
            return None
        return Place(self.step.node, value, dim, axis)

    def _fill(self, operand: int, dim: int, value: float) -> Fill | None:
        place, label = self._place(operand, dim), self.call.operands[operand]
        tensor = next((t for other, t in self.call.given() if other is label), None)
        # Where several calls of the node read the operand, the value has to suit all of them.
        readers = [step for step in self.beside if any(label is other for other in step.operands)]
        suits = len(readers) == 1 or value == 0.0
        if place is None or tensor is None or not suits or is_mutable(self.call.op):  # which would write into the filled copy
            return None
        return None if math.isinf(value) and not tensor.is_floating_point() else Fill(place, value)

    def _filled(self, point: MixingPoint, is_filled: bool) -> Iterator[Correction]:
        if not is_filled:
            fill = self._fill(point.operand, point.dim, _NEUTRAL[point.kind])
            yield fill or self._impossible(point.axis, point.kind)
            if fill is None:
                return
        if point.kind == "mean":
            place = self._place(point.operand, point.dim)
            # A mean inside of a function is out of reach: only the node's own result can be rescaled.
            ends = self._is_result(self.step.results[0])
            yield Rescale(place) if place is not None and ends else self._impossible(point.axis, point.kind)

    def _contracted(self, sides: list[MixingPoint]) -> Iterator[Correction]:
        """Fill every operand of a contraction that may be infinite there (0 * inf is NaN); else the smallest operand alone."""
        unknown = [point for point in sides if point.zero is Zero.UNKNOWN]
        fills = [(self._fill(p.operand, p.dim, 0.0), p) for p in unknown or sides]
        if unknown:
            yield from (fill or self._impossible(p.axis, p.kind) for fill, p in fills)
            return
        possible = [(math.prod(self.call.operand(p.operand).shape), fill) for fill, p in fills if fill is not None]
        _, smallest = min(possible, key=lambda pair: pair[0], default=(0, None))
        yield smallest or self._impossible(sides[0].axis, "contract")

    def _restricted(self, points: list[MixingPoint]) -> Correction:
        form = self.card.over_kept
        first = min(p.operand for p in points)  # later operands, such as weights, have the same positions
        places = [self._place(first, dim) for dim in dict.fromkeys(p.dim for p in points if p.operand == first)]
        reads = self._reads(form.given) if form is not None else None
        if form is None or reads is None or len(self.beside) > 1 or None in places or self._hides_operands():
            return self._impossible(points[0].axis, points[0].kind)
        return Restrict(tuple(place for place in places if place is not None), form, self.call, reads)

    def _reads(self, names: Iterable[str]) -> dict[str, str] | None:
        """Return the node that returns each tensor argument; None if one is made inside of the node.

        Parameters of a module have no node yet: the module is written out as a function with the operator's names. Any other
        function may name and order its arguments otherwise than the operator: the weight is the fourth of ``F.batch_norm``.
        """
        labels = {id(tensor): label for label, tensor in self.call.given()}
        found: dict[str, str] = {}
        for name in names:
            if isinstance(tensor := self.call[name], Tensor):
                read = self._read(labels[id(tensor)])
                if read is not None:
                    found[name] = read.name
                elif self.node is None or self.node.op != "call_module":
                    return None
        return found

    def _read(self, label: Label) -> fx.Node | None:
        """Return the operand of the node with a label."""
        reads = self.node.all_input_nodes if self.node is not None else ()
        return next((read for read in reads if self.values.get(read.name) is label), None)

    def _hides_operands(self) -> bool:
        """Tell whether the node calls the user's own function, so that the operator's arguments need not be the node's."""
        if self.node is None or not runs_own_code(self.node):
            return False
        is_single = self.node.args == (*self.node.all_input_nodes,) and len(self.node.args) == 1 and not self.node.kwargs
        return not is_single or len(list(self.call.given())) > 1

    def _kept_finite(self, mixed: list[Rows]) -> Iterator[Correction]:
        """Correct a call that returns inf or NaN at removed positions, which would make gradients NaN.

        Example: ``1 / x`` at a removed position, where x is 0. A fill of x with 1 keeps the result finite.

        Args:
            mixed: the rows of the axes that the call combines.
        """
        if self.card.is_uninitialised:  # it reads no values
            return
        combined = {(mixing.operand, mixing.dim) for mixing in self.call.mixings}
        for label in self.step.results:
            for d, (axis, zero) in enumerate(zip(label.axes, label.zeros, strict=True), -len(label)):
                if zero is not Zero.UNKNOWN or not self.is_live(axis):
                    continue
                if any(axis.rows is rows for rows in mixed):  # a log_softmax, which is filled with -inf: no fill is finite
                    result = self._place_of(self.step.node, len(label) + d, axis) if self._is_result(label) else None
                    if result is not None and not is_mutable(self.call.op):
                        yield Clear(result)
                    continue
                before = [pair for o in self.step.operands for pair in zip(o.axes, o.zeros, strict=True)]
                if any(state is Zero.UNKNOWN and self._is_same(of_operand, axis) for of_operand, state in before):
                    continue  # the operand is not finite already
                # A dimension with the same units that the call combines is another one.
                sides = [
                    (i, len(operand) + d)
                    for i, operand in enumerate(self.call.operands)
                    if operand is not None and len(operand) >= -d and (i, len(operand) + d) not in combined
                    if operand.zeros[d] is Zero.ZERO and self._is_same(operand.axes[d], axis)
                ]
                for i, dim in sides:
                    yield self._fill(i, dim, 1.0) or self._impossible(axis, "of zeros that are not numbers")

    def _is_result(self, label: Label) -> bool:
        """Tell whether a result of the call is the node's result."""
        result = self.values.get(self.step.node)
        return isinstance(result, Label) and result.axes == label.axes

    def _is_same(self, one: Axis, other: Axis) -> bool:
        return one is other or self.units.content(one) is self.units.content(other)

    def _impossible(self, axis: Axis, kind: str) -> Impossible:
        return Impossible(axis, self.step, f"a mask could not correct what is combined here ({kind})")
