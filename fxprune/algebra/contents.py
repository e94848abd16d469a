"""Contents: which units stand at which positions of an axis, as far as is known now."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fxprune.algebra.axes import NONE, Index, Rows


class Owned(NamedTuple):
    """The positions of every unit.

    Example: the rows ``[[7], [4], [7]]`` give ``units=[4, 7]``, ``counts=[1, 2]``, ``positions=[1, 0, 2]``, ``first=[0, 1]``.

    Attributes:
        units: each unit once, in order.
        counts: how many positions each unit has.
        positions: the positions of the first unit in order, then those of the next.
        first: where the positions of each unit start in ``positions``.
    """

    units: Index
    counts: Index
    positions: Index
    first: Index


@dataclass(frozen=True, eq=False)
class Content:
    """The units at each position of an axis. Axes with equal units at equal positions have one and the same content.

    Attributes:
        rows: int32 array of shape (positions, k), filled up with ``NONE``, without empty columns; read only.
    """

    rows: Rows

    @property
    def size(self) -> int:
        """The number of positions."""
        return len(self.rows)

    @property
    def is_live(self) -> bool:
        """Whether some position can go."""
        return self.rows.size > 0

    @cached_property
    def is_full(self) -> bool:
        """Whether some position can go, and all have equally many units."""
        return self.is_live and np.count_nonzero(self.rows == NONE) == 0

    @cached_property
    def repeats(self) -> bool:
        """Whether in every column some unit stands at several positions."""
        return all(len(np.unique(column)) < len(column) for column in self.rows.T)

    @cached_property
    def may_go_at_once(self) -> bool:
        """Whether some unit owns the first and the last position, as a unit that owns all positions does."""
        return self.is_live and bool({*self.rows[0].tolist()} & {*self.rows[-1].tolist()} - {NONE})

    @cached_property
    def owned(self) -> Owned:
        """The positions of every unit."""
        position, column = np.nonzero(self.rows != NONE)
        owner = self.rows[position, column].astype(np.intp)
        if np.count_nonzero(owner[1:] < owner[:-1]):
            order = np.argsort(owner, kind="stable")  # positions are in order already
            owner, position = owner[order], position[order]
        first = starts(owner)
        return Owned(owner[first], np.diff(np.append(first, len(owner))), position, first)


def starts(ordered: Index) -> Index:
    """Return where each run of equal entries starts."""
    new = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return np.flatnonzero(new)
