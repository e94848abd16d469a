"""Which units can go though no plan masked them. Nothing corrects such a graph, so its results have to stay as they are.

A unit can go if its positions change nothing at every mixing point: either they are zero, or the positions of the other operand
of the product are. Positions that are one number throughout, such as a channel with a masked weight and a bias, give a product
that is a number, and the bias of the next layer can take this number in. Means, softmax and norms divide by how many positions
there are, zeros included, so the units of an axis that they combine stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from fxprune.abstract.propagation import written
from fxprune.algebra.axes import NONE, Axis, Flags
from fxprune.analysis.batch_sizes import shapes_of_batch
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.remaining import Remaining, removed_units
from fxprune.analysis.sources import Tracked
from fxprune.analysis.steps import Step
from fxprune.graph.masks import MASK, all_masked
from fxprune.graph.parts import ByMode
from fxprune.graph.paths import value_at
from fxprune.rules import find_rule
from fxprune.rules.call import Call
from fxprune.rules.labels import Label
from fxprune.rules.notation import Pattern
from fxprune.rules.pointwise import POINTWISE
from fxprune.rules.registry import op_card
from fxprune.torch_internals.operators import is_mutable
from fxprune.torch_internals.tensors import memory_of, pytree
from fxprune.zeros.by_operator import results_of
from fxprune.zeros.by_pattern import Known, nothing_of
from fxprune.zeros.folds import Fold, Folding, tracked_of
from fxprune.zeros.slice_states import Slices, SliceState, finite, met, of_numbers, of_states, or_finite, unless_finite

ZeroSlices = Mapping[tuple[str, int], Flags]
"""For dimensions of parameters, by name and number, which slices are zero throughout."""


def masked_slices(gm: fx.GraphModule) -> dict[tuple[str, int], Flags]:
    """Return which slices of parameters element-wise masks make zero throughout."""
    return _zero_slices((name, m.masks[MASK]) for m in all_masked(gm) if MASK in m.masks for name in m.names)


def zero_slices(gm: fx.GraphModule) -> dict[tuple[str, int], Flags]:
    """Return which slices of parameters are zero throughout."""
    return _zero_slices(gm.named_parameters(remove_duplicate=False))


def _zero_slices(tensors: Iterable[tuple[str, Tensor]]) -> dict[tuple[str, int], Flags]:
    """Return one flag per slice for each dimension along which some slices of a tensor are zero."""
    found: dict[tuple[str, int], Flags] = {}
    for name, tensor in tensors:
        elements = tensor.detach() != 0
        for d in range(tensor.dim() if tensor.numel() and not tensor.is_meta else 0):
            flags = ~elements.movedim(d, 0).reshape(tensor.shape[d], -1).any(1).cpu().numpy()
            if flags.any():
                found[name, d] = flags
    return found


def removable(gm: fx.GraphModule, deps: Dependencies, zeros: ZeroSlices, gone: Flags) -> tuple[Flags, list[Fold]]:
    """Find the units that can go exactly, in train and in eval mode, without any correction.

    Args:
        gm: the graph, without masks; its weights are read.
        deps: its analysis, made in train mode, the only mode in which dropout is seen.
        zeros: which slices of parameters count as zero; a unit goes only if it owns such a slice.
        gone: one flag per unit, whether a plan removes it already.

    Returns:
        One flag per unit, whether it can go in addition, and the numbers that biases take in for these units.
    """
    wanted = removed_units(deps, zeros, on_every_axis=False) & ~gone
    if not wanted.any():
        return wanted, []
    decision = _Decision(gm, deps, zeros, wanted)
    if not decision.follow():
        return np.zeros(deps.units.count, bool), []
    _keep_one_of_each_axis(deps, wanted, gone)
    folds = [folding.fold(known, dim, deps.units, wanted, gone) for folding, known, dim in decision.foldings]
    return wanted, [fold for fold in folds if fold is not None]


def _keep_one_of_each_axis(deps: Dependencies, removed: Flags, gone: Flags) -> None:
    """Take one unit out of ``removed``, in place, wherever all positions of an axis would go."""
    labels = [*(t.label for t in deps.tracked), *(label for step in deps.steps for label in step.results)]
    axes = {deps.units.content(axis): axis for label in labels for axis in label.axes if axis.size and not axis.is_whole}
    kept = Remaining(deps.units, removed | gone)
    for content, axis in axes.items():
        if not kept.size(axis):
            spared = content.rows[Remaining(deps.units, gone)(axis)][:1]
            removed[spared[spared != NONE]] = False
            kept = Remaining(deps.units, removed | gone)


def _at_most_finite(slices: Slices) -> Slices:
    return of_states(np.minimum(slices["state"], SliceState.FINITE))


class _Decision:
    """Goes through the calls in their order and takes the units out of ``wanted`` that have to stay.

    Attributes:
        foldings: the calls whose bias can take in constant positions, with the slices of a dimension of the input.
        known: the known slices of each tensor, by its key.
        written: by memory, the number of the last step that wrote into it.
        twins: by key, the tensors that stand for a tensor in the other mode.
        readers: by producer, how many operands the tensors of a step are.
        at_node: by node, how many steps it makes.
    """

    def __init__(self, gm: fx.GraphModule, deps: Dependencies, zeros: ZeroSlices, wanted: Flags) -> None:
        self.gm, self.deps, self.zeros, self.wanted = gm, deps, zeros, wanted
        self.foldings: list[tuple[Folding, Slices, int]] = []
        self.known: dict[tuple[int, int], Known] = {}
        self.written: dict[int, int] = {}
        self.twins = _twins(gm, deps)
        self.readers = Counter(label.producer for step in deps.steps for label in step.operands)
        self.at_node = Counter(step.node for step in deps.steps)
        self.nodes = {node.name: node for node in gm.graph.nodes}

    def follow(self) -> bool:
        """Follow the states of slices through the graph; return False if the graph writes into a parameter."""
        for number, step in enumerate(self.deps.steps):
            if step.tracked is not None:
                self.known[_key(step.tracked.label)] = self._source(step.tracked)
            if step.call is None:
                continue
            operands = self._operands(step.call)
            self._mixed(step, step.call, operands)
            if is_mutable(step.call.op) and not self._write(step.call, number):
                return False
            for label, known in zip(step.results, results_of(step.call, operands), strict=True):
                key = (number, id(label.axes))
                if find_rule(step.call.op) is POINTWISE and self._varies(step.node):
                    known = tuple([None if slices is None else _at_most_finite(slices) for slices in known])
                self.known[key] = nothing_of(label.shape) if key in self.known else known
        return True

    def _varies(self, name: str) -> bool:
        """Tell whether a node reads a number that depends on the batch size, so that what it makes of constants does."""
        reads = self.nodes[name].all_input_nodes if name in self.nodes else ()
        numbers = {r.name: n for r in reads if type(n := self.deps.values.get(r.name)) in (int, float)}
        return any(self._of_larger_batch.get(read) != number for read, number in numbers.items())

    @cached_property
    def _of_larger_batch(self) -> dict[str, Any]:
        """The values of the nodes for twice the batch; none if the graph does not take it."""
        try:
            return shapes_of_batch(self.gm, 2)
        except Exception:  # the model's own code, on a size that it does not take
            return {}

    def _source(self, tracked: Tracked) -> Known:
        shape = tracked.label.shape
        tensor = value_at(self.gm, tracked.name)
        if not isinstance(tensor, Tensor) or tensor.is_meta or not tensor.is_floating_point():
            return nothing_of(shape)
        return tuple(self._slices(tracked, d, tensor) for d in range(len(shape)))

    def _slices(self, tracked: Tracked, d: int, tensor: Tensor) -> Slices | None:
        size = tensor.shape[d]
        found = finite([size])
        if tensor.numel() == size:
            values = tensor.detach().double().cpu().reshape(-1).numpy()
            if not tracked.is_parameter:
                return of_numbers(values)
            # A weight that training made zero is CONSTANT; only ``zeros`` tells which zeros count as pruned.
            found = of_states(np.where(np.isfinite(values), SliceState.CONSTANT, SliceState.UNKNOWN), values)
        flags = next((self.zeros[n, d] for n in tracked.names if (n, d) in self.zeros), None)
        if tracked.is_parameter and flags is not None:
            found = np.where(flags, of_states(np.full([size], SliceState.ZERO)), found)
        return unless_finite(found)

    def _operands(self, call: Call) -> list[Known]:
        given = iter(call.given())
        return [() if label is None else self._read(call, *next(given)) for label in call.operands]

    def _read(self, call: Call, label: Label, tensor: Tensor) -> Known:
        """Return the known slices of a tensor that a call reads; of a tensor that differs by mode, those of both modes met.

        The graph may write into a buffer, so nothing is known of buffers, except of a running mean that one batch norm reads.
        """
        maker, is_stale = tracked_of(label, self.deps), self.written.get(memory_of(tensor), -1) > label.producer
        is_running_mean = tensor is call.arguments.get("running_mean") and self.readers[label.producer] == 1
        if is_stale or (maker is not None and not maker.is_parameter and not is_running_mean):
            return nothing_of(label.shape)
        twins = [twin for twin in self.twins.get(_key(label), ()) if twin.producer < 0 or _key(twin) in self.known]
        if any(twin.shape != label.shape for twin in twins):
            return nothing_of(label.shape)
        sides = [self.known.get(_key(twin), nothing_of(label.shape)) for twin in (label, *twins)]
        if not twins:
            return sides[0]
        met_along = [met([or_finite(side[d], size) for side in sides]) for d, size in enumerate(label.shape)]
        return tuple(map(unless_finite, met_along))

    def _write(self, call: Call, number: int) -> bool:
        """Note the memory that a call writes into; return False if it is that of a parameter."""
        tensors = written(call.op, (), call.arguments)
        for label, tensor in call.given():
            if any(tensor is t for t in tensors):
                maker = tracked_of(label, self.deps)
                if maker is not None and maker.is_parameter:
                    return False
                self.written[memory_of(tensor)] = number
        return True

    def _mixed(self, step: Step, call: Call, operands: Sequence[Known]) -> None:
        """Take units out of ``wanted`` whose positions change the results of the call's mixing points."""
        if not call.mixings:
            return
        rule = find_rule(call.op)
        if not isinstance(rule, Pattern):
            for mixing in call.mixings:
                self._hold(mixing.axis, np.zeros(mixing.axis.size, bool))
            return
        layout = rule.lay(call)
        for name, places in layout.mixed.items():
            axis = call.axes[name]
            rows = self.deps.units.resolve(axis)
            if not rows.size or not self.wanted[rows[rows != NONE]].any():
                continue
            states = []
            for i, d in places:
                names = layout.operands[i][d][0].names
                slices = or_finite(operands[i][d], call.operand(i).shape[d])
                grid = slices["state"].reshape([layout.sizes[n] for n in names])
                states.append(grid.min(tuple(k for k, n in enumerate(names) if n != name)))
            kind = rule.mixes if isinstance(rule.mixes, str) else rule.mixes[name]
            if op_card(call.op).as_a_whole and 0 in (i for i, _ in places):
                kind = "directions"  # the input of an LSTM meets a weight in each direction
            self._hold(axis, self._changes_nothing(step, kind, np.stack(states), places, operands))

    def _changes_nothing(
        self, step: Step, kind: str, states: NDArray[np.int8], places: Sequence[tuple[int, int]], operands: Sequence[Known]
    ) -> Flags:
        """Return the positions of a mixing point that change nothing if they go; a row of ``states`` for each of ``places``."""
        zero = np.asarray(states == SliceState.ZERO, bool)
        if kind == "directions":
            of_input = np.array([i == 0 for i, _ in places])
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
            self.foldings.append((folding, known, places[side][1]))
            return np.asarray(neutral | constant, bool)
        return neutral

    def _hold(self, axis: Axis, free: Flags) -> None:
        """Take the units out of ``wanted`` that have a position which is not ``free`` to go."""
        held = self.deps.units.resolve(axis)[~free]
        self.wanted[held[held != NONE]] = False


def _key(label: Label) -> tuple[int, int]:
    """Return the key of a tensor: the step that made it, and its axes, which tell the results of a step apart."""
    return label.producer, id(label.axes)


def _twins(gm: fx.GraphModule, deps: Dependencies) -> dict[tuple[int, int], list[Label]]:
    """Return, for each result of a part that differs by mode, the result of the other mode in its place."""
    found: dict[tuple[int, int], list[Label]] = {}
    for node in gm.graph.find_nodes(op="call_module"):
        module = gm.get_submodule(str(node.target))
        if isinstance(module, ByMode):
            ends = [deps.values[start + branch.graph.output_node().name] for start, branch in module.branches(node.name)]
            for one, other in zip(*map(pytree.tree_leaves, ends), strict=True):
                if isinstance(one, Label) and isinstance(other, Label):
                    found.setdefault(_key(one), []).append(other)
                    found.setdefault(_key(other), []).append(one)
    return found
