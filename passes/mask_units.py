"""Structured masks: one vector of flags for each axis of a parameter that loses positions, as a plan says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.algebra.axes import Flags
from fxprune.analysis.corrections import Impossible, Restrict
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.remaining import Remaining, dead_places
from fxprune.errors import PlanError
from fxprune.graph.captured import recompile_later
from fxprune.graph.masks import FLAG, MASK, all_masked, check_prunable, find_parameter
from fxprune.graph.metadata import REMOVED
from fxprune.graph.paths import holders
from fxprune.passes.compensate import Compensation, Possible, update_keeps
from fxprune.passes.graph_pass import GraphPass
from fxprune.passes.lower import lower
from fxprune.passes.mask_parameters import check_names, put_masks
from fxprune.passes.unmask import is_structured, strip, unmasked
from fxprune.planning.plan import Plan
from fxprune.torch_internals.interrupts import uninterrupted
from fxprune.torch_internals.switches import uncollected
from fxprune.torch_internals.tensors import overwrite


@dataclasses.dataclass(frozen=True)
class MaskUnits(GraphPass):
    """Pass: mask all positions of the units that go, and write the corrections of the mixing points.

    Structured masks from before are replaced. Where they are on the same axes, they are updated and the graph stays as it is.

    The analysis is of the graph without structured masks. The flags ``removed`` say for every unit whether it goes. Corrections
    that read the keep vectors ``settled`` are a part of the graph.

    Raises:
        PlanError: a correction is impossible. Nothing has changed.
        LoweringError: a leaf module cannot be written out. Nothing has changed.
    """

    deps: Dependencies
    removed: Flags
    settled: frozenset[str] = frozenset()

    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Mask the units, in place."""
        deps, kept = self.deps, Remaining(self.deps.units, self.removed)
        wanted: list[Possible] = []
        for correction in deps.corrections(kept.shrinks_axis):
            if isinstance(correction, Impossible):
                at, text = correction.step.node, correction.text
                raise PlanError(f"node {at!r} ({correction.step.op}): {text}", nodes={at: text})
            wanted.append(correction)
        masks = self._masks(gm, kept)
        held = holders(gm)
        for name, given in masks.items():
            check_names(name, held[find_parameter(gm, name)], given)
        if self._update(gm, kept, masks, wanted):
            return False
        strip(gm, self.settled)
        parameters = [find_parameter(gm, name) for name in masks]
        lower(gm, parameters, {place.node for c in wanted if isinstance(c, Restrict) for place in c.places})
        put_masks(gm, masks)
        self._note_on_meta(gm, kept, masks)
        compensation = Compensation(gm, deps, kept)
        for correction in wanted:
            compensation.write(correction)
        return True

    def ensures(self, gm: fx.GraphModule) -> None:
        """Raise AssertionError if an axis that loses positions has no mask of them."""
        present = {name: masked.masks for masked in all_masked(gm) for name in masked.names}
        for name, masks in self._masks(gm, Remaining(self.deps.units, self.removed)).items():
            assert masks.keys() <= present.get(name, {}).keys(), f"{name!r} is not masked on every axis"

    def _masks(self, gm: fx.GraphModule, kept: Remaining) -> dict[str, dict[str, Tensor]]:
        """Return by name and ending the masks of the parameters that lose positions: ``{"fc.weight": {"_mask0": (10, 1)}}``."""
        masks: dict[str, dict[str, Tensor]] = {}
        for tracked in self.deps.tracked:
            if tracked.is_parameter and kept.shrinks(tracked.label):
                parameter = find_parameter(gm, tracked.name)
                check_prunable(tracked.name, parameter)
                axes = [(dim, axis) for dim, axis in enumerate(tracked.label.axes) if kept.shrinks_axis(axis)]
                masks[tracked.name] = {f"{MASK}{dim}": _vector(parameter, dim, kept(axis)) for dim, axis in axes}
        return masks

    def _note_on_meta(self, gm: fx.GraphModule, kept: Remaining, masks: Mapping[str, Any]) -> None:
        """Note the positions that go on the graph if masks are on the meta device, where they have no values."""
        if any(find_parameter(gm, name).is_meta for name in masks):
            REMOVED.set(gm, {at: flags for at, flags in dead_places(self.deps, kept).items() if at[0] in masks})

    def _update(self, gm: fx.GraphModule, kept: Remaining, masks: dict[str, dict[str, Tensor]], wanted: list[Possible]) -> bool:
        """Update the masks where they stand, if they are on all axes that need one; tell whether they were."""
        present = {name: masked.masks for masked in all_masked(gm) for name in masked.names}
        on_all = all(given.keys() <= present.get(name, {}).keys() for name, given in masks.items())
        if not masks or not on_all or self.settled or not update_keeps(gm, self.deps, kept, wanted):
            return False
        self._note_on_meta(gm, kept, masks)
        for mask in (mask for every in present.values() for ending, mask in every.items() if ending != MASK):
            overwrite(mask, torch.ones(()))
        for name, given in masks.items():
            for ending, mask in given.items():
                overwrite(present[name][ending], mask)
        return True


@uncollected()
def mask_plan(gm: fx.GraphModule, plan: Plan) -> bool:
    """Mask the units that a plan removes, in place, and tell whether the graph changed, which is not recompiled."""
    found = unmasked(gm)
    removed = plan.removed(found.deps) | found.baked
    if not removed.any() and not is_structured(gm):
        return False
    with uninterrupted():
        modified = MaskUnits(found.deps, removed, found.settled).rewrite(gm)
        if modified:
            recompile_later(gm)
    return modified


def _vector(parameter: nn.Parameter, dim: int, flags: Flags) -> Tensor:
    """Return flags in a shape that broadcasts to the parameter's."""
    with torch.inference_mode(False):  # the mask takes part in training, wherever it was made
        vector = torch.from_numpy(flags.copy()).to(device=parameter.device, dtype=FLAG)
        return vector.view([-1 if d == dim else 1 for d in range(parameter.dim())])
