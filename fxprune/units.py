"""Units and axes: which positions of which axes have to be removed together.

A *unit* is the smallest thing that can be removed. An :class:`fxprune.axes.Axis` of n positions is an ``(n, k)`` array of
units: position i goes as soon as ANY unit of row i goes; an empty row never goes. :class:`Units` holds what is known about
the units: which are one and the same (union-find), which stand for a set of others (substitution), and which can never go
(frozen, with a reason). Everything works on whole arrays.

Every operation only ever adds equations between units, so an axis made earlier stays right: :meth:`Units.resolve` reads it
in the light of all that was learnt since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fxprune.axes import NONE, Axis, Index, Reason, Rows
from fxprune.errors import AnalysisError
from fxprune.rows import determines, distinct, first_equal, same_partition, without_common, without_empty

_MAX_ROUNDS = 16  # splits and couplings that have not settled by then are frozen


@dataclass
class Units:
    """What is known about all units made so far.

    Example:
        >>> units = Units()
        >>> channels = units.fresh(6)
        >>> heads, dims = units.split(channels, 2, Reason("a view"))
        >>> units.resolve(channels).tolist()  # every channel goes with its head or with its place in the head
        [[6, 8], [6, 9], [6, 10], [7, 8], [7, 9], [7, 10]]
    """

    count: int = 0
    reasons: list[Reason] = field(default_factory=list)
    # One entry a unit: its representative; the two units it stands for; the index of its reason; its kind.
    # The last entry of each is that of NONE, so that a look-up needs no case for it.
    _parent: Rows = field(default_factory=lambda: np.full(1, NONE, np.int32))
    _parts: Rows = field(default_factory=lambda: np.full((2, 1), NONE, np.int32))
    _frozen: Rows = field(default_factory=lambda: np.full(1, NONE, np.int32))
    _kind: Rows = field(default_factory=lambda: np.zeros(1, np.int32))
    _kinds: list[int] = field(default_factory=list)
    # What rows resolve to, until something is learnt; with the rows, so that no others can take their identity.
    _resolved: dict[int, tuple[Rows, Rows]] = field(default_factory=dict)

    def fresh(self, size: int) -> Axis:
        """Return an axis of ``size`` new units of one new kind, one a position."""
        start, self.count = self.count, self.count + size
        if self.count >= len(self._parent):
            self._grow(max(self.count, len(self._parent) + len(self._parent) // 4))
        self._kind[start : self.count] = len(self._kinds)
        self._kinds.append(len(self._kinds))
        return Axis(np.arange(start, self.count, dtype=np.int32)[:, None])

    def _grow(self, capacity: int) -> None:
        old = len(self._parent) - 1
        more = capacity - old
        self._parent = np.concatenate([self._parent[:old], np.arange(old, capacity, dtype=np.int32), self._parent[old:]])
        self._parts = np.concatenate([self._parts, np.full((2, more), NONE, np.int32)], 1)
        self._frozen = np.concatenate([self._frozen, np.full(more, NONE, np.int32)])
        self._kind = np.concatenate([self._kind, np.zeros(more, np.int32)])

    # Reading.

    def find(self, units: Rows) -> Rows:
        """Return the representative of every unit; ``NONE`` stays."""
        near: Rows = self._parent.take(units)
        roots, above = near, self._parent.take(near)
        while np.count_nonzero(above != roots):
            roots, above = above, self._parent.take(above)
        if roots is not near:
            self._parent[units] = roots
        return roots

    def resolve(self, axis: Axis) -> Rows:
        """Return the rows of an axis as sets of units that can still go, each once in a row.

        Returns:
            int32 array of shape (positions, k), without empty columns; read only.
        """
        known = self._resolved.get(id(axis.rows))
        if known is None:
            rows = self._resolve(axis.rows)
            rows.flags.writeable = False
            known = self._resolved[id(axis.rows)] = axis.rows, rows
        return known[1]

    def _resolve(self, rows: Rows) -> Rows:
        rows = self.find(rows)
        while rows.size:
            left = self._parts[0].take(rows)
            split = left != NONE
            if not np.count_nonzero(split):
                break
            left = np.where(split, left, rows)
            right = np.where(split, self._parts[1].take(rows), NONE)
            # A unit's parts stand side by side in its place, so that columns stay of one kind.
            wide = np.stack([left, right], 2).reshape(len(rows), -1)
            rows = self.find(without_empty(wide))
        held = self._frozen.take(rows) >= 0
        if np.count_nonzero(held):
            rows[held] = NONE
        return distinct(rows)

    def reason(self, unit: int) -> Reason | None:
        """Return why a unit is frozen, or None if it is not, or not as a whole."""
        root = int(self.find(np.array([unit], np.int32))[0])
        return self.reasons[self._frozen[root]] if self._frozen[root] >= 0 else None

    def reasons_of(self, axis: Axis) -> list[Reason]:
        """Return why units of an axis, or parts of them, are frozen; each reason once, the most frequent first."""
        if axis.is_whole:
            return [axis.why] if axis.why else []
        found: Rows = np.unique(self.find(axis.rows))
        seen: list[Rows] = []
        while found.size and (found := found[found != NONE]).size:
            seen.append(found)
            found = np.unique(self.find(self._parts[:, found].reshape(-1)))
        roots = np.concatenate(seen) if seen else np.empty(0, np.int32)
        numbers, counts = np.unique(self._frozen[roots][self._frozen[roots] >= 0], return_counts=True)
        return [self.reasons[i] for i in numbers[np.argsort(-counts, kind="stable")]]

    def kind_of(self, units: Index) -> Rows:
        """Return a number for every unit, the same for units made together or united."""
        table = np.array([self._kind_root(k) for k in range(len(self._kinds))], np.int32)
        return table[self._kind[units]]

    def _kind_root(self, kind: int) -> int:
        while self._kinds[kind] != kind:
            self._kinds[kind] = kind = self._kinds[self._kinds[kind]]
        return kind

    # Learning.

    def freeze(self, axis: Axis, why: Reason) -> None:
        """Say that no position of an axis can go."""
        self.freeze_units(self.resolve(axis), why)

    def freeze_units(self, rows: Rows, why: Reason) -> None:
        """Say that no unit in rows, as :meth:`resolve` gives them, can go."""
        units = rows[rows != NONE]
        if units.size:
            self._resolved.clear()
            self._frozen[units] = len(self.reasons)
            self.reasons.append(why)

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

    def freeze_covering(self, axis: Axis, why: Reason) -> None:
        """Say that units which own every position of an axis cannot go: nothing would be left."""
        rows = self.resolve(axis)
        if rows.size:
            units, counts = np.unique(rows[rows != NONE], return_counts=True)
            self.freeze_units(units[counts == len(rows)], why)

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
        if one.rows is other.rows:
            return  # every position meets itself
        if one.is_whole or other.is_whole:
            live, whole = (other, one) if one.is_whole else (one, other)
            if not live.is_whole:
                self.freeze(live, replace(why, because=whole.why and (whole.why.because or whole.why)))
            return
        known = len(self.reasons)
        for _ in range(_MAX_ROUNDS):
            if self._couple_once(self.resolve(one), self.resolve(other), why):
                break
        else:
            self.freeze(one, why)
            self.freeze(other, why)
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
                self.freeze_units(a[lone], why)
                self.freeze_units(b[lone], why)
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
                self.freeze_units(column[used], why)
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

    def _stand_for(self, units: Rows, parts: Rows) -> None:
        """Replace units by the pairs in ``parts``; ``NONE`` comes second in a pair, if at all."""
        self._resolved.clear()
        self._parts[:, units] = parts.T

    def _unite(self, a: Rows, b: Rows) -> None:
        """Make units equal pairwise; places with a ``NONE`` on either side are left out."""
        a, b = self.find(a), self.find(b)
        use = (a != b) & (a != NONE) & (b != NONE)
        if not np.count_nonzero(use):
            return
        self._resolved.clear()
        if not use.all():
            a, b = a[use], b[use]
        self._unite_kinds(self._kind.take(a), self._kind.take(b))
        while len(a):
            low, high = np.minimum(a, b), np.maximum(a, b)
            reasons = self._frozen.take(high)
            if np.count_nonzero(reasons >= 0):
                np.maximum.at(self._frozen, low, reasons)
            # Of several claims on one unit the smallest wins; the next round carries the others on.
            np.minimum.at(self._parent, high, low)
            lost = self._parent.take(high) != low
            a, b = self.find(low[lost]), self.find(high[lost])
            rest = a != b
            a, b = a[rest], b[rest]

    def _unite_kinds(self, a: Rows, b: Rows) -> None:
        pairs = a.astype(np.int64) << 32 | b
        # Units of a kind mostly stand side by side, so that there are few places where the pair of kinds changes.
        changed = pairs[1:][pairs[1:] != pairs[:-1]]
        for pair in sorted({int(pairs[0]), *changed.tolist()}):
            one, other = self._kind_root(pair >> 32), self._kind_root(pair & 0xFFFFFFFF)
            self._kinds[max(one, other)] = min(one, other)

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
        for _ in range(_MAX_ROUNDS):
            rows = self.resolve(axis).reshape(outer, inner, -1)
            along_outer = (rows == rows[:, :1]).all((0, 1))
            along_inner = (rows == rows[:1]).all((0, 1))
            # A unit that every position has can never go; it would take all of them.
            both = along_outer & along_inner
            if both.any():
                self.freeze_units(rows[0, 0, both], why)
                continue
            mixed = np.flatnonzero(~along_outer & ~along_inner)
            if not len(mixed):
                return Axis(rows[:, 0, along_outer], axis.why), Axis(rows[0][:, along_inner], axis.why)
            self._factor(rows[:, :, mixed[0]], why)
        self.freeze(axis, why)
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
            self.freeze_units(self.find(first_of[row[flat == NONE]]), why)
            self.freeze_units(self.find(second_of[column[flat == NONE]]), why)
