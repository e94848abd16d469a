"""Shrink units: take chosen units out of a graph without masks."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import fx
from torch.fx.immutable_collections import immutable_dict, immutable_list

from fxprune.algebra.axes import Flags
from fxprune.analysis.analyze import find_dependencies
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.remaining import Remaining, dead_places, removed_units
from fxprune.errors import FxpruneError, ShrinkError
from fxprune.graph.captured import adopt
from fxprune.graph.masks import all_masked
from fxprune.graph.metadata import KEPT_OF_VALUE
from fxprune.graph.parts import shared_copy
from fxprune.passes.erase_unused import EraseUnused, reads
from fxprune.passes.graph_pass import GraphPass, run_all
from fxprune.passes.in_place import WriteInPlace
from fxprune.passes.inline import Inline
from fxprune.passes.repair.repair import Repair, may_be_stuck, shrinking_steps
from fxprune.passes.slice_tensors import SliceTensors
from fxprune.rules.labels import Label
from fxprune.torch_internals.switches import alone, uncollected
from fxprune.torch_internals.tensors import pytree


@dataclasses.dataclass(frozen=True)
class ShrinkUnits(GraphPass):
    """Pass: slice the units out of parameters and buffers, and repair the nodes.

    A function that hides sizes from its arguments cannot be repaired: then the graph is put back, the function is written out,
    and the passes run once more.

    The flags ``removed`` say for every unit whether it goes.

    Requires: no parameter is masked, the modules are the graph's own. Ensures: no position of a unit that goes is held.

    Raises:
        ShrinkError: a node cannot be rewritten; the graph must not be used any more.
    """

    deps: Dependencies
    removed: Flags

    def requires(self, gm: fx.GraphModule) -> None:
        """Raise ShrinkError if a parameter is masked."""
        if masked := all_masked(gm):
            raise ShrinkError(f"{masked[0].name!r} is masked: bake the masks first")

    @alone()
    @uncollected()
    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Take the units out, in place."""
        deps, removed, inlined = self.deps, self.removed, dict[str, str]()
        given = {node.name for node in gm.graph.nodes}
        stuck = ""
        while True:
            kept = Remaining(deps.units, removed)
            steps = shrinking_steps(gm, deps, kept)
            spare = shared_copy(gm) if may_be_stuck(gm, steps) else None
            slicing = SliceTensors(deps, kept), Repair(deps, kept, steps), NoteKept(deps, kept)
            try:
                return run_all((*slicing, EraseUnused(reads(gm)), WriteInPlace()), gm)
            except ShrinkError as error:
                # A node of a function that was written out is not known outside: the function stands for it.
                error.nodes = {name: why for name, why in error.nodes.items() if name.partition(".")[0] in given} or inlined
                if spare is None:
                    raise
                adopt(gm, spare)
                written_out = str([(node.name, node.target) for node in gm.graph.nodes if node.name in error.nodes])
                if written_out == stuck or not error.nodes:
                    raise
                try:
                    Inline(deps, list(error.nodes))(gm)
                    dead, known = dead_places(deps, kept), deps.not_analysed
                    deps = find_dependencies(gm)
                    if not set(deps.not_analysed) <= set(known):  # a function may do something else on other values
                        raise ShrinkError("what was written out cannot be analysed")
                except FxpruneError:
                    raise error from None
                inlined |= error.nodes
                stuck, removed = written_out, removed_units(deps, dead)


def _as_run(value: Any) -> Any:
    """Return a value in the containers that a run of the graph gives, in place of torch.fx's own for arguments."""
    if isinstance(value, immutable_list):
        return [_as_run(part) for part in value]
    return {key: _as_run(part) for key, part in value.items()} if isinstance(value, immutable_dict) else value


@dataclasses.dataclass(frozen=True)
class NoteKept(GraphPass):
    """Pass: note on the nodes which positions of their values are left, and drop the example values that do not fit any more.

    The graph's text stays. Ensures: no node whose value shrank has an example value, inputs excepted.
    """

    deps: Dependencies
    kept: Remaining

    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Write the notes, in place."""
        for node in gm.graph.nodes:
            KEPT_OF_VALUE.pop(node)  # of a round before
            if self._shrinks(node):
                node.meta.pop("val", None)
                value = self.deps.values[node.name]
                is_tensor = isinstance(value, Label)  # nearly always, and pytree is slow
                KEPT_OF_VALUE.set(node, self._left(value) if is_tensor else pytree.tree_map(self._left, _as_run(value)))
        return False

    def ensures(self, gm: fx.GraphModule) -> None:
        """Raise AssertionError if an example value of sizes from before is left."""
        for node in gm.graph.nodes:
            assert "val" not in node.meta or not self._shrinks(node), f"node {node.name!r} has an example value from before"

    def _left(self, leaf: Any) -> Any:
        return self.kept.places_of(leaf) if isinstance(leaf, Label) else None

    def _shrinks(self, node: fx.Node) -> bool:
        return node.op not in ("placeholder", "output") and self.kept.shrinks_any(self.deps.values.get(node.name))
