"""Compensate: at mixing points let a masked graph compute over what the masks keep, as the smaller network will."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.algebra.contents import Content
from fxprune.analysis.corrections import Clear, Correction, Fill, Impossible, Place, Rescale, Restrict
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.remaining import Remaining
from fxprune.functional import over_kept
from fxprune.graph.masks import FLAG
from fxprune.graph.metadata import KEEPS, ORIGINAL
from fxprune.graph.parts import Slot, fill
from fxprune.graph.pickling import found, picklable
from fxprune.passes.lower import take_over
from fxprune.rules.call import bound_arguments
from fxprune.rules.labels import Label
from fxprune.torch_internals.tensors import overwrite

Possible = Clear | Fill | Rescale | Restrict


class Compensation:
    """Writes corrections into a masked graph, which computes then what the smaller network will.

    The modules whose calls are restricted are written out already. The graph is not recompiled.

    Args:
        gm: the graph.
        deps: its analysis, from before it was masked.
        kept: the positions that the masks leave.
    """

    def __init__(self, gm: fx.GraphModule, deps: Dependencies, kept: Remaining) -> None:
        self.gm, self.deps, self.kept = gm, deps, kept
        self.nodes = {node.name: node for node in gm.graph.nodes}
        self.known: dict[Content, str] = {}

    def write(self, correction: Possible) -> None:
        """Write one correction, in place."""
        graph = self.gm.graph
        if isinstance(correction, Fill):
            node, place = self.nodes[correction.place.node], correction.place
            read = _last(node, self.nodes[place.input])
            with graph.inserting_before(node):
                filled = graph.call_function(over_kept.keep_only, (read, self._keep(place), place.dim, correction.value))
            node.replace_input_with(read, filled)
        elif isinstance(correction, Clear):
            self._follow(correction.place, over_kept.keep_only, correction.place.dim, 0.0)
        elif isinstance(correction, Rescale):
            self._follow(correction.place, over_kept.mean_of_kept)
        else:
            self._restrict(self.nodes[correction.places[0].node], correction)

    def _follow(self, place: Place, function: Callable[..., Any], *options: Any) -> None:
        """Call a function of the node's value and its keep vector, and let the users of the node read the result."""
        node = self.nodes[place.node]
        with self.gm.graph.inserting_after(node):
            new = self.gm.graph.call_function(function, (node,))
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        with self.gm.graph.inserting_before(new):
            new.args = (node, self._keep(place), *options)

    def _restrict(self, node: fx.Node, correction: Restrict) -> None:
        form = correction.form
        bound = bound_arguments(correction.call.op, node.args, node.kwargs)
        reads = {name: _last(node, self.nodes[read]) for name, read in correction.reads.items()}
        values = [reads.get(name, bound[name]) for name in form.given]
        with self.gm.graph.inserting_before(node):
            keeps = [self._keep(place) for place in correction.places]
            named = dict(zip(form.given[1:], values[1:], strict=True)) | form.plain_arguments(correction.call)
            named |= {"keeps": keeps, "keep_dims": [place.dim for place in correction.places]}
            new = self.gm.graph.call_function(form.function, (values[0],), named)
        ORIGINAL.set(new, _stored(node, new))
        take_over(node, new)
        self.nodes[new.name] = new

    def _keep(self, place: Place) -> fx.Node:
        content = self.deps.units.content(place.axis)
        if content not in self.known:
            free = (name for name in map("fxprune_keep_{}".format, itertools.count()) if not hasattr(self.gm, name))
            name = self.known[content] = next(free)
            device = next((t.device for t in (*self.gm.parameters(), *self.gm.buffers())), torch.device("cpu"))
            with torch.inference_mode(False):  # the graph is trained with it, wherever it was masked
                self.gm.register_buffer(name, torch.from_numpy(self.kept(place.axis)).to(device, FLAG))
        record = KEEPS.setdefault(self.gm, {}).setdefault(self.known[content], [])
        if (place.node, place.input, place.dim) not in record:
            record.append((place.node, place.input, place.dim))
        return self.gm.graph.create_node("get_attr", self.known[content])


def _last(node: fx.Node, read: fx.Node) -> fx.Node:
    """Return the node that a fill reads: ``read``, or the last fill of another dimension between ``read`` and ``node``."""
    last = read
    for argument in node.all_input_nodes:
        origin = argument
        while origin is not read and origin.target is over_kept.keep_only:
            origin = origin.all_input_nodes[0]
        if origin is read:
            last = argument
    return last


def _stored(node: fx.Node, new: fx.Node) -> tuple[Any, ...]:
    """Return a call in a form that survives copies: the nodes that ``new`` reads as their places, other nodes by name."""
    places = {read: Slot(read.name) for read in node.all_input_nodes}  # such as sizes that the new call is not given
    places |= {read: Slot(str(i)) for i, read in enumerate(new.all_input_nodes)}
    to_slot: Callable[[fx.Node], Any] = places.__getitem__
    return node.op, picklable(node.target), fx.map_arg(node.args, to_slot), fx.map_arg(node.kwargs, to_slot)


def places_of(correction: Correction) -> tuple[Place, ...]:
    """Return the places whose keep vectors a correction reads; none if it is impossible."""
    if isinstance(correction, Impossible):
        return ()
    return correction.places if isinstance(correction, Restrict) else (correction.place,)


def update_keeps(gm: fx.GraphModule, deps: Dependencies, kept: Remaining, wanted: Iterable[Possible]) -> bool:
    """Bring the flags of a graph's corrections up to date, in place, if it has all of the wanted ones; tell whether it has."""
    record = KEEPS.get(gm) or {}
    present = {place for places in record.values() for place in places}
    if any((place.node, place.input, place.dim) not in present for c in wanted for place in places_of(c)):
        return False
    for name, read_at in record.items():
        _, node, dim = read_at[0]
        label = deps.values[node]
        assert isinstance(label, Label)
        overwrite(gm.get_buffer(name), torch.from_numpy(kept(label.axes[dim])))
    return True


def corrected_otherwise(gm: fx.GraphModule, deps: Dependencies, kept: Remaining) -> set[str]:
    """Return the keep vectors of corrections that leave out other positions than the ones that go.

    Args:
        gm: the graph.
        deps: its analysis without masks.
        kept: the positions that the masks leave.
    """
    found = set[str]()
    for name, places in (KEEPS.get(gm) or {}).items():
        flags = gm.get_buffer(name)
        axes = [label.axes[dim] for _, value, dim in places if isinstance(label := deps.values.get(value), Label)]
        if not flags.is_meta and any(not np.array_equal(flags.cpu().numpy(), kept(axis)) for axis in axes):
            found.add(name)
    return found


def _keeps_of(node: fx.Node) -> set[str]:
    """Return the keep vectors that a node reads."""
    corrects = node.target in (over_kept.keep_only, over_kept.mean_of_kept) or ORIGINAL.get(node) is not None
    return {str(read.target) for read in node.all_input_nodes if corrects and read.op == "get_attr"}


def erase_corrections(gm: fx.GraphModule, settled: frozenset[str] = frozenset()) -> bool:
    """Take corrections out of a graph, in place, and tell whether there were any.

    Those that read one of the keep vectors ``settled`` stay, from now on as a part of the graph.
    """
    record = KEEPS.pop(gm) or {}
    graph = gm.graph
    reads = {node: _keeps_of(node) & record.keys() for node in graph.nodes}
    while more := [keeps for keeps in reads.values() if not keeps.isdisjoint(settled) and not keeps <= settled]:
        settled = settled.union(*more)  # a correction over several axes stays as a whole
    for node in [node for node, keeps in reads.items() if keeps]:
        original = ORIGINAL.pop(node)
        if not reads[node].isdisjoint(settled):
            continue
        if original is not None:
            _restore(graph, node, original)
        else:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    for name in record.keys() - settled:
        for read in graph.find_nodes(op="get_attr", target=name):
            graph.erase_node(read)
        delattr(gm, name)
    return bool(record)


def _restore(graph: fx.Graph, node: fx.Node, original: tuple[Any, ...]) -> None:
    op, target, args, kwargs = original
    reads = node.all_input_nodes

    def node_at(slot: Slot) -> fx.Node:
        return reads[int(slot)] if slot.isdigit() else next(read for read in graph.nodes if read.name == slot)

    args, kwargs = fill((args, kwargs), node_at)
    with graph.inserting_before(node):
        old = graph.create_node(op, found(target), args, kwargs)
    take_over(node, old)
