"""What is left of axes when some units go."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fxprune.axes import NONE, Axis, Rows
from fxprune.rules.labels import Label
from fxprune.units import Units

Flags = NDArray[np.bool_]


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
        # The array of rows is kept with its flags, so that no other can take its identity.
        self._known: dict[int, tuple[Rows, Flags]] = {}

    def __call__(self, axis: Axis) -> Flags:
        """Return one flag for each position, whether it is left."""
        known = self._known.get(id(axis.rows))
        if known is None:
            rows = axis.rows if axis.is_whole else self._units.resolve(axis)
            assert NONE == -1
            gone: Flags = np.asarray(self._removed[rows].any(1), bool)
            known = self._known[id(axis.rows)] = (axis.rows, ~gone)
        return known[1]

    def index(self, axis: Axis) -> NDArray[np.intp]:
        """Return the positions that are left."""
        return np.flatnonzero(self(axis))

    def size(self, axis: Axis) -> int:
        """Return how many positions are left."""
        return axis.size if axis.is_whole else int(self(axis).sum())

    def shape(self, label: Label) -> tuple[int, ...]:
        """Return the shape that is left of a tensor."""
        return tuple(self.size(axis) for axis in label.axes)

    def shrinks(self, label: Label) -> bool:
        """Tell whether any position of a tensor goes."""
        return self.shape(label) != label.shape
