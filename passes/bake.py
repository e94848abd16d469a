"""Bake: fold all masks into parameters of the graph's own, and take out the corrections."""

from __future__ import annotations

import dataclasses

import torch
from torch import fx

from fxprune.graph.masks import all_masked
from fxprune.graph.metadata import BAKED, KEEPS, METHODS, ORIGINAL
from fxprune.graph.paths import holders
from fxprune.passes.compensate import erase_corrections
from fxprune.passes.graph_pass import GraphPass
from fxprune.passes.mask_parameters import remove_masks
from fxprune.torch_internals.graphs import free_names
from fxprune.torch_internals.tensors import parameter_like


@dataclasses.dataclass(frozen=True)
class Bake(GraphPass):
    """Pass: bake all masks into new parameters, and erase the corrections but for those that read keep vectors ``settled``.

    Requires: the modules of the graph are its own, as in a :func:`shared_copy`; parameters may be shared. Ensures: no parameter
    is masked, no correction is left, and the graph's text is the one before masking.
    """

    settled: frozenset[str] = frozenset()

    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Bake the masks, in place."""
        held = holders(gm)
        for masked in all_masked(gm):  # baking gives the parameter new values, which the other graph has, too
            with torch.inference_mode(False):
                old = masked.orig.detach()
                fresh = parameter_like(masked.orig, old.clone() if old.is_inference() else old)
            for owner, attribute in held[masked.orig]:
                owner._parameters[attribute] = fresh
        modified = erase_corrections(gm, self.settled)
        modified |= remove_masks(gm, all_masked(gm))
        METHODS.pop(gm)
        BAKED.pop(gm)
        free_names(gm.graph)
        return modified

    def ensures(self, gm: fx.GraphModule) -> None:
        """Raise AssertionError if a mask or a correction is left."""
        assert not all_masked(gm), "a parameter is masked"
        assert not any(map(ORIGINAL.get, gm.graph.nodes)), "a correction is left"
        assert KEEPS.get(gm) is None, "a correction is left"
