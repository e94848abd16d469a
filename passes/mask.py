"""Mask: let a graph compute with masked parameters, by masks of single elements or by a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor, fx

from fxprune.errors import PruningTypeError
from fxprune.graph.captured import recompile_later
from fxprune.graph.masks import find_masked
from fxprune.passes.graph_pass import GraphPass
from fxprune.passes.mask_parameters import insert_masks
from fxprune.passes.mask_units import mask_plan
from fxprune.planning.plan import Plan
from fxprune.torch_internals.interrupts import uninterrupted


@dataclasses.dataclass(frozen=True)
class Mask(GraphPass):
    """Pass: mask parameters with given masks, or as a plan says.

    Requires: the names are parameters of floating-point or complex dtype, each mask has its parameter's shape. Ensures:
    every use of such a parameter in the graph reads the product.

    Example: ``Mask({"fc.weight": torch.ones(10, 20)})(gm)``
    """

    masks: Plan | Mapping[str, Tensor]

    def requires(self, gm: fx.GraphModule) -> None:
        """Raise PruningTypeError if there is neither a plan nor a dict."""
        if not isinstance(self.masks, Plan | Mapping):
            raise PruningTypeError(f"masks must be a plan or a dict of tensors by name, not {type(self.masks).__name__}")

    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Mask the parameters, in place."""
        if isinstance(self.masks, Plan):
            return mask_plan(gm, self.masks)
        with uninterrupted():
            modified = insert_masks(gm, self.masks)
            if modified:
                recompile_later(gm)
        return modified

    def ensures(self, gm: fx.GraphModule) -> None:
        """Raise AssertionError if one of the parameters is not masked."""
        for name in self.masks if isinstance(self.masks, Mapping) else ():
            assert find_masked(gm, name) is not None, f"{name!r} is not masked"
