"""What is left of axes when some units go."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.axes import NONE, Axis, Rows
from fxprune.rules.labels import Label
from fxprune.units import Units

Flags = NDArray[np.bool_]


class _Left(NamedTuple):
    """What is left of an axis: flags, their number, and the positions; None if they are all there are."""

    rows: Rows  # kept with it, so that no other array can take its identity
    flags: Flags
    size: int
    places: Tensor | None


class Kept:
    """Says of any axis of an analysis which of its positions are left.

    Args:
        units: what the analysis knows of the units.
        removed: one flag for each unit, whether it goes; a position goes with any of its units.
    """

    def __init__(self, units: Units, removed: Flags) -> None:
        self._units = units
        # The last flag is that of ``NONE``, which numpy takes for the last element.
        self._removed = np.append(removed, False)
        self._known: dict[int, _Left] = {}

    def _left(self, axis: Axis) -> _Left:
        known = self._known.get(id(axis.rows))
        if known is None:
            rows = axis.rows if axis.is_whole else self._units.resolve(axis)
            assert NONE == -1
            flags = ~np.asarray(self._removed[rows].any(1), bool)
            positions = np.flatnonzero(flags)
            places = None if len(positions) == len(flags) else torch.from_numpy(positions)
            known = self._known[id(axis.rows)] = _Left(axis.rows, flags, len(positions), places)
        return known

    def __call__(self, axis: Axis) -> Flags:
        """Return one flag for each position, whether it is left."""
        return self._left(axis).flags

    def places(self, axis: Axis) -> Tensor | None:
        """Return the positions that are left, int64 of shape (size,); None if they all are."""
        return None if axis.is_whole else self._left(axis).places

    def index(self, axis: Axis) -> NDArray[np.intp]:
        """Return the positions that are left, as an array."""
        return np.flatnonzero(self(axis))

    def size(self, axis: Axis) -> int:
        """Return how many positions are left."""
        return axis.size if axis.is_whole else self._left(axis).size

    def shape(self, label: Label) -> tuple[int, ...]:
        """Return the shape that is left of a tensor."""
        return tuple(map(self.size, label.axes))

    def shrinks(self, label: Label) -> bool:
        """Tell whether any position of a tensor goes."""
        return any(self.places(axis) is not None for axis in label.axes)
