"""What is left of axes when some units go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.algebra.axes import NONE, Axis, Index
from fxprune.algebra.contents import Content
from fxprune.algebra.units import Units
from fxprune.analysis.dependencies import Dependencies
from fxprune.rules.labels import Label
from fxprune.torch_internals.tensors import pytree

Flags = NDArray[np.bool_]
Places = tuple[Tensor | None, ...]


# What holds no labels and is a value of its own.
PLAIN = (int, float, bool, str, type(None))


class _Left(NamedTuple):
    """What is left of an axis: one flag for each position, the positions left, and these as a tensor, None if all are."""

    flags: Flags
    positions: Index
    places: Tensor | None


class Remaining:
    """Says of any axis of an analysis which of its positions are left.

    Args:
        units: what the analysis knows of the units.
        removed: one flag for each unit, whether it goes; a position goes with any of its units.
    """

    def __init__(self, units: Units, removed: Flags) -> None:
        self._units = units
        # The last flag is that of ``NONE``, which numpy takes for the last element.
        self._removed = np.append(removed, False)
        self._known: dict[Content, _Left] = {}

    def _left(self, axis: Axis) -> _Left:
        content = self._units.content(axis)
        left = self._known.get(content)
        if left is None:
            assert NONE == -1
            flags = ~np.asarray(self._removed[content.rows].any(1), bool)
            index = np.flatnonzero(flags)
            left = self._known[content] = _Left(flags, index, None if flags.all() else torch.from_numpy(index))
        return left

    def __call__(self, axis: Axis) -> Flags:
        """Return one flag for each position, whether it is left."""
        return self._left(axis).flags

    def places(self, axis: Axis) -> Tensor | None:
        """Return the positions that are left, int64 of shape (size,); None if they all are."""
        return None if axis.is_whole else self._left(axis).places

    def index(self, axis: Axis) -> Index:
        """Return the positions that are left, one array for all axes with the same units at the same positions."""
        return self._left(axis).positions

    def size(self, axis: Axis) -> int:
        """Return how many positions are left."""
        return axis.size if axis.is_whole else len(self._left(axis).positions)

    def shape(self, label: Label) -> tuple[int, ...]:
        """Return the shape that is left of a tensor."""
        return tuple(map(self.size, label.axes))

    def places_of(self, label: Label) -> Places:
        """Return for each dimension of a tensor the positions that are left; None if they all are."""
        return tuple(map(self.places, label.axes))

    def shrinks_any(self, value: Any) -> bool:
        """Tell whether any label in a value stands for a tensor that loses positions."""
        if isinstance(value, Label):
            return self.shrinks(value)
        if type(value) in (tuple, list):
            return any(map(self.shrinks_any, value))
        return type(value) not in PLAIN and any(map(self.shrinks_any, leaves(value)))

    def shrinks(self, label: Label) -> bool:
        """Tell whether any position of a tensor goes."""
        return any(self.places(axis) is not None for axis in label.axes)


def leaves(value: Any) -> list[Any]:
    """Return the leaves of a value that has some besides itself."""
    found = pytree.tree_leaves(value)
    return [] if len(found) == 1 and found[0] is value else found


def removed_units(deps: Dependencies, dead: Mapping[tuple[str, int], Flags]) -> Flags:
    """Return which units go: those all of whose positions on parameters are dead.

    Args:
        deps: the analysis.
        dead: flags of dead positions by parameter and dimension; axes that are not named have none.
    """
    removed = np.zeros(deps.units.count, bool)
    for group in deps.groups:
        gone = np.ones(group.size, bool)
        for member in group.members:
            if not member.is_buffer:
                flags = dead.get((member.parameter, member.dim))
                gone &= False if flags is None else flags[member.positions].all(1)
        removed[group.units] = gone
    return removed
