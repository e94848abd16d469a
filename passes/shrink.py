"""Shrink: take out of a graph what its masks remove; the network gets smaller and computes what it did."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassResult

from fxprune.analysis.analyze import find_dependencies
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.fingerprint import recall
from fxprune.analysis.remaining import Flags, Places, Remaining
from fxprune.analysis.steps import Step
from fxprune.errors import AnalysisError, ShrinkError
from fxprune.frontends.modes.reads import in_mode
from fxprune.functional.leaf_cards import card_of, update_sizes
from fxprune.graph.buffers import buffers_of, own_buffers
from fxprune.graph.captured import as_graph_module, compile_all, compiled_later
from fxprune.graph.masks import all_masked
from fxprune.graph.metadata import BAKED, KEPT, KEPT_OF_VALUE, METHODS
from fxprune.graph.paths import all_modules, holders, join, modules_by_path, value_at
from fxprune.graph.side_effects import may_write
from fxprune.passes.compensate import erase_corrections
from fxprune.passes.fold_constants import amounts_of, fold_into_biases
from fxprune.passes.in_place import write_in_place
from fxprune.passes.inline import inline_all
from fxprune.passes.lower import lower
from fxprune.passes.mask_parameters import remove_masks
from fxprune.passes.mask_units import dead_axes, removed_units, shared_copy
from fxprune.passes.repair.repair import may_be_stuck, repair, shrinking_steps
from fxprune.rules.labels import Label
from fxprune.torch_internals.graphs import free_names
from fxprune.torch_internals.switches import alone, uncollected
from fxprune.torch_internals.tensors import pytree
from fxprune.zeros.folds import Fold
from fxprune.zeros.removable import ZeroSlices, masked_slices, removable, zero_slices

_Graph = TypeVar("_Graph", bound=fx.GraphModule)


@alone()
@uncollected()
def shrink_units(gm: _Graph, deps: Dependencies, removed: Flags) -> None:
    """Take units out of a graph, in place: slice what they own, repair the nodes.

    Args:
        gm: the graph, without structured masks, whose modules are its own.
        deps: its analysis.
        removed: for every unit whether it goes.

    Raises:
        ShrinkError: a node cannot be rewritten; the graph must not be used any more.
    """
    stuck: tuple[str, ...] = ()
    while True:
        kept = Remaining(deps.units, removed)
        steps = shrinking_steps(gm, deps, kept)
        spare = shared_copy(gm) if may_be_stuck(gm, steps) else None
        try:
            _shrink_once(gm, deps, kept, steps)
            break
        except ShrinkError as error:
            if spare is None:
                raise
            # A function that hides sizes from its arguments: what it calls can be rewritten one by one.
            adopt(gm, spare)
            written_out = tuple(f"{node.name} {node.target}" for node in gm.graph.nodes if node.name in error.nodes)
            if written_out == stuck or not inline_all(gm, deps, error.nodes):
                raise
            stuck = written_out
            dead = _dead_axes(deps, kept)
            deps = find_dependencies(gm)
            removed = removed_units(deps, dead)
    write_in_place(gm)
    gm.recompile()


def _dead_axes(deps: Dependencies, kept: Remaining) -> dict[tuple[str, int], Flags]:
    return {
        (t.name, dim): ~kept(axis)
        for t in deps.tracked
        for dim, axis in enumerate(t.label.axes)
        if kept.size(axis) != axis.size
    }


def _shrink_once(gm: fx.GraphModule, deps: Dependencies, kept: Remaining, steps: dict[str, list[Step]]) -> None:
    _lower_what_cannot_shrink(gm, deps, kept)
    indices = _slice_tensors(gm, deps, kept)
    read = _read(gm)
    repair(gm, deps, kept, steps)
    _note_what_is_left(gm, deps, kept, indices)
    _erase_unused(gm)
    for name in read - _read(gm):
        owner, _, last = name.rpartition(".")
        module = gm.get_submodule(owner)
        if last in module._buffers:  # an index table that another one replaced
            delattr(module, last)


def _read(gm: fx.GraphModule) -> set[str]:
    return {str(node.target) for node in gm.graph.find_nodes(op="get_attr", sort=False)}


def _erase_unused(gm: fx.GraphModule) -> None:
    for node in reversed(gm.graph.nodes):
        if not node.users and not _is_kept(gm, node):
            gm.graph.erase_node(node)
    bodies = [body for name in _read(gm) if isinstance(body := gm._modules.get(name), fx.GraphModule)]
    for body in bodies:  # of regions, such as one without gradients
        body.graph.eliminate_dead_code()
        body.recompile()


def _is_kept(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node has an effect though nothing uses its value, as ``x.relu_()`` on a line of its own."""
    return node.is_impure() or node.op in ("placeholder", "output") or may_write(node, gm)


def _lower_what_cannot_shrink(gm: fx.GraphModule, deps: Dependencies, kept: Remaining) -> None:
    """Write out the modules that lose something and cannot say what is left, such as multi-head attention."""
    modules = modules_by_path(gm)
    called = [(node, modules[str(node.target)]) for node in gm.graph.find_nodes(op="call_module")]
    stiff = [(node, module) for node, module in called if card_of(type(module)).shrinks_written_out]
    smaller = {name for t in deps.tracked if kept.shrinks(t.label) for name in t.names} if stiff else set()
    names = {
        node.name
        for node, module in stiff
        if any(join(str(node.target), name) in smaller for name, _ in module.named_parameters())
    }
    if names:
        lower(gm, (), names)


def _slice_tensors(gm: fx.GraphModule, deps: Dependencies, kept: Remaining) -> dict[str, Places]:
    """Put what is left of parameters and buffers in their place; return the positions left by name."""
    indices: dict[str, Places] = {}
    held = holders(gm)
    sliced: dict[nn.Module, None] = {}
    with torch.inference_mode(False), torch.no_grad():
        for tracked in deps.tracked:
            if not kept.shrinks(tracked.label):
                continue
            index = kept.places_of(tracked.label)
            indices |= dict.fromkeys(tracked.names, index)
            tensors = {id(old): old for old in map(partial(value_at, gm), tracked.names)}
            left = _slice(tensors[next(iter(tensors))].detach(), index)
            for old in tensors.values():  # which share their memory
                new = nn.Parameter(left, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else left.detach()
                for module, attribute in held[id(old)]:
                    setattr(module, attribute, new)
                    sliced[module] = None
    for module in sliced:
        update_sizes(module)
    return indices


def _slice(tensor: Tensor, kept: Sequence[Tensor | None]) -> Tensor:
    """Return what is left of a tensor, given for each dimension the positions left, or None for all."""
    shares = [(round(4 * len(index) / tensor.shape[dim]), dim) for dim, index in enumerate(kept) if index is not None]
    # What removes most comes first; of two that remove about the same the outer one, whose rows are copied as they lie.
    for _, dim in sorted(shares):
        index = kept[dim]
        assert index is not None
        tensor = tensor.index_select(dim, index if tensor.device.type == "cpu" else index.to(tensor.device))
    return tensor


def _of_those(before: Places, index: Places) -> Places:
    """Return which positions of the first graph are left when of those that were left before some are left."""
    pairs = zip(before, index, strict=True)
    return tuple(old if new is None else new if old is None else old[new] for old, new in pairs)


def _note_what_is_left(gm: fx.GraphModule, deps: Dependencies, kept: Remaining, indices: dict[str, Places]) -> None:
    """Note which positions are left: of tensors since the first shrink, of values of nodes since this one."""
    before = dict(KEPT.get(gm) or {})
    now = {name: _of_those(before[name], index) if name in before else index for name, index in indices.items()}
    KEPT.set(gm, before | now)
    for node in gm.graph.nodes:
        KEPT_OF_VALUE.pop(node)  # of a round before
        value = deps.values.get(node.name)
        if node.op in ("placeholder", "output") or not kept.shrinks_any(value):
            continue
        node.meta.pop("val", None)
        left = pytree.tree_map(lambda leaf: kept.places_of(leaf) if isinstance(leaf, Label) else None, value)
        KEPT_OF_VALUE.set(node, left)


@dataclasses.dataclass(frozen=True)
class Shrink:
    """Pass: take out of the graph what its masks remove.

    Ensures: no parameter is masked, no correction is left, and no removed position is held anywhere.
    """

    def __call__(self, graph_module: fx.GraphModule) -> PassResult:
        """Run the pass in place; nothing is verified."""
        with compiled_later():
            smaller, removed = shrunk_copy(as_graph_module(graph_module))
        modified = removed or bool(all_masked(graph_module))
        if modified:
            adopt(graph_module, smaller)
        return PassResult(graph_module, modified)


def baked_copy(gm: _Graph) -> _Graph:
    """Return a copy with all masks baked into parameters of its own; what is not masked is shared."""
    copy = shared_copy(gm)
    held = holders(copy)
    for masked in all_masked(copy):  # baking gives the parameter new values, which the other graph has, too
        with torch.inference_mode(False):
            old = masked.orig.detach()
            fresh = nn.Parameter(old.clone() if old.is_inference() else old, requires_grad=masked.orig.requires_grad)
        for owner, attribute in held[id(masked.orig)]:
            owner._parameters[attribute] = fresh
    erase_corrections(copy)
    remove_masks(copy, all_masked(copy))
    METHODS.pop(copy)
    free_names(copy.graph)
    copy.recompile()
    return copy


@alone()
@uncollected()
def shrunk_copy(gm: _Graph, *, from_zeros: bool = False) -> tuple[_Graph, bool]:
    """Return a smaller graph that computes what a masked one does, and whether any unit went; see :func:`fxprune.shrink`."""
    copy, dead = baked_copy(gm), dead_axes(gm)
    deps = recall(gm, copy) or find_dependencies(copy)
    removed = removed_units(deps, dead)
    BAKED.pop(copy)
    folds, amounts = list[Fold](), list[Tensor]()
    if zeros := zero_slices(copy) if from_zeros else masked_slices(gm):
        removed, folds, amounts = _with_others(copy, deps, removed, zeros)
    if removed.any():
        shrink_units(copy, deps, removed)
        fold_into_biases(copy, folds, amounts)
    own_buffers(copy, buffers_of(gm))
    return copy, bool(removed.any())


def _with_others(
    gm: fx.GraphModule, deps: Dependencies, removed: Flags, zeros: ZeroSlices
) -> tuple[Flags, list[Fold], list[Tensor]]:
    """Return which units go when those that nothing has to be corrected for go, too, and what biases take in for them."""
    training = _analyze_in_train_mode(gm)
    if training is None:
        return removed, [], []
    gone = removed_units(training, _dead_axes(deps, Remaining(deps.units, removed)))
    more, folds = removable(gm, training, zeros, gone)
    kept = Remaining(training.units, gone | more)
    dead = _dead_axes(training, kept)
    both = removed_units(deps, dead)
    # The two analyses number their units apart; what goes is the same on all parameters, or else nothing more goes.
    same = _dead_axes(deps, Remaining(deps.units, both))
    if dead.keys() != same.keys() or not all(np.array_equal(flags, same[at]) for at, flags in dead.items()):
        return removed, [], []
    return both, folds, amounts_of(gm, kept, folds)


def _analyze_in_train_mode(gm: fx.GraphModule) -> Dependencies | None:
    """Analyze a graph as it trains, where dropout shows; None where it cannot train on its example inputs.

    A batch norm refuses a single number for each channel.
    """
    try:
        with in_mode(all_modules(gm), training=True):
            return find_dependencies(gm)
    except AnalysisError:
        return None


def adopt(gm: fx.GraphModule, other: fx.GraphModule) -> None:
    """Let a graph be another one, in place and compiled anew; the other must not be used any more."""
    graph = other.graph
    gm.__dict__.clear()
    gm.__dict__.update(other.__dict__)
    gm.graph = graph
    compile_all(gm)
