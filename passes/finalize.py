"""Finalize: fold every mask into its parameter and give the graph its captured form back."""

from __future__ import annotations

import dataclasses

from torch import fx

from fxprune.graph.captured import recompile_later
from fxprune.graph.masks import all_masked
from fxprune.graph.metadata import METHODS
from fxprune.graph.parts import Graph
from fxprune.passes.graph_pass import GraphPass
from fxprune.passes.mask_parameters import remove_masks
from fxprune.torch_internals.interrupts import uninterrupted


@dataclasses.dataclass(frozen=True)
class Finalize(GraphPass):
    """Pass: bake all masks.

    Ensures: no parameter is masked, no multiplication by a mask is left, and the graph's text is the one before masking, but
    for the corrections of a plan's masks, without which the graph would compute something else.
    """

    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Bake the masks, in place."""
        with uninterrupted():
            modified = remove_masks(gm, all_masked(gm))
            if modified:
                METHODS.pop(gm)
                recompile_later(gm)
        return modified

    def ensures(self, gm: fx.GraphModule) -> None:
        """Raise AssertionError if a parameter is masked."""
        assert not all_masked(gm), "a parameter is masked"


def finalize(gm: Graph) -> Graph:
    """Bake every mask of a graph into its parameter, in place; shapes stay as they are.

    The Parameter objects stay the same, so an optimizer over them keeps working and keeps its state. A graph without
    masks is left alone. What a plan removed can still be taken out by :func:`fxprune.shrink`, until training changes it.

    Args:
        gm: the graph.

    Returns:
        ``gm``.

    Source: ``torch.nn.utils.prune.remove``, for all parameters at once.

    Example:
        >>> gm = fxprune.finalize(gm)
        >>> fxprune.is_pruned(gm)
        False
    """
    Finalize()(gm)
    return gm
