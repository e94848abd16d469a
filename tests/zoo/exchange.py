"""Checks the analysis of a whole network by numbers: the units of a group are interchangeable.

Exchanging all that the units of a group own leaves the function of a network as it is - but only if the group has every
axis that its units live on, each with the right positions. Nothing needs to be known of how the network is built.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

import fxprune
from tests.compare import relative_error


def exchange_units(gm: fx.GraphModule, deps: fxprune.Dependencies, seed: int = 1) -> int:
    """Let every unit of every group take the place of another, in place; return how many moved."""
    generator, moved = np.random.default_rng(seed), 0
    tensors = {**dict(gm.named_parameters(remove_duplicate=False)), **dict(gm.named_buffers(remove_duplicate=False))}
    for group in deps.groups:
        if not all(tensors[member.parameter].is_floating_point() for member in group.members):
            continue  # an index would have to be renumbered
        cycle = generator.permutation(group.size)
        order = np.empty_like(cycle)
        order[cycle] = np.roll(cycle, 1)  # every unit moves
        moved += group.size
        for member in group.members:
            tensor = tensors[member.parameter]
            index = np.arange(tensor.shape[member.dim])
            index[member.positions] = member.positions[order]
            with torch.no_grad():
                tensor.copy_(tensor.index_select(member.dim, torch.from_numpy(index)))
    return moved


def exchange_error(
    gm: fx.GraphModule, deps: fxprune.Dependencies, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> float | None:
    """Return the relative error of the graph's results after all groups exchanged their units; None if there are none.

    In double precision where the graph can compute in it; its weights change.
    """
    try:
        precise = copy.deepcopy(gm).double()
        before = _run(precise, *_double((args, kwargs)))
        gm, (args, kwargs) = precise, _double((args, kwargs))
    except Exception:  # a graph with a dtype written into it
        before = _run(gm, args, kwargs)
    if not exchange_units(gm, deps):
        return None
    return relative_error(_run(gm, args, kwargs), before)


def _run(gm: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, gm(*args, **kwargs))


def _double(values: Any) -> Any:
    return pytree.tree_map(lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, values)
