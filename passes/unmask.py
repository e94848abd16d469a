"""Unmask: the graph without structured masks and their corrections, and which units the masks removed."""

from __future__ import annotations

import dataclasses
from typing import Generic

import numpy as np
from torch import fx

from fxprune.abstract.fakes import give_examples
from fxprune.algebra.axes import Flags
from fxprune.analysis.analyze import find_dependencies
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.fingerprint import recall, remember
from fxprune.analysis.remaining import Remaining, removed_units
from fxprune.graph.masks import all_masked, find_parameter
from fxprune.graph.metadata import BAKED, KEEPS
from fxprune.graph.parts import Graph, shared_copy
from fxprune.passes.bake import Bake
from fxprune.passes.compensate import corrected_otherwise, erase_corrections, places_of
from fxprune.passes.mask_parameters import drop_structured_masks, removed_positions
from fxprune.passes.raise_leaves import RaiseLeaves


@dataclasses.dataclass(frozen=True)
class Unmasked(Generic[Graph]):
    """A graph without its structured masks and the corrections that belong to them.

    A correction belongs to masks if it leaves out the positions that the masks remove, and no others. Any other correction is a
    part of the graph like its other nodes: the weights behind a baked mask were trained or loaded, say.

    Attributes:
        gm: the graph; a copy, unless there was nothing to take out.
        deps: its analysis.
        removed: a flag for every unit, whether masks remove it or did so before they were baked.
        baked: a flag for every unit, whether baked masks removed it, so that no other plan brings it back.
        settled: the keep vectors of the corrections that are a part of the graph.
    """

    gm: Graph
    deps: Dependencies
    removed: Flags
    baked: Flags
    settled: frozenset[str]


def unmasked(gm: Graph, *, bake: bool = False) -> Unmasked[Graph]:
    """Return a graph without its structured masks and their corrections; ``gm`` does not change.

    Args:
        gm: the graph.
        bake: bake all masks into parameters of the copy, those of single elements included. Otherwise it has these masks
            still, and parameters as if there were no structured masks.
    """
    give_examples(gm)
    settled = frozenset[str]()
    while True:
        base = gm
        if bake or is_structured(gm) or KEEPS.get(gm):
            base = shared_copy(gm)
            if bake:
                Bake(settled)(base)
            else:
                strip(base, settled)
                base.recompile()
        deps = recall(gm, base)
        if deps is None:
            deps = find_dependencies(base)
            if not bake:
                remember(gm, base, deps)
        removed = removed_units(deps, dead_axes(gm)) & ~_uncorrected(gm, deps, settled)
        more = corrected_otherwise(gm, deps, Remaining(deps.units, removed)) - settled
        if not more:
            baked = removed & removed_units(deps, _baked_axes(gm)) if BAKED.get(gm) else np.zeros_like(removed)
            return Unmasked(base, deps, removed, baked, settled)
        settled |= more


def _uncorrected(gm: fx.GraphModule, deps: Dependencies, settled: frozenset[str]) -> Flags:
    """Return a flag for each unit: whether a mixing point counts its positions, as the correction there is not of masks."""
    found = np.zeros(deps.units.count + 1, bool)  # NONE is -1, which indexes the flag at the end
    if settled:
        present = {at for name, places in KEEPS[gm].items() if name not in settled for at in places}
        for wanted in deps.corrections():
            for place in places_of(wanted):
                if (place.node, place.input, place.dim) not in present:
                    found[deps.units.content(place.axis).rows] = True
    return found[:-1]


def is_structured(gm: fx.GraphModule) -> bool:
    """Tell whether a graph has structured masks."""
    return any(masked.by_axis for masked in all_masked(gm))


def strip(gm: fx.GraphModule, settled: frozenset[str] = frozenset()) -> None:
    """Take structured masks and their corrections out of a graph, in place, without baking them; it is not recompiled."""
    erase_corrections(gm, settled)
    drop_structured_masks(gm)
    RaiseLeaves().rewrite(gm)


def dead_axes(gm: fx.GraphModule) -> dict[tuple[str, int], Flags]:
    """Return for every axis of a parameter that a structured mask is on, or was, which positions it removes."""
    found = _baked_axes(gm)
    return {**found, **{at: flags | found.get(at, False) for at, flags in removed_positions(gm, all_masked(gm)).items()}}


def _baked_axes(gm: fx.GraphModule) -> dict[tuple[str, int], Flags]:
    """Return which positions baked masks removed, by parameter and dimension; only those that are zero still."""
    found: dict[tuple[str, int], Flags] = {}
    for (name, dim), flags in (BAKED.get(gm) or {}).items():
        weights = find_parameter(gm, name).detach().movedim(dim, 0)
        if not weights.is_meta:
            flags = flags & (weights.reshape(len(weights), -1).count_nonzero(1) == 0).cpu().numpy()
        found[name, dim] = flags
    return found
