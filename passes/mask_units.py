"""Structured masks: one vector of flags for each axis of a parameter that loses positions, as a plan says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from fxprune.algebra.axes import Axis
from fxprune.analysis.analyze import find_dependencies
from fxprune.analysis.corrections import Correction, Fill, Rescale, Restrict, corrections
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.fingerprint import recall, remember
from fxprune.analysis.remaining import Flags, Remaining
from fxprune.graph.masks import MASK, all_masked, check_prunable, find_parameter
from fxprune.graph.metadata import BAKED
from fxprune.graph.parts import shared_copy
from fxprune.passes.compensate import Compensate, EraseCorrections, has_places, update_keeps
from fxprune.passes.graph_pass import GraphPass, check
from fxprune.passes.lower import lower
from fxprune.passes.mask_parameters import drop_masks, put_masks
from fxprune.passes.raise_leaves import RaiseLeaves
from fxprune.planning.plan import Plan
from fxprune.torch_internals.switches import uncollected


@dataclasses.dataclass(frozen=True, eq=False)
class _Vector:
    """The mask of one axis of a parameter."""

    name: str
    parameter: nn.Parameter
    dim: int
    flags: Flags

    @property
    def ending(self) -> str:
        return f"{MASK}{self.dim}"

    @property
    def tensor(self) -> Tensor:
        """The flags in a shape that broadcasts to the parameter's, and in its dtype, which multiplies fastest."""
        shape = [1] * self.parameter.dim()
        shape[self.dim] = -1
        flags = torch.from_numpy(self.flags.copy()).to(device=self.parameter.device, dtype=self.parameter.dtype)
        return flags.view(shape)


@dataclasses.dataclass(frozen=True)
class MaskUnits(GraphPass):
    """Pass: mask all that some units own, and correct what combines their positions.

    Structured masks from before are replaced. Where they are on the same axes, they are updated and the graph stays as it is.

    Args:
        deps: the analysis of the graph without structured masks.
        removed: for every unit whether it goes.

    Raises:
        PlanError: what goes cannot be corrected. Nothing has changed.
        LoweringError: a leaf module cannot be written out. Nothing has changed.
    """

    deps: Dependencies
    removed: Flags

    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Mask the units, in place."""
        deps, kept = self.deps, Remaining(self.deps.units, self.removed)
        compensate = Compensate(deps, kept, needed_corrections(deps, kept))
        compensate.requires(gm)
        vectors = _vectors(gm, deps, kept)
        if _update(gm, deps, kept, vectors, compensate.wanted):
            return True
        strip(gm)
        restricted = {place.node for c in compensate.wanted if isinstance(c, Restrict) for place in c.places}
        lower(gm, [vector.parameter for vector in vectors], restricted)
        if any(vector.parameter.is_meta for vector in vectors):  # a mask there has no values that could say
            BAKED.set(gm, {(vector.name, vector.dim): ~vector.flags for vector in vectors})
        masks: dict[str, dict[str, Tensor]] = {}
        for vector in vectors:
            masks.setdefault(vector.name, {})[vector.ending] = vector.tensor
        put_masks(gm, masks)
        compensate.rewrite(gm)
        return True

    def ensures(self, gm: fx.GraphModule) -> None:
        """Raise AssertionError if an axis that loses positions has no mask of them."""
        masks = {name: masked.masks for masked in all_masked(gm) for name in masked.names}
        for vector in _vectors(gm, self.deps, Remaining(self.deps.units, self.removed)):
            check(vector.ending in masks.get(vector.name, {}), f"{vector.name}[{vector.dim}] is not masked")


@uncollected()
def mask_plan(gm: fx.GraphModule, plan: Plan) -> bool:
    """Mask what a plan removes, in place; the graph is not recompiled. Tells whether anything changed."""
    base = gm
    if is_structured(base):
        base = shared_copy(gm)
        strip(base)
        base.recompile()
    deps = recall(gm, base)
    if deps is None:
        deps = find_dependencies(base)
        remember(gm, base, deps)
    removed = plan.removed(deps)
    if not removed.any() and not is_structured(gm):
        return False
    return MaskUnits(deps, removed).rewrite(gm)


def needed_corrections(deps: Dependencies, kept: Remaining) -> list[Correction]:
    """Return what a masked graph needs at its mixing points."""

    def goes(axis: Axis) -> bool:
        return kept.size(axis) != axis.size

    return list(corrections(deps.gm, deps.values, deps.steps, deps.points, deps.units, goes))


def _vectors(gm: fx.GraphModule, deps: Dependencies, kept: Remaining) -> list[_Vector]:
    found = []
    for tracked in deps.tracked:
        if not tracked.is_parameter or not kept.shrinks(tracked.label):
            continue
        parameter = find_parameter(gm, tracked.name)
        check_prunable(tracked.name, parameter)
        for dim, axis in enumerate(tracked.label.axes):
            if kept.size(axis) != axis.size:
                found.append(_Vector(tracked.name, parameter, dim, kept(axis)))
    return found


def _update(
    gm: fx.GraphModule, deps: Dependencies, kept: Remaining, vectors: Sequence[_Vector], wanted: Sequence[Correction]
) -> bool:
    """Update the masks where they stand, if they are on all axes that need one; tell whether they were."""
    present = {name: masked.masks for masked in all_masked(gm) for name in masked.names}
    if any(vector.ending not in present.get(vector.name, {}) for vector in vectors):
        return False
    places = [
        p for c in wanted for p in (c.places if isinstance(c, Restrict) else [c.place] if isinstance(c, Fill | Rescale) else [])
    ]
    if not vectors or not has_places(gm, places):
        return False
    for masks in present.values():
        for ending, mask in masks.items():
            if ending != MASK:
                mask.fill_(1)
    for vector in vectors:
        present[vector.name][vector.ending].copy_(vector.tensor)
    update_keeps(gm, deps, kept)
    return True


def is_structured(gm: fx.GraphModule) -> bool:
    """Tell whether a graph has structured masks."""
    return any(ending != MASK for masked in all_masked(gm) for ending in masked.masks)


def strip(gm: fx.GraphModule) -> None:
    """Take structured masks and their corrections out of a graph, in place, without baking them; it is not recompiled."""
    EraseCorrections().rewrite(gm)
    if is_structured(gm):
        drop_masks(gm, lambda ending: ending != MASK)
    RaiseLeaves().rewrite(gm)


def note_dead_axes(gm: fx.GraphModule) -> None:
    """Note on a graph what its structured masks remove, before they are baked."""
    if is_structured(gm):
        BAKED.set(gm, {**(BAKED.get(gm) or {}), **dead_axes(gm)})


def dead_axes(gm: fx.GraphModule) -> dict[tuple[str, int], Flags]:
    """Return for every axis of a parameter that a structured mask is on, or was, which positions it removes.

    Of masks that were baked it counts only what is zero still.
    """
    found: dict[tuple[str, int], Flags] = {}
    for (name, dim), flags in (BAKED.get(gm) or {}).items():
        weights = find_parameter(gm, name).detach().movedim(dim, 0)
        if weights.is_meta:
            found[name, dim] = flags
            continue
        nonzero = weights.reshape(len(weights), -1).count_nonzero(1).cpu().numpy()
        found[name, dim] = flags & (nonzero == 0)
    for masked in all_masked(gm):
        for ending, mask in masked.masks.items():
            if ending != MASK and not mask.is_meta:
                found[masked.name, int(ending.removeprefix(MASK))] = (mask == 0).reshape(-1).cpu().numpy()
    return found
