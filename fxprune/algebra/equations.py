"""Equations: all facts about single units.

Units are numbers. A unit may be the same as another one, may stand for two others, or may be held by a reason. Nothing here
knows of axes: :class:`~fxprune.algebra.units.Units` does.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from networkx.utils import UnionFind

from fxprune.algebra.axes import NONE, Reason, Rows
from fxprune.algebra.blocks import Block
from fxprune.algebra.rows import distinct, without_empty

_LEAST = 1 << 12  # the arrays' size at the first unit


class Equations:
    """Units and the equations between them.

    Example: blocks 0 and 1 have the units 0, 1 and 2, 3.

    - ``unite([0, 1], [2, 3])`` makes unit 2 the same as 0 and 3 the same as 1: ``_parent`` is ``[0, 1, 0, 1]``, and both blocks
      are of one kind.
    - ``stand_for([0], [[4, 6]])`` lets unit 0 stand for the units 4 and 6: a position with unit 0 goes if 4 or 6 goes.
    - ``hold([1], why)`` says that unit 1 can never go.
    - ``resolved([[2], [3]])`` is then ``[[4, 6], [NONE, NONE]]``.

    Attributes:
        count: how many units have numbers.
        reasons: why units are held.
        blocks: the units made together, by number.
        kinds: the numbers of blocks, in one set where some units are the same.
        version: how often something was learnt.
    """

    def __init__(self) -> None:
        self.count = self.version = 0
        self.reasons: list[Reason] = []
        self.blocks: list[Block] = []
        self.kinds: UnionFind[int] = UnionFind()
        # One entry a unit. The last entry of each is that of NONE, so that a look-up needs no case for it.
        self._parent: Rows = np.full(1, NONE, np.int32)  # a unit that is the same and has a lower number, or the unit itself
        self._parts: Rows = np.full((2, 1), NONE, np.int32)  # the two units that a unit stands for; the second may be NONE
        self._held: Rows = np.full(1, NONE, np.int32)  # the index of the reason that holds a unit
        self._block: Rows = np.full(1, NONE, np.int32)  # the number of the block that a unit was made in

    # Making.

    def block(self, size: int) -> Block:
        """Return a new block, whose units have no numbers yet."""
        block = Block(len(self.blocks), size)
        self.blocks.append(block)
        return block

    def numbered(self, block: Block) -> Rows:
        """Return the units of a block, shape (size, 1); gives them their numbers if they have none."""
        if block.rows is None:
            start, self.count = self.count, self.count + block.size
            if self.count >= len(self._parent):
                self._grow(max(self.count, _LEAST, len(self._parent) + len(self._parent) // 4))
            self._block[start : self.count] = block.number
            block.rows = np.arange(start, self.count, dtype=np.int32)[:, None]
            block.rows.flags.writeable = False
        return block.rows

    def fresh(self, size: int) -> Rows:
        """Return new units of a block of their own, shape (size,)."""
        return self.numbered(self.block(size))[:, 0]

    def block_of(self, unit: int) -> Block:
        """Return the block that a unit was made in."""
        return self.blocks[int(self._block[unit])]

    def _grow(self, capacity: int) -> None:
        old = len(self._parent) - 1
        more = np.full(capacity - old, NONE, np.int32)
        self._parent = np.concatenate([self._parent[:old], np.arange(old, capacity, dtype=np.int32), self._parent[old:]])
        self._parts = np.concatenate([self._parts, np.stack([more, more])], 1)
        self._held = np.concatenate([self._held, more])
        self._block = np.concatenate([self._block, more])

    # Reading.

    def find(self, units: Rows) -> Rows:
        """Return for every unit the same unit of lowest number; ``NONE`` stays."""
        near: Rows = self._parent.take(units)
        roots, above = near, self._parent.take(near)
        while np.count_nonzero(above != roots):
            roots, above = above, self._parent.take(above)
        if roots is not near:
            self._parent[units] = roots
        return roots

    def resolved(self, rows: Rows) -> Rows:
        """Return rows as sets of units that can still go, each once in a row, without empty columns; read only."""
        rows = self.find(rows)
        while rows.size:
            left = self._parts[0].take(rows)
            split = left != NONE
            if not np.count_nonzero(split):
                break
            left = np.where(split, left, rows)
            right = np.where(split, self._parts[1].take(rows), NONE)
            # A unit's parts stand side by side in its place, so that the units of a column stay of one kind.
            wide = np.stack([left, right], 2).reshape(len(rows), -1)
            rows = self.find(without_empty(wide))
        held = self._held.take(rows) >= 0
        if np.count_nonzero(held):
            rows[held] = NONE
        rows = distinct(rows)
        rows.flags.writeable = False
        return rows

    def blocks_of(self, units: Rows) -> frozenset[int]:
        """Return the numbers of the blocks that units were made in."""
        if not units.size:
            return frozenset()
        blocks = self._block.take(units).T.reshape(-1)  # columns are of one block for the most part
        changes = blocks[1:][blocks[1:] != blocks[:-1]]
        found = frozenset([int(blocks[0]), *(changes.tolist() if len(changes) < 100 else np.unique(changes).tolist())])
        return found - {NONE}

    def reasons_of(self, rows: Rows) -> list[Reason]:
        """Return why units in rows, or parts of them, are held; each reason once, the most frequent first."""
        found: Rows = np.unique(self.find(rows))
        seen: list[Rows] = []
        while found.size and (found := found[found != NONE]).size:
            seen.append(found)
            found = np.unique(self.find(self._parts[:, found].reshape(-1)))
        roots = np.concatenate(seen) if seen else np.empty(0, np.int32)
        numbers, counts = np.unique(self._held[roots][self._held[roots] >= 0], return_counts=True)
        return [self.reasons[i] for i in numbers[np.argsort(-counts, kind="stable")]]

    def kind_of_each(self) -> Rows:
        """Return the kind of every unit: the number of one of the blocks between which units are the same."""
        return np.array([self.kinds[number] for number in range(len(self.blocks))], np.int32)[self._block[: self.count]]

    # Learning.

    def note(self, blocks: Iterable[int]) -> None:
        """Take note that something is learnt of units of these blocks."""
        self.version += 1
        for number in blocks:
            self.blocks[number].learnt = self.version

    def hold(self, rows: Rows, why: Reason) -> None:
        """Say that no unit in resolved rows can go."""
        units = rows[rows != NONE]
        if units.size:
            self.note(self.blocks_of(units))
            self._held[units] = len(self.reasons)
            self.reasons.append(why)

    def stand_for(self, units: Rows, parts: Rows) -> None:
        """Replace units by the pairs in ``parts``; ``NONE`` comes second in a pair, if at all."""
        self.note(self.blocks_of(units))
        self._parts[:, units] = parts.T

    def define(self, block: Block, rows: Rows) -> None:
        """Let the units of a block of which nothing is known be the units in rows, or stand for the pairs in rows."""
        self.note((block.number,))
        if block.rows is None:
            return
        units = block.rows[:, 0]
        if rows.shape[1] == 1:
            self._parent[units] = rows[:, 0]
        else:
            self._parts[:, units] = rows.T

    def unite(self, a: Rows, b: Rows) -> None:
        """Make units the same pairwise; pairs with a ``NONE`` on either side are left out."""
        a, b = self.find(a), self.find(b)
        use = (a != b) & (a != NONE) & (b != NONE)
        if not np.count_nonzero(use):
            return
        if not use.all():
            a, b = a[use], b[use]
        self._join_kinds(self._block.take(a), self._block.take(b))
        while len(a):
            low, high = np.minimum(a, b), np.maximum(a, b)
            reasons = self._held.take(high)
            if np.count_nonzero(reasons >= 0):
                np.maximum.at(self._held, low, reasons)
            # Where one unit is the same as several others, the lowest number wins; the next round unites the rest.
            np.minimum.at(self._parent, high, low)
            lost = self._parent.take(high) != low
            a, b = self.find(low[lost]), self.find(high[lost])
            rest = a != b
            a, b = a[rest], b[rest]

    def _join_kinds(self, a: Rows, b: Rows) -> None:
        pairs = a.astype(np.int64) << 32 | b
        # Units of a block mostly stand side by side, so that there are few places where the pair of blocks changes.
        changed = pairs[1:][pairs[1:] != pairs[:-1]]
        for pair in sorted({int(pairs[0]), *changed.tolist()}):
            one, other = pair >> 32, pair & 0xFFFFFFFF
            self.note((one, other))
            self.kinds.union(one, other)
