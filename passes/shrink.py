"""Shrink: take the units that masks remove out of a graph; its results stay."""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import Tensor, fx

from fxprune.algebra.axes import Flags
from fxprune.analysis.analyze import find_dependencies
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.remaining import Remaining, dead_places, removed_units
from fxprune.errors import AnalysisError, ShrinkError
from fxprune.frontends.modes.reads import in_mode
from fxprune.graph.captured import adopt, compiled_later
from fxprune.graph.masks import all_masked
from fxprune.graph.metadata import SHAPES, WHOLE
from fxprune.graph.parts import Graph
from fxprune.passes.bake import Bake
from fxprune.passes.fold_constants import FoldConstants, amounts_of
from fxprune.passes.graph_pass import GraphPass, run_all
from fxprune.passes.own_buffers import OwnBuffers
from fxprune.passes.shrink_units import ShrinkUnits
from fxprune.passes.unmask import unmasked
from fxprune.torch_internals.switches import alone, uncollected
from fxprune.zeros.folds import Fold
from fxprune.zeros.removable import ZeroSlices, masked_slices, removable, zero_slices


@dataclasses.dataclass(frozen=True)
class Shrink(GraphPass):
    """Pass: take the units that masks remove out of the graph; nothing is verified.

    Ensures: no parameter is masked, no correction is left, and no removed position is held anywhere.
    """

    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Let the graph be the smaller one."""
        with compiled_later():
            smaller, removed = shrunk_copy(gm)
            modified = removed or bool(all_masked(gm))
            if modified:
                adopt(gm, smaller)
        return modified

    def ensures(self, gm: fx.GraphModule) -> None:
        """Raise AssertionError if a mask or a correction is left."""
        Bake().ensures(gm)


@alone()
@uncollected()
def shrunk_copy(gm: Graph, *, from_zeros: bool = False) -> tuple[Graph, bool]:
    """Return a smaller graph that computes what a masked one does, and whether any unit went; see :func:`fxprune.shrink`.

    What a node reads that cannot be rewritten is kept whole from now on, as a note on the masked graph says.
    """
    while True:
        try:
            return _shrunk_copy(gm, from_zeros)
        except ShrinkError as error:
            whole = WHOLE.get(gm) or {}
            if error.nodes.keys() <= whole.keys():
                raise
            WHOLE.set(gm, whole | error.nodes)


def _shrunk_copy(gm: Graph, from_zeros: bool) -> tuple[Graph, bool]:
    found = unmasked(gm, bake=True)
    copy, deps, removed = found.gm, found.deps, found.removed
    folds, amounts = list[Fold](), list[Tensor]()
    if zeros := zero_slices(copy) if from_zeros else masked_slices(gm):
        removed, folds, amounts = _with_others(copy, deps, removed, zeros)
    shrinking = (ShrinkUnits(deps, removed), FoldConstants(folds, amounts)) if removed.any() else ()
    SHAPES.set(copy, deps.shapes())
    run_all((*shrinking, OwnBuffers(list(gm.buffers()))), copy)
    return copy, bool(removed.any())


def _with_others(
    gm: fx.GraphModule, deps: Dependencies, removed: Flags, zeros: ZeroSlices
) -> tuple[Flags, list[Fold], list[Tensor]]:
    """Return the units that go when zero slices that need no correction go, too; the folds of biases, and their amounts."""
    try:
        with in_mode(gm.named_modules(), training=True):  # where dropout shows
            training = find_dependencies(gm)
    except AnalysisError:
        return removed, [], []
    if not set(training.not_analysed) <= set(deps.not_analysed):
        return removed, [], []  # it cannot train on its example inputs: a batch norm refuses a single number for each channel
    gone = removed_units(training, dead_places(deps, Remaining(deps.units, removed)))
    more, folds = removable(gm, training, zeros, gone)
    kept = Remaining(training.units, gone | more)
    dead = dead_places(training, kept)
    both = removed_units(deps, dead)
    # The two analyses number their units apart: both have to remove the same positions, or else nothing more goes.
    same = dead_places(deps, Remaining(deps.units, both))
    if dead.keys() != same.keys() or not all(np.array_equal(flags, same[at]) for at, flags in dead.items()):
        return removed, [], []
    return both, folds, amounts_of(gm, kept, folds)
