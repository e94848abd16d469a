"""What fxprune keeps in the ``meta`` of graphs and nodes."""

from __future__ import annotations

from typing import Any

from torch import fx

# GraphModule.meta is what torch.fx carries through deepcopy and pickle.
_METHODS = "fxprune.methods"


def methods_of(gm: fx.GraphModule) -> dict[str, Any]:
    """Return the record of pruning methods by parameter name (the first of its names), as kept in ``gm.meta``."""
    record: dict[str, Any] = gm.meta.setdefault(_METHODS, {})
    return record


def forget_methods(gm: fx.GraphModule) -> None:
    """Drop the record of pruning methods."""
    gm.meta.pop(_METHODS, None)
