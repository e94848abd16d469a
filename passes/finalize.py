"""Finalize: fold every mask into its parameter and give the graph its captured form back."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from torch import fx
from torch.fx.passes.infra.pass_base import PassResult

from fxprune.graph.captured import as_graph_module
from fxprune.graph.masks import all_masked
from fxprune.graph.metadata import METHODS
from fxprune.passes.mask_parameters import remove_masks
from fxprune.passes.mask_units import note_dead_axes

_Graph = TypeVar("_Graph", bound=fx.GraphModule)


@dataclasses.dataclass(frozen=True)
class Finalize:
    """Pass: bake all masks.

    Ensures: no parameter is masked, no multiplication by a mask is left, and the graph's text is the one before masking, but
    for the corrections of a plan's masks, without which the graph would compute something else.
    """

    def __call__(self, graph_module: fx.GraphModule) -> PassResult:
        """Run the pass in place."""
        note_dead_axes(as_graph_module(graph_module))
        modified = remove_masks(graph_module, all_masked(graph_module))
        if modified:
            METHODS.pop(graph_module)
            graph_module.recompile()
        return PassResult(graph_module, modified)


def finalize(gm: _Graph) -> _Graph:
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
