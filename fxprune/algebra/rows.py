"""Arrays of rows: the units of each position of an axis, filled up with ``NONE``. Pure functions."""

from __future__ import annotations

import itertools

import numpy as np

from fxprune.algebra.axes import NONE, Index, Rows


def distinct(rows: Rows) -> Rows:
    """Return rows without repeated units and without empty columns."""
    for j in range(1, rows.shape[1]):
        repeated = (rows[:, j : j + 1] == rows[:, :j]).any(1)
        if repeated.any():
            rows[repeated, j] = NONE
    return without_empty(rows)


def without_empty(rows: Rows) -> Rows:
    """Return rows without the columns that have no units."""
    used = rows != NONE
    if rows.size and np.count_nonzero(used) == rows.size:
        return rows
    columns = used.any(0)
    return rows if columns.all() else np.ascontiguousarray(rows[:, columns])


def without_common(a: Rows, b: Rows) -> tuple[Rows, Rows]:
    """Return two resolved axes without the units that they share row by row."""
    equal = (a[:, :, None] == b[:, None, :]) & (a != NONE)[:, :, None]
    return distinct(np.where(equal.any(2), NONE, a)), distinct(np.where(equal.any(1), NONE, b))


def first_equal(column: Rows) -> Index:
    """Return for every entry the place of the first entry equal to it."""
    _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def determines(column: Rows, other: Rows) -> bool:
    """Tell whether entries that are equal in ``column`` are equal in ``other``."""
    return np.array_equal(other, other[first_equal(column)])


def same_partition(a: Rows, b: Rows) -> list[tuple[int, int]]:
    """Return pairs of columns that group the positions alike and have their gaps at the same places."""
    shapes_a, shapes_b = ([(first_equal(c), c == NONE) for c in rows.T] for rows in (a, b))
    pairs: list[tuple[int, int]] = []
    for i, shape in enumerate(shapes_a):
        taken = [j for _, j in pairs]
        alike = (j for j, other in enumerate(shapes_b) if j not in taken and all(map(np.array_equal, shape, other)))
        pairs += [(i, j) for j in itertools.islice(alike, 1)]
    return pairs
