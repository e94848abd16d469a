"""Which units can go though no plan of ours masked them: nothing corrects the graph, so that it must not notice.

A unit can go if everywhere that its positions are combined with others they change nothing: they are zero, or what they are
multiplied with is. Where they are one number instead, behind a bias, a product with them is a number that a bias can take in.
A mean, a softmax or a norm counts zeros as well, so that what such a thing runs over stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from fxprune.algebra.axes import NONE, Axis, Rows
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.remaining import Flags, Remaining
from fxprune.analysis.sources import Tracked
from fxprune.analysis.steps import Step
from fxprune.graph.masks import MASK, all_masked
from fxprune.graph.parts import ByMode
from fxprune.graph.paths import value_at
from fxprune.rules import POINTWISE, find_rule
from fxprune.rules.labels import Label
from fxprune.rules.notation import Pattern
from fxprune.rules.registry import op_card
from fxprune.torch_internals.operators import arguments_of, is_mutable
from fxprune.torch_internals.tensors import memory_of, pytree
from fxprune.zeros.by_operator import results_of
from fxprune.zeros.by_pattern import Known, Reading, nothing_of
from fxprune.zeros.folds import Fold, Folding
from fxprune.zeros.slice_states import Slices, SliceState, met

ZeroSlices = Mapping[tuple[str, int], Flags]
"""For dimensions of parameters, by name and number, which slices are zero throughout."""


def masked_slices(gm: fx.GraphModule) -> dict[tuple[str, int], Flags]:
    """Return which slices of parameters element-wise masks make zero throughout."""
    found: dict[tuple[str, int], Flags] = {}
    for masked in all_masked(gm):
        mask = masked.masks.get(MASK)
        if mask is not None and not mask.is_meta:
            found |= {(name, d): flags for name in masked.names for d, flags in _zero_slices(mask)}
    return found


def zero_slices(gm: fx.GraphModule) -> dict[tuple[str, int], Flags]:
    """Return which slices of parameters are zero throughout."""
    parameters = [(n, p) for n, p in gm.named_parameters(remove_duplicate=False) if not p.is_meta]
    return {(name, d): flags for name, parameter in parameters for d, flags in _zero_slices(parameter.detach())}


def _zero_slices(tensor: Tensor) -> Iterator[tuple[int, Flags]]:
    """Yield each dimension along which some slices are zero, and which."""
    elements = tensor != 0
    for d in range(tensor.dim() if tensor.numel() else 0):
        flags = ~elements.movedim(d, 0).reshape(tensor.shape[d], -1).any(1).cpu().numpy()
        if flags.any():
            yield d, flags


def removable(gm: fx.GraphModule, deps: Dependencies, zeros: ZeroSlices, gone: Flags | None = None) -> tuple[Flags, list[Fold]]:
    """Find the units that can go exactly, in train and in eval mode, without any correction.

    Args:
        gm: the graph, without masks; its weights are read.
        deps: its analysis, made in train mode: dropout shows in no other.
        zeros: which slices of parameters count as zero; a unit goes only if it owns some.
        gone: for every unit whether it goes anyhow.

    Returns:
        For every unit whether it can go besides, and what biases have to take in for it.
    """
    gone = np.zeros(deps.units.count, bool) if gone is None else gone
    wanted = _owning_zeros(deps, zeros) & ~gone
    if not wanted.any():
        return wanted, []
    decision = _Decision(gm, deps, wanted)
    if not decision.follow(_Sources(gm, deps, zeros)):
        return np.zeros(deps.units.count, bool), []
    _keep_one_of_each_axis(deps, wanted, gone)
    folds = [fold for folding in decision.foldings if (fold := folding.fold(deps.units, wanted, gone)) is not None]
    return wanted, folds


def _owning_zeros(deps: Dependencies, zeros: ZeroSlices) -> Flags:
    """Return which units own some axis of a parameter at nothing but zero slices."""
    found = np.zeros(deps.units.count, bool)
    for group in deps.groups:
        for member in group.members:
            flags = zeros.get((member.parameter, member.dim))
            if flags is not None and not member.is_buffer:
                found[group.units] |= flags[member.positions].all(1)
    return found


def _keep_one_of_each_axis(deps: Dependencies, removed: Flags, gone: Flags) -> None:
    """Let units stay, in place, where all of an axis would go."""
    labels = [*(t.label for t in deps.tracked), *(label for step in deps.steps for label in step.results)]
    axes = {deps.units.content(axis): axis for label in labels for axis in label.axes if axis.size and not axis.is_whole}
    emptied = True
    while emptied:
        emptied = False
        kept = Remaining(deps.units, removed | gone)
        for content, axis in axes.items():
            if not kept.size(axis):
                spared = content.rows[~_has(content.rows, gone)][:1]
                removed[spared[spared != NONE]] = False
                kept, emptied = Remaining(deps.units, removed | gone), True


def _has(rows: Rows, units: Flags) -> Flags:
    """Return which positions have any of some units."""
    return np.asarray(np.append(units, False)[rows].any(1), bool)


@dataclass(frozen=True, eq=False)
class _Sources:
    """What is known of parameters and buffers from their values."""

    gm: fx.GraphModule
    deps: Dependencies
    zeros: ZeroSlices

    def of(self, tracked: Tracked) -> Known:
        """Return what is known of one."""
        shape = tracked.label.shape
        tensor = value_at(self.gm, tracked.name)
        if not isinstance(tensor, Tensor) or tensor.is_meta or not tensor.is_floating_point():
            return nothing_of(shape)
        return tuple(self._slices(tracked, d, tensor) for d in range(len(shape)))

    def _slices(self, tracked: Tracked, d: int, tensor: Tensor) -> Slices | None:
        size = tensor.shape[d]
        found = Slices.all(SliceState.FINITE, [size])
        if tensor.numel() == size:
            values = tensor.detach().double().cpu().reshape(-1).numpy().copy()
            if not tracked.is_parameter:
                return Slices.of_numbers(values, np.ones(size, bool))
            # A weight that was trained to be zero is a number like others, unless zeros count as well.
            states = np.where(np.isfinite(values), SliceState.CONSTANT, SliceState.UNKNOWN).astype(np.int8)
            found = Slices(states, np.where(np.isfinite(values), values, 0.0))
        flags = next((self.zeros[n, d] for n in tracked.names if (n, d) in self.zeros), None)
        if tracked.is_parameter and flags is not None:
            found = Slices(np.where(flags, SliceState.ZERO, found.states).astype(np.int8), np.where(flags, 0.0, found.values))
        return found if found.tells else None


class _Decision:
    """Goes through the calls in their order and takes out of ``wanted`` what has to stay."""

    def __init__(self, gm: fx.GraphModule, deps: Dependencies, wanted: Flags) -> None:
        self.gm, self.deps, self.wanted = gm, deps, wanted
        self.foldings: list[Folding] = []
        self.known: dict[tuple[int, int], Known] = {}
        self.written: dict[int, int] = {}
        self.twins = _twins(gm, deps)
        self.readers: dict[int, int] = {}
        for label in (label for step in deps.steps for label in step.operands):
            self.readers[label.producer] = self.readers.get(label.producer, 0) + 1
        self.at_node: dict[str, int] = {}
        for step in deps.steps:
            self.at_node[step.node] = self.at_node.get(step.node, 0) + 1

    def follow(self, sources: _Sources) -> bool:
        """Follow what is known through the graph; tell whether it could be followed."""
        for number, step in enumerate(self.deps.steps):
            if step.tracked is not None:
                self.known[_key(step.tracked.label)] = sources.of(step.tracked)
            if step.call is None:
                continue
            operands = self._operands(step)
            self._mixed(step, operands)
            if is_mutable(step.call.op) and not self._write(step, number):
                return False
            for label, known in zip(step.results, results_of(step.call, operands), strict=True):
                key = (number, id(label.axes))
                self.known[key] = nothing_of(label.shape) if key in self.known else known
        return True

    def _operands(self, step: Step) -> list[Known]:
        call = step.call
        assert call is not None
        given = iter(call.given())
        found: list[Known] = []
        for label in call.operands:
            if label is None:
                found.append(())
                continue
            _, tensor = next(given)
            stale = self.written.get(memory_of(tensor), -1) > label.producer
            found.append(nothing_of(label.shape) if stale else self._read(label, tensor is call.arguments.get("running_mean")))
        return found

    def _read(self, label: Label, is_running_mean: bool) -> Known:
        """Return what is known of a tensor that a call reads; of results that differ by mode, what holds in both."""
        maker = self.deps.steps[label.producer].tracked if label.producer >= 0 else None
        if maker is not None and not maker.is_parameter and not (is_running_mean and self.readers[label.producer] == 1):
            return nothing_of(label.shape)
        known = self.known.get(_key(label), nothing_of(label.shape))
        others = [twin for twin in self.twins.get(_key(label), ()) if twin.producer < 0 or _key(twin) in self.known]
        if any(twin.shape != label.shape for twin in others):
            return nothing_of(label.shape)
        sides = [known, *(self.known.get(_key(twin), nothing_of(label.shape)) for twin in others)]
        return tuple(_met([side[d] for side in sides]) for d in range(len(label)))

    def _write(self, step: Step, number: int) -> bool:
        """Take note of the memory that a call writes into; tell whether that is not a parameter's."""
        call = step.call
        assert call is not None
        written = {a.name for a in arguments_of(call.op) if a.alias_info is not None and a.alias_info.is_write}
        tensors = [t for name in written for t in pytree.tree_leaves(call.arguments[name]) if isinstance(t, Tensor)]
        for label, tensor in call.given():
            if any(tensor is t for t in tensors):
                maker = self.deps.steps[label.producer].tracked if label.producer >= 0 else None
                if maker is not None and maker.is_parameter:
                    return False
                self.written[memory_of(tensor)] = number
        return True

    def _mixed(self, step: Step, operands: Sequence[Known]) -> None:
        """Let stay what the call combines to some effect."""
        call = step.call
        assert call is not None
        if not call.mixings:
            return
        rule = find_rule(call.op, lambda: POINTWISE)
        if not isinstance(rule, Pattern):
            for mixing in call.mixings:
                self._hold(mixing.axis, np.zeros(mixing.axis.size, bool))
            return
        layout = Reading(rule, call, operands).layout
        for name in {name for dims in layout.operands.values() for dim in dims for name in dim.mixed}:
            axis = call.axes[name]
            rows = self.deps.units.resolve(axis)
            if not rows.size or not _has(rows, self.wanted).any():
                continue
            places = [(i, d) for i, dims in layout.operands.items() for d, dim in enumerate(dims) if name in dim.mixed]
            states = []
            for i, d in places:
                names = layout.operands[i][d].names
                slices = operands[i][d] or Slices.all(SliceState.FINITE, [call.operand(i).shape[d]])
                grid = slices.states.reshape([layout.sizes[n] for n in names])
                states.append(grid.min(tuple(k for k, n in enumerate(names) if n != name)))
            kind = rule.mixes if isinstance(rule.mixes, str) else rule.mixes[name]
            self._hold(axis, self._changes_nothing(step, kind, np.stack(states), places, operands))

    def _changes_nothing(
        self, step: Step, kind: str, states: NDArray[np.int8], places: Sequence[tuple[int, int]], operands: Sequence[Known]
    ) -> Flags:
        zero = np.asarray(states == SliceState.ZERO, bool)
        if step.call is not None and op_card(step.call.op).as_a_whole and 0 in (i for i, _ in places):
            of_input = np.array([i == 0 for i, _ in places])  # against weights of several directions
            through = zero[of_input].all(0) | zero[~of_input].all(0)
            return np.asarray(through & (states != SliceState.UNKNOWN).all(0), bool)
        if kind in ("sum", "norm"):
            return np.asarray(zero.all(0), bool)
        if kind != "contract":
            return np.zeros(states.shape[1], bool)
        numbers = ~(states == SliceState.UNKNOWN).any(0)
        neutral = np.asarray(zero.any(0) & numbers, bool)
        if neutral.all():
            return neutral
        folding = Folding.at(self.gm, step, self.at_node[step.node], self.readers, self.deps)
        if folding is None or [place[0] for place in places] != sorted([folding.places.input, folding.places.weight]):
            return neutral
        side = next(k for k, place in enumerate(places) if place[0] == folding.places.input)
        constant = (states[side] >= SliceState.CONSTANT) & numbers
        known = operands[folding.places.input][places[side][1]]
        if constant.any() and known is not None:
            self.foldings.append(folding.of(known, places[side][1]))
            return np.asarray(neutral | constant, bool)
        return neutral

    def _hold(self, axis: Axis, free: Flags) -> None:
        """Let units stay that have positions which are not free to go."""
        held = self.deps.units.resolve(axis)[~free]
        self.wanted[held[held != NONE]] = False


def _key(label: Label) -> tuple[int, int]:
    """Return what tells a tensor: where it was made, and which of the results there it is."""
    return label.producer, id(label.axes)


def _met(sides: Sequence[Slices | None]) -> Slices | None:
    present = [side for side in sides if side is not None]
    if not present or (len(present) < len(sides) and not any((s.states == SliceState.UNKNOWN).any() for s in present)):
        return None
    if len(present) < len(sides):
        present.append(Slices.all(SliceState.FINITE, present[0].states.shape))
    return present[0] if len(present) == 1 else met(present)


def _twins(gm: fx.GraphModule, deps: Dependencies) -> dict[tuple[int, int], list[Label]]:
    """Return, for each result of a part that differs by mode, what the other mode has in its place."""
    found: dict[tuple[int, int], list[Label]] = {}

    def look(graph: fx.GraphModule, inside: str) -> None:
        for node in graph.graph.find_nodes(op="call_module"):
            module = graph.get_submodule(str(node.target))
            if isinstance(module, ByMode):
                branches = module.branches(inside + node.name)
                results = [pytree.tree_leaves(deps.values[start + _output(branch)]) for start, branch in branches]
                for one, other in zip(*results, strict=True):
                    if isinstance(one, Label) and isinstance(other, Label):
                        found.setdefault(_key(one), []).append(other)
                        found.setdefault(_key(other), []).append(one)
                for start, branch in branches:
                    look(branch, start)

    look(gm, "")
    return found


def _output(graph: fx.GraphModule) -> str:
    return str(next(iter(graph.graph.find_nodes(op="output"))).name)
