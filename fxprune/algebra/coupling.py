"""Coupling: the equations between units that make rows equal, or split an array of units into rows and columns."""

from __future__ import annotations

import numpy as np

from fxprune.algebra.axes import NONE, Reason, Rows
from fxprune.algebra.equations import Equations
from fxprune.algebra.rows import determines, first_equal, same_partition, without_common


def couple_once(equations: Equations, a: Rows, b: Rows, why: Reason) -> bool:
    """Bring the resolved rows of two axes closer to being equal; tell whether they are now.

    Units that both sides have at a position are left out. For what remains the first of these cases that fits is taken:

    1. *At most one unit a position.* ``[[0], [1]]`` and ``[[2], [3]]``: 0 and 2 become the same, 1 and 3 too. Where the other
       side has none, as in ``[[0], [1]]`` and ``[[2], [NONE]]``, unit 1 is held.
    2. *Columns that repeat alike.* Two views (2, 2), ``[[0, 2], [0, 3], [1, 2], [1, 3]]`` and the same of 4 to 7: the first
       columns become the same, then the second ones.
    3. *One unit against several.* ``[[4], [5]]`` and ``[[0, 2], [1, 3]]``: unit 4 stands for 0 and 2 from now on,
       5 for 1 and 3.
    4. *Nothing against something.* Of ``[[0], ...]`` and ``[[0, 2], ...]`` unit 2 remains on one side. It may not go alone: it
       is held, or becomes the same as a unit that it always stands beside.
    5. *Anything else.* ``[[0, 1]]`` and ``[[2, 3]]``: all units of a position become the same.
    """
    if a.shape[1] == b.shape[1] == 1:
        lone = (a == NONE) != (b == NONE)
        equations.hold(a[lone], why)
        equations.hold(b[lone], why)
        equations.unite(a[:, 0], b[:, 0])
        return True
    rest_a, rest_b = without_common(a, b)
    if not rest_a.shape[1] and not rest_b.shape[1]:
        return True
    if pairs := same_partition(rest_a, rest_b):
        for i, j in pairs:
            equations.unite(rest_a[:, i], rest_b[:, j])
        return False
    for single, many in ((rest_b, rest_a), (rest_a, rest_b)):
        if single.shape[1] == 1 and many.shape[1] > 1 and _substitute(equations, single[:, 0], many):
            return False
    empty_a, empty_b = (rest_a == NONE).all(1), (rest_b == NONE).all(1)
    if (empty_a & ~empty_b).any() or (empty_b & ~empty_a).any():
        _settle_rest(equations, rest_a[empty_b], a[empty_b], why)
        _settle_rest(equations, rest_b[empty_a], b[empty_a], why)
        return False
    both = np.concatenate([rest_a, rest_b], 1)
    first = both[np.arange(len(both)), (both != NONE).argmax(1)]
    for column in both.T:
        equations.unite(column, first)
    return False


def _settle_rest(equations: Equations, rest: Rows, full: Rows, why: Reason) -> None:
    """Settle the units in ``rest``, which the other side lacks: none of them may go alone.

    A unit that always stands beside one and the same unit of both sides becomes the same as that unit. Any other unit is held.
    """
    for column in rest.T:
        used = column != NONE
        partner = None
        for other in full[used].T:
            if not (other == NONE).any() and not np.isin(other, rest).any() and determines(column[used], other):
                partner = other
        if partner is None:
            equations.hold(column[used], why)
        else:
            equations.unite(column[used], partner)


def _substitute(equations: Equations, single: Rows, many: Rows) -> bool:
    """Let each unit of a column stand for the units in the same row of ``many``, if these are the same wherever it stands."""
    if (single == NONE).any() or (many == NONE).all(1).any() or np.isin(single, many).any():
        return False
    first = first_equal(single)
    if not np.array_equal(np.sort(many, 1), np.sort(many[first], 1)):
        return False  # a unit that meets two different sets
    at = np.unique(first)
    units, sets = single[at], many[at]
    sets = np.take_along_axis(sets, np.argsort(sets == NONE, 1, kind="stable"), 1)  # fillers last
    while sets.shape[1] > 2:
        tail, some = equations.fresh(len(units)), sets[:, -2] != NONE
        equations.stand_for(tail[some], sets[some, -2:])
        sets = np.concatenate([sets[:, :-2], np.where(some, tail, NONE)[:, None]], 1)
    equations.stand_for(units, sets)
    return True


def factor(equations: Equations, units: Rows, why: Reason) -> None:
    """Let every unit of an (a, b) array stand for one new unit of its row and one of its column."""
    a, b = units.shape
    first_of, second_of = equations.fresh(a), equations.fresh(b)
    flat = units.reshape(-1)
    row, column = np.divmod(np.arange(a * b), b)
    first = first_equal(flat)
    # A unit in several places stands for the same pair in all of them.
    equations.unite(first_of[row], first_of[row[first]])
    equations.unite(second_of[column], second_of[column[first]])
    at = np.unique(first[flat != NONE])
    pairs = np.stack([equations.find(first_of[row[at]]), equations.find(second_of[column[at]])], 1)
    equations.stand_for(flat[at], pairs)
    if (flat == NONE).any():
        equations.hold(equations.find(first_of[row[flat == NONE]]), why)
        equations.hold(equations.find(second_of[column[flat == NONE]]), why)
