"""The positions of axes that are left when some units go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fxprune.algebra.axes import NONE, Axis, Flags, Index
from fxprune.algebra.contents import Content
from fxprune.algebra.units import Units
from fxprune.analysis.dependencies import Dependencies
from fxprune.rules.labels import Label
from fxprune.torch_internals.tensors import pytree

Places = tuple[Tensor | None, ...]
"""For each dimension of a tensor the positions that are left; None for all positions."""


def at_places(tensor: Tensor, places: Places) -> Tensor:
    """Return the part of a tensor at the positions left of each dimension; its dimensions lie in memory as before."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True) if tensor.layout is torch.strided else []
    tensor = tensor.permute(order) if order else tensor
    for at, dim in enumerate(order or range(tensor.dim())):
        if (positions := places[dim]) is not None:
            tensor = tensor.index_select(at, positions.to(tensor.device))
    return tensor.permute([order.index(dim) for dim in range(tensor.dim())]) if order else tensor


class _Left(NamedTuple):
    """The keep vector of a content, the positions left, and these as a tensor, None if all are left."""

    flags: Flags
    positions: Index
    places: Tensor | None


class Remaining:
    """Tells which positions of an axis are left when the units flagged in ``removed`` go."""

    def __init__(self, units: Units, removed: Flags) -> None:
        self._units = units
        # NONE is -1, which indexes the flag at the end.
        self._removed = np.append(removed, False)
        self._known: dict[Content, _Left] = {}

    def _left(self, axis: Axis) -> _Left:
        content = self._units.content(axis)
        if content not in self._known:
            assert NONE == -1
            flags = ~np.asarray(self._removed[content.rows].any(1), bool)
            index = np.flatnonzero(flags)
            self._known[content] = _Left(flags, index, None if flags.all() else torch.from_numpy(index))
        return self._known[content]

    def __call__(self, axis: Axis) -> Flags:
        """Return the keep vector of an axis."""
        return self._left(axis).flags

    def places(self, axis: Axis) -> Tensor | None:
        """Return the positions that are left, int64 of shape (size,); None if all are."""
        return None if axis.is_whole else self._left(axis).places

    def index(self, axis: Axis) -> Index:
        """Return the positions that are left, one array for all axes with the same units at the same positions."""
        return self._left(axis).positions

    def size(self, axis: Axis) -> int:
        """Return how many positions are left."""
        return axis.size if axis.is_whole else len(self._left(axis).positions)

    def shape(self, label: Label) -> tuple[int, ...]:
        """Return the shape of a tensor without its removed positions."""
        return tuple(map(self.size, label.axes))

    def places_of(self, label: Label) -> Places:
        """Return for each dimension of a tensor the positions that are left; None if all are."""
        return tuple(map(self.places, label.axes))

    def shrinks_any(self, value: Any) -> bool:
        """Tell whether the tensor of any label in a value loses positions."""
        leaves = [value] if isinstance(value, Label) else pytree.tree_leaves(value)
        return any(isinstance(leaf, Label) and self.shrinks(leaf) for leaf in leaves)

    def shrinks(self, label: Label) -> bool:
        """Tell whether any position of a tensor goes."""
        return any(map(self.shrinks_axis, label.axes))

    def shrinks_axis(self, axis: Axis) -> bool:
        """Tell whether any position of an axis goes."""
        return self.places(axis) is not None


def dead_places(deps: Dependencies, kept: Remaining) -> dict[tuple[str, int], Flags]:
    """Return for every axis of a parameter or buffer that loses positions the flags of the positions that go."""
    axes = [(t.name, dim, axis) for t in deps.tracked for dim, axis in enumerate(t.label.axes)]
    return {(name, dim): ~kept(axis) for name, dim, axis in axes if kept.shrinks_axis(axis)}


def removed_units(deps: Dependencies, dead: Mapping[tuple[str, int], Flags], *, on_every_axis: bool = True) -> Flags:
    """Return a flag for each unit: whether all of its positions on parameters are dead, or all of those on one axis.

    Args:
        deps: the analysis.
        dead: flags of dead positions by parameter and dimension; an axis that is left out has no dead positions.
        on_every_axis: whether a unit goes only if it is dead on every axis that it has positions on, or if it is on one.
    """
    removed = np.zeros(deps.units.count, bool)
    for group in deps.groups:
        held = [(dead.get((m.parameter, m.dim)), m.positions) for m in group.on_parameters]
        distinct = {(id(flags), id(positions)): (flags, positions) for flags, positions in held}  # most axes are alike
        gone = [np.zeros(group.size, bool) if flags is None else flags[at].all(1) for flags, at in distinct.values()]
        removed[group.units] = np.all(gone, axis=0) if on_every_axis else np.any(gone, axis=0)
    return removed
