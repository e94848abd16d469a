"""Units and axes: which positions of which axes have to be removed together.

A *unit* is the smallest thing that can be removed. An :class:`~fxprune.algebra.axes.Axis` of n positions is an ``(n, k)``
array of units: position i goes as soon as ANY unit of row i goes; an empty row never goes. :class:`Units` holds what is known
about the units: which are one and the same (union-find), which stand for a set of others (substitution), and which have to
stay whole (with a reason). Everything works on whole arrays.

Every operation only ever adds equations between units, so an axis made earlier stays right: :meth:`Units.resolve` reads it
in the light of all that was learnt since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fxprune.algebra.axes import NONE, Axis, Reason, Rows
from fxprune.algebra.equations import Equations
from fxprune.algebra.rows import determines, first_equal, same_partition, without_common
from fxprune.errors import AnalysisError

_MAX_ROUNDS = 16  # splits and couplings that have not settled by then are frozen


@dataclass
class Units(Equations):
    """What is known about all units made so far.

    Example:
        >>> units = Units()
        >>> channels = units.fresh(6)
        >>> heads, dims = units.split(channels, 2, Reason("a view"))
        >>> units.resolve(channels).tolist()  # every channel goes with its head or with its place in the head
        [[6, 8], [6, 9], [6, 10], [7, 8], [7, 9], [7, 10]]
    """

    def may_cover(self, axes: Sequence[Axis]) -> list[bool]:
        """Tell of each axis whether some unit owns its first and its last position, as one that owns all of them does."""
        width = max((axis.rows.shape[1] for axis in axes), default=0)
        ends = np.full((2, len(axes), width), NONE, np.int32)
        for i, axis in enumerate(axes):
            if axis.size:
                ends[0, i, : axis.rows.shape[1]], ends[1, i, : axis.rows.shape[1]] = axis.rows[0], axis.rows[-1]
        rows = self.resolve(Axis(ends.reshape(2 * len(axes), width)))
        first, last = rows[: len(axes), :, None], rows[len(axes) :, None, :]
        found: list[bool] = ((first == last) & (first != NONE)).any((1, 2)).tolist()
        return found

    def keep_covering_whole(self, axis: Axis, why: Reason) -> None:
        """Say that units which own every position of an axis cannot go: nothing would be left."""
        rows = self.resolve(axis)
        if rows.size:
            units, counts = np.unique(rows[rows != NONE], return_counts=True)
            self.keep_units_whole(units[counts == len(rows)], why)

    def couple(self, one: Axis, other: Axis, why: Reason) -> None:
        """Say that a position of one axis goes if and only if the same position of the other goes.

        Args:
            one: an axis.
            other: an axis of the same size.
            why: the reason to note where a position of either can never go.

        Raises:
            AnalysisError: the axes are of different sizes.
        """
        if one.size != other.size:
            raise AnalysisError(f"axes of {one.size} and {other.size} positions cannot be coupled")
        if one is other or self.join(one, other):
            return
        if one.is_whole or other.is_whole:
            live, whole = (other, one) if one.is_whole else (one, other)
            if not live.is_whole:
                self.keep_whole(live, replace(why, because=whole.why and (whole.why.because or whole.why)))
            return
        known = len(self.reasons)
        for _ in range(_MAX_ROUNDS):
            if self._couple_once(self.resolve(one), self.resolve(other), why):
                break
        else:
            self.keep_whole(one, why)
            self.keep_whole(other, why)
        if len(self.reasons) > known:
            roots = [r.because or r for r in self.reasons_of(one) + self.reasons_of(other) if r not in self.reasons[known:]]
            self.reasons[known:] = [replace(r, because=roots[0] if roots else None) for r in self.reasons[known:]]

    def _couple_once(self, a: Rows, b: Rows, why: Reason) -> bool:
        """Bring two resolved axes closer to being equal; tell whether they are now."""
        if a.shape == b.shape and a.shape[1] <= 1:
            self._couple_columns(a, b, why)
            return True
        rest_a, rest_b = without_common(a, b)
        if not rest_a.shape[1] and not rest_b.shape[1]:
            return True
        if pairs := same_partition(rest_a, rest_b):
            for i, j in pairs:
                self._unite(rest_a[:, i], rest_b[:, j])
            return False
        for single, many in ((rest_b, rest_a), (rest_a, rest_b)):
            if single.shape[1] == 1 and many.shape[1] > 1 and self._substitute_rows(single[:, 0], many):
                return False
        empty_a, empty_b = (rest_a == NONE).all(1), (rest_b == NONE).all(1)
        if (empty_a & ~empty_b).any() or (empty_b & ~empty_a).any():
            self._settle_rest(rest_a[empty_b], a[empty_b], why)
            self._settle_rest(rest_b[empty_a], b[empty_a], why)
            return False
        # Nothing finer is known to hold: all units of a row go together.
        both = np.concatenate([rest_a, rest_b], 1)
        first = both[np.arange(len(both)), (both != NONE).argmax(1)]
        for column in both.T:
            self._unite(column, first)
        return False

    def _couple_columns(self, a: Rows, b: Rows, why: Reason) -> None:
        """Couple two resolved axes of at most one unit a position."""
        if a.shape[1]:
            gaps_a, gaps_b = a == NONE, b == NONE
            lone = gaps_a != gaps_b
            if np.count_nonzero(lone):
                self.keep_units_whole(a[lone], why)
                self.keep_units_whole(b[lone], why)
            self._unite(a[:, 0], b[:, 0])

    def _settle_rest(self, rest: Rows, full: Rows, why: Reason) -> None:
        """Make rows go only when those units of theirs go that the other side has too.

        A unit that always comes with the same other unit can go along with it; any other must stay.
        """
        for column in rest.T:
            used = column != NONE
            partner = None
            for other in full[used].T:
                if not (other == NONE).any() and not np.isin(other, rest).any() and determines(column[used], other):
                    partner = other
            if partner is None:
                self.keep_units_whole(column[used], why)
            else:
                self._unite(column[used], partner)

    def _substitute_rows(self, single: Rows, many: Rows) -> bool:
        """Let each unit of a column stand for the set of units that the same row of ``many`` has, if that is sound."""
        if (single == NONE).any() or (many == NONE).all(1).any() or np.isin(single, many).any():
            return False
        first = first_equal(single)
        if not np.array_equal(np.sort(many, 1), np.sort(many[first], 1)):
            return False  # a unit that meets two different sets
        at = np.unique(first)
        units, sets = single[at], many[at]
        sets = np.take_along_axis(sets, np.argsort(sets == NONE, 1, kind="stable"), 1)  # fillers last
        while sets.shape[1] > 2:
            tail, some = self.fresh(len(units)).rows[:, 0], sets[:, -2] != NONE
            self._stand_for(tail[some], sets[some, -2:])
            sets = np.concatenate([sets[:, :-2], np.where(some, tail, NONE)[:, None]], 1)
        self._stand_for(units, sets)
        return True

    def split(self, axis: Axis, outer: int, why: Reason) -> tuple[Axis, Axis]:
        """Split an axis in two, as a view of a*b positions as (a, b) does.

        Units that do not vary along one of the two go to the other. A unit for each pair of positions is replaced: it
        stands from now on for a new unit of the first axis together with a new one of the second.

        Args:
            axis: the axis.
            outer: the size of the first, outer axis; divides the size of ``axis``.
            why: the reason to note where units have to freeze.

        Returns:
            The outer and the inner axis; merging them gives rows equal to those of ``axis``.

        Raises:
            AnalysisError: ``outer`` does not divide the size.
        """
        if outer < 1 or axis.size % outer:
            raise AnalysisError(f"an axis of {axis.size} positions cannot be split into {outer} parts")
        inner = axis.size // outer
        if axis.is_whole or outer == 1 or inner == 1:
            one = Axis.whole(1, axis.why)
            if inner == 1:
                return axis, one
            return (one, axis) if outer == 1 else (Axis.whole(outer, axis.why), Axis.whole(inner, axis.why))
        if (parts := self.halve(axis, outer)) is not None:
            return parts
        for _ in range(_MAX_ROUNDS):
            rows = self.resolve(axis).reshape(outer, inner, -1)
            along_outer = (rows == rows[:, :1]).all((0, 1))
            along_inner = (rows == rows[:1]).all((0, 1))
            # A unit that every position has can never go; it would take all of them.
            both = along_outer & along_inner
            if both.any():
                self.keep_units_whole(rows[0, 0, both], why)
                continue
            mixed = np.flatnonzero(~along_outer & ~along_inner)
            if not len(mixed):
                return self.axis_of(rows[:, 0, along_outer], axis.why), self.axis_of(rows[0][:, along_inner], axis.why)
            self._factor(rows[:, :, mixed[0]], why)
        self.keep_whole(axis, why)
        return Axis.whole(outer, why), Axis.whole(inner, why)

    def _factor(self, units: Rows, why: Reason) -> None:
        """Let every unit of an (a, b) array stand for one new unit of its row and one of its column."""
        a, b = units.shape
        first_of, second_of = self.fresh(a).rows[:, 0], self.fresh(b).rows[:, 0]
        flat = units.reshape(-1)
        row, column = np.divmod(np.arange(a * b), b)
        first = first_equal(flat)
        # A unit in several places stands for the same pair in all of them.
        self._unite(first_of[row], first_of[row[first]])
        self._unite(second_of[column], second_of[column[first]])
        at = np.unique(first[flat != NONE])
        self._stand_for(flat[at], np.stack([self.find(first_of[row[at]]), self.find(second_of[column[at]])], 1))
        if (flat == NONE).any():
            self.keep_units_whole(self.find(first_of[row[flat == NONE]]), why)
            self.keep_units_whole(self.find(second_of[column[flat == NONE]]), why)
