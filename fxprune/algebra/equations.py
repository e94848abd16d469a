"""What is known of single units: which are one and the same, which stand for others, which can never go.

The units that are made together for an axis are a *block*. Most couplings are of whole blocks of which nothing else is known;
those need no look at single units, and are noted once for all of the block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fxprune.algebra.axes import NONE, Axis, Index, Reason, Rows
from fxprune.algebra.rows import distinct, without_empty

_LEAST = 1 << 12  # units that there is room for once there are any
_NO_ROWS: Rows = np.empty((0, 0), np.int32)


@dataclass(eq=False)
class Resolved:
    """What rows resolve to, as long as nothing is learnt of these units.

    Attributes:
        given: the rows, kept so that no others can take their identity.
        rows: what they resolve to; read only.
        blocks: the blocks of the units in ``rows``.
        version: up to which version nothing was learnt of them.
    """

    given: Rows
    rows: Rows
    blocks: frozenset[int]
    version: int

    @cached_property
    def is_full(self) -> bool:
        """Whether there are units everywhere, equally many at each position."""
        return self.rows.size > 0 and np.count_nonzero(self.rows == NONE) == 0

    @cached_property
    def repeats(self) -> bool:
        """Whether in every column some unit stands at several positions."""
        return all(len(np.unique(column)) < len(column) for column in self.rows.T)


class _Unread(Axis):
    """An axis whose units have no numbers until somebody reads them."""

    def __init__(self, units: Equations, size: int, block: int) -> None:
        vars(self).update(_units=units, _size=size, why=None, block=block)

    @cached_property
    def rows(self) -> Rows:
        """The units of each position: this axis's own, or those that they are the same as by now."""
        rows: Rows = vars(self).pop("_units").given(self.block)
        return rows

    @property
    def size(self) -> int:
        """The number of positions."""
        size: int = vars(self)["_size"]
        return size

    @property
    def is_whole(self) -> bool:
        """Whether the axis was made without units."""
        return False


@dataclass
class Equations:
    """Units with what was learnt of them; every operation only ever adds something."""

    count: int = 0
    reasons: list[Reason] = field(default_factory=list)
    # One entry a unit: its representative; the two units it stands for; the index of its reason; its kind.
    # The last entry of each is that of NONE, so that a look-up needs no case for it.
    _parent: Rows = field(default_factory=lambda: np.full(1, NONE, np.int32))
    _parts: Rows = field(default_factory=lambda: np.full((2, 1), NONE, np.int32))
    _frozen: Rows = field(default_factory=lambda: np.full(1, NONE, np.int32))
    _kind: Rows = field(default_factory=lambda: np.full(1, NONE, np.int32))
    # One entry a kind, all units of which are a block: a kind that is the same; a block whose units are the same, in order;
    # what all units of the block resolve to, None if they have gone their own ways; rows that always resolve to the same as
    # the block's; when something was learnt of any.
    _kinds: list[int] = field(default_factory=list)
    _blocks: list[int] = field(default_factory=list)
    _block_rows: list[Rows | None] = field(default_factory=list)
    _given: list[Rows] = field(default_factory=list)
    _learnt: list[int] = field(default_factory=list)
    _unread: dict[int, int] = field(default_factory=dict)  # the sizes of blocks whose units have no numbers
    _version: int = 0
    _resolved: dict[int, Resolved] = field(default_factory=dict)

    def fresh(self, size: int) -> Axis:
        """Return an axis of ``size`` new units of one new kind, one a position."""
        block = self._new_block(size)
        return Axis(self._number(block), None, block)

    def unread(self, size: int) -> Axis:
        """Return an axis as :meth:`fresh` does, whose units take up room only if they are read before they are others'."""
        return _Unread(self, size, self._new_block(size))

    def _new_block(self, size: int) -> int:
        block = len(self._kinds)
        self._kinds.append(block)
        self._blocks.append(block)
        self._block_rows.append(None)
        self._given.append(_NO_ROWS)
        self._learnt.append(0)
        self._unread[block] = size
        return block

    def _number(self, block: int) -> Rows:
        """Give the units of a block their numbers, and return its rows."""
        start = self.count
        self.count = start + self._unread.pop(block)
        if self.count >= len(self._parent):
            self._grow(max(self.count, _LEAST, len(self._parent) + len(self._parent) // 4))
        self._kind[start : self.count] = block
        rows = np.arange(start, self.count, dtype=np.int32)[:, None]
        rows.flags.writeable = False
        self._block_rows[block] = self._given[block] = rows
        return rows

    def given(self, block: int) -> Rows:
        """Return rows that always resolve to the same as those of a block."""
        block = self._root(self._blocks, block)
        return self._number(block) if block in self._unread else self._given[block]

    def _grow(self, capacity: int) -> None:
        old = len(self._parent) - 1
        more = capacity - old
        self._parent = np.concatenate([self._parent[:old], np.arange(old, capacity, dtype=np.int32), self._parent[old:]])
        self._parts = np.concatenate([self._parts, np.full((2, more), NONE, np.int32)], 1)
        self._frozen = np.concatenate([self._frozen, np.full(more, NONE, np.int32)])
        self._kind = np.concatenate([self._kind, np.full(more, NONE, np.int32)])

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
        if axis.block >= 0:
            block = self._root(self._blocks, axis.block)
            if (rows := self._number(block) if block in self._unread else self._block_rows[block]) is not None:
                return rows
        return self._look_up(axis).rows

    def _look_up(self, axis: Axis) -> Resolved:
        rows = axis.rows if axis.block < 0 else self.given(axis.block)
        known = self._resolved.get(id(rows))
        if known is None or (
            known.version < self._version and any(self._learnt[block] > known.version for block in known.blocks)
        ):
            resolved = self._resolve(rows)
            resolved.flags.writeable = False
            known = self._resolved[id(rows)] = Resolved(rows, resolved, self._blocks_of(resolved), self._version)
        known.version = self._version
        return known

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

    def _blocks_of(self, units: Rows) -> frozenset[int]:
        """Return the blocks that units are of."""
        if not units.size:
            return frozenset()
        kinds = self._kind.take(units).T.reshape(-1)  # columns are of one kind for the most part
        changes = kinds[1:][kinds[1:] != kinds[:-1]]
        found = frozenset([int(kinds[0]), *(changes.tolist() if len(changes) < 100 else np.unique(changes).tolist())])
        return found - {NONE}

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
        table = np.array(self._kinds, np.int32)
        while np.count_nonzero(table.take(table) != table):
            table = table.take(table)
        return table[self._kind[units]]

    @staticmethod
    def _root(forest: list[int], number: int) -> int:
        """Follow a kind or a block to the one that it is the same as."""
        while forest[number] != number:
            forest[number] = number = forest[forest[number]]
        return number

    # Learning.

    def keep_whole(self, axis: Axis, why: Reason) -> None:
        """Say that no position of an axis can go."""
        rows = self.resolve(axis)
        if rows.size:
            self.keep_units_whole(rows, why)
            if axis.block >= 0:
                self._block_rows[self._root(self._blocks, axis.block)] = rows[:, :0]

    def keep_units_whole(self, rows: Rows, why: Reason) -> None:
        """Say that no unit in rows, as :meth:`resolve` gives them, can go."""
        units = rows[rows != NONE]
        if units.size:
            self._note(self._blocks_of(units))
            self._frozen[units] = len(self.reasons)
            self.reasons.append(why)

    def join(self, one: Axis, other: Axis) -> bool:
        """Couple two axes if one is a block of which nothing is known, or if both are whole; other axes stay as they are.

        Returns:
            Whether the same positions of both go together now.
        """
        if one.size != other.size:
            return False
        if one.is_whole or other.is_whole:
            return one.is_whole and other.is_whole
        low, high = (self._root(self._blocks, axis.block) if axis.block >= 0 else -1 for axis in (one, other))
        if low == high and (low >= 0 or one.rows is other.rows):
            return True
        if not self._is_free(low):
            return self._is_free(high) and self._follow(high, one)
        if not self._is_free(high):
            return self._follow(low, other)
        low, high = min(low, high), max(low, high)
        if high not in self._unread:
            self._parent[self._units_of(high)] = self._units_of(low)
        self._note([high])
        self._blocks[high] = low
        self._join_kinds(low, high)
        return True

    def _is_free(self, block: int) -> bool:
        """Tell whether nothing is known of a block's units."""
        return block in self._unread or (block >= 0 and (rows := self._block_rows[block]) is not None and rows.size > 0)

    def _follow(self, block: int, axis: Axis) -> bool:
        """Couple a block of which nothing is known with an axis if that leaves the units of the axis as they are."""
        known = self._look_up(axis)
        if block in known.blocks or not known.is_full:
            return False
        width, is_read = known.rows.shape[1], block not in self._unread
        if width == 1 and block > max(known.blocks):  # of units that are the same the first is the representative
            if is_read:
                self._parent[self._units_of(block)] = known.rows[:, 0]
            for kind in known.blocks:
                self._join_kinds(kind, block)
        elif width == 2 and known.repeats:  # none of the units could be the same as one of the block
            if is_read:
                self._parts[:, self._units_of(block)] = known.rows.T
        else:
            return False
        self._note([block])
        self._given[block] = known.given
        return True

    def halve(self, axis: Axis, outer: int) -> tuple[Axis, Axis] | None:
        """Split an axis if it is a block of which nothing is known: its units stand for pairs of new ones."""
        block = self._root(self._blocks, axis.block) if axis.block >= 0 else -1
        if not self._is_free(block):
            return None
        inner, is_read = axis.size // outer, block not in self._unread
        first, second = self.fresh(outer), self.fresh(inner)
        pairs = np.stack([np.repeat(first.rows, inner), np.tile(second.rows[:, 0], outer)], 1)
        if is_read:
            self._parts[:, self._units_of(block)] = pairs.T
        else:
            self._given[block] = pairs
        self._note([block])
        return Axis(first.rows, axis.why, first.block), Axis(second.rows, axis.why, second.block)

    def axis_of(self, rows: Rows, why: Reason | None) -> Axis:
        """Return an axis of resolved rows, a block if they are all of one of which nothing is known."""
        if rows.shape[1] == 1 and len(rows) and rows[0, 0] != NONE:
            block = int(self._kind[rows[0, 0]])
            same = self._block_rows[block]
            if same is not None and np.array_equal(same, rows):
                return Axis(same, why, block)
        return Axis(rows, why)

    def _units_of(self, block: int) -> Rows:
        """Return the units of a block of which nothing is known."""
        rows = self._number(block) if block in self._unread else self._block_rows[block]
        assert rows is not None
        return rows[:, 0]

    def _note(self, blocks: Iterable[int]) -> None:
        """Take note that something is learnt of single units of these blocks."""
        self._version += 1
        for block in blocks:
            self._learnt[block] = self._version
            self._block_rows[block] = None
            self._unread.pop(block, None)

    def _stand_for(self, units: Rows, parts: Rows) -> None:
        """Replace units by the pairs in ``parts``; ``NONE`` comes second in a pair, if at all."""
        self._note(self._blocks_of(units))
        self._parts[:, units] = parts.T

    def _unite(self, a: Rows, b: Rows) -> None:
        """Make units equal pairwise; places with a ``NONE`` on either side are left out."""
        a, b = self.find(a), self.find(b)
        use = (a != b) & (a != NONE) & (b != NONE)
        if not np.count_nonzero(use):
            return
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
            self._note((pair >> 32, pair & 0xFFFFFFFF))
            self._join_kinds(pair >> 32, pair & 0xFFFFFFFF)

    def _join_kinds(self, one: int, other: int) -> None:
        one, other = self._root(self._kinds, one), self._root(self._kinds, other)
        self._kinds[max(one, other)] = min(one, other)
