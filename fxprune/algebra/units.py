"""Units and axes: which positions of which axes have to be removed together.

A *unit* is the smallest thing that can be removed. An :class:`~fxprune.algebra.axes.Axis` of n positions is an ``(n, k)``
array of units: position i goes as soon as any unit of row i goes; an empty row never goes. :class:`Units` makes axes, couples
and splits them, and reads them. It writes equations between single units into :class:`~fxprune.algebra.equations.Equations`.

Every operation only adds equations, so an axis made earlier stays right: :meth:`Units.resolve` reads it with all equations.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property

import numpy as np

from fxprune.algebra.axes import NONE, Axis, Reason, Rows
from fxprune.algebra.blocks import Block, Reading
from fxprune.algebra.contents import Content
from fxprune.algebra.coupling import couple_once, factor
from fxprune.algebra.equations import Equations
from fxprune.errors import AnalysisError

_MAX_ROUNDS = 16  # a split or coupling that takes more rounds keeps its axes whole


class _Unread(Axis):
    """An axis whose units have no numbers before its rows are read."""

    def __init__(self, equations: Equations, block: Block) -> None:
        vars(self).update(_equations=equations, _size=block.size, why=None, block=block.number)

    @cached_property
    def rows(self) -> Rows:
        """The units of each position: those of the block, or of the first block that has the same units by now."""
        equations: Equations = vars(self).pop("_equations")
        block = equations.blocks[self.block].same
        return equations.numbered(block) if block.reading is None else block.reading.given

    @property
    def size(self) -> int:
        """The number of positions."""
        size: int = vars(self)["_size"]
        return size

    @property
    def is_whole(self) -> bool:
        """Whether the axis was made without units."""
        return False


class Units:
    """All units, and the equations between them.

    Example:
        >>> units = Units()
        >>> channels = units.fresh(6)
        >>> heads, dims = units.split(channels, 2, Reason("a view"))
        >>> units.resolve(channels).tolist()  # every channel goes with its head or with its place in the head
        [[6, 8], [6, 9], [6, 10], [7, 8], [7, 9], [7, 10]]
    """

    def __init__(self) -> None:
        self._equations = Equations()
        self._readings: dict[Axis, Reading] = {}  # of axes without a block
        self._contents: dict[tuple[tuple[int, ...], bytes], Content] = {}  # by shape and digest
        self._read: dict[Axis, Content] = {}  # as of the version of the equations in ``_read_at``
        self._read_at = 0

    # Making and reading axes.

    @property
    def count(self) -> int:
        """How many units have numbers."""
        return self._equations.count

    def fresh(self, size: int) -> Axis:
        """Return an axis of ``size`` positions with one new unit each, all of one new kind."""
        block = self._equations.block(size)
        return Axis(self._equations.numbered(block), None, block.number)

    def unread(self, size: int) -> Axis:
        """Return a fresh axis whose units get numbers only if its rows are read."""
        return _Unread(self._equations, self._equations.block(size))

    def resolve(self, axis: Axis) -> Rows:
        """Return the rows of an axis with units that can still go, each once in a row, without empty columns; read only."""
        return axis.rows if axis.is_whole else self._reading(axis).content.rows

    def content(self, axis: Axis) -> Content:
        """Return the content of an axis: one object for all axes with the same units at the same positions."""
        if self._read_at != self._equations.version:
            self._read, self._read_at = {}, self._equations.version
        if axis not in self._read:
            reading = Reading(axis.rows, Content(axis.rows)) if axis.is_whole else self._reading(axis)
            if not reading.is_shared:
                content = reading.content
                digest = hashlib.sha256(content.rows.tobytes()).digest() if content.is_live else b""
                reading.content = self._contents.setdefault((content.rows.shape, digest), content)
                reading.is_shared = True
            self._read[axis] = reading.content
        return self._read[axis]

    def _block(self, axis: Axis) -> Block | None:
        """Return the first block that has the units of an axis in the same order, if the axis is a block."""
        return self._equations.blocks[axis.block].same if axis.block >= 0 else None

    def _reading(self, axis: Axis) -> Reading:
        """Return the reading of an axis, with all equations of now."""
        equations, block = self._equations, self._block(axis)
        reading = self._readings.get(axis) if block is None else block.reading
        if reading is None:
            if block is None:
                reading = self._readings[axis] = Reading(axis.rows, Content(axis.rows))
            else:
                rows = equations.numbered(block)
                reading = block.reading = Reading(rows, Content(rows))
        if reading.version < equations.version and (block is None or block.learnt):
            if reading.version < 0 or any(equations.blocks[number].learnt > reading.version for number in reading.blocks):
                rows = equations.resolved(reading.given)
                reading.content, reading.is_shared, reading.blocks = Content(rows), False, equations.blocks_of(rows)
            reading.version = equations.version
        return reading

    def kinds(self) -> Rows:
        """Return a number for every unit, the same for units made together or united."""
        return self._equations.kind_of_each()

    def reasons_of(self, axis: Axis) -> list[Reason]:
        """Return why units of an axis, or parts of them, are held; each reason once, the most frequent first."""
        if axis.is_whole:
            return [axis.why] if axis.why else []
        return self._equations.reasons_of(axis.rows)

    # Learning.

    def keep_whole(self, axis: Axis, why: Reason) -> None:
        """Say that no position of an axis can go."""
        if axis.is_whole:
            return
        reading = self._reading(axis)
        if reading.content.is_live:
            self._equations.hold(reading.content.rows, why)
            reading.content, reading.is_shared = Content(reading.content.rows[:, :0]), False
            reading.blocks, reading.version = frozenset(), self._equations.version

    def keep_units_whole(self, rows: Rows, why: Reason) -> None:
        """Say that no unit in resolved rows can go."""
        self._equations.hold(rows, why)

    def keep_covering_whole(self, axis: Axis, why: Reason) -> None:
        """Say that units which own every position of an axis cannot go: nothing would be left."""
        rows = self.resolve(axis)
        if rows.size:
            units, counts = np.unique(rows[rows != NONE], return_counts=True)
            self._equations.hold(units[counts == len(rows)], why)

    def couple(self, one: Axis, other: Axis, why: Reason) -> None:
        """Say that a position of one axis goes if and only if the same position of the other goes.

        Args:
            why: the reason to note where a position of either axis can never go.

        Raises:
            AnalysisError: the axes are of different sizes.
        """
        if one.size != other.size:
            raise AnalysisError(f"axes of {one.size} and {other.size} positions cannot be coupled")
        if one is other or self.join(one, other):
            return
        if one.is_whole or other.is_whole:
            live, whole = (other, one) if one.is_whole else (one, other)
            self.keep_whole(live, replace(why, because=whole.why and (whole.why.because or whole.why)))
            return
        reasons = self._equations.reasons
        known = len(reasons)
        for _ in range(_MAX_ROUNDS):
            if couple_once(self._equations, self.resolve(one), self.resolve(other), why):
                break
        else:
            self.keep_whole(one, why)
            self.keep_whole(other, why)
        if len(reasons) > known:
            roots = [r.because or r for r in self.reasons_of(one) + self.reasons_of(other) if r not in reasons[known:]]
            reasons[known:] = [replace(r, because=roots[0] if roots else None) for r in reasons[known:]]

    def join(self, one: Axis, other: Axis) -> bool:
        """Couple two axes if one is a block of which nothing is known; tell whether they go together now.

        No other axes are coupled; two whole axes go together anyway.
        """
        if one.size != other.size:
            return False
        if one.is_whole or other.is_whole:
            return one.is_whole and other.is_whole
        low, high = self._block(one), self._block(other)
        if low is high and (low is not None or one.rows is other.rows):
            return True
        if low is None or not low.is_free:
            return high is not None and high.is_free and self._follow(high, one)
        if high is None or not high.is_free:
            return self._follow(low, other)
        if high.number < low.number:
            low, high = high, low
        if high.rows is not None:
            self._equations.define(high, self._equations.numbered(low))
        else:
            self._equations.note((high.number,))
        low.join(high)
        self._equations.kinds.union(low.number, high.number)
        return True

    def _follow(self, block: Block, axis: Axis) -> bool:
        """Couple a block of which nothing is known with an axis, if that says nothing new of the units of the axis.

        Example: the block has the units 6 to 9.

        - The axis resolves to ``[[0], [1], [2], [0]]``: units 6 and 9 become the same as unit 0, 7 as 1, and 8 as 2.
        - It resolves to ``[[0, 2], [0, 3], [1, 2], [1, 3]]``: unit 6 stands for 0 and 2, 7 for 0 and 3, and so on.
        - It resolves to ``[[0, 2], [1, 3], [4, 5], ...]``, where no unit of some column repeats: the units of that column may
          be the same as the block's. This is left to :func:`~fxprune.algebra.coupling.couple_once`.
        """
        reading = self._reading(axis)
        content = reading.content
        if block.number in reading.blocks or not content.is_full:
            return False
        width = content.rows.shape[1]
        if width == 1 and block.number > max(reading.blocks):  # of units that are the same the first is the representative
            for number in reading.blocks:
                self._equations.kinds.union(number, block.number)
        elif not (width == 2 and content.repeats):
            return False
        self._equations.define(block, content.rows)
        block.reading = reading
        return True

    def split(self, axis: Axis, outer: int, why: Reason) -> tuple[Axis, Axis]:
        """Split an axis into an outer and an inner axis, as a view of a*b positions as (a, b) does.

        A unit that does not vary along one of the two axes goes to the other. A unit that varies along both stands from now on
        for a new unit of the outer axis together with a new unit of the inner one. The merged axes equal the axis.

        Args:
            outer: the size of the outer axis; divides the size of the axis.
            why: the reason to note where units have to be held.

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
        block = self._block(axis)
        if block is not None and block.is_free:
            return self._split_block(block, outer, axis.why)
        for _ in range(_MAX_ROUNDS):
            rows = self.resolve(axis).reshape(outer, inner, -1)
            along_outer = (rows == rows[:, :1]).all((0, 1))
            along_inner = (rows == rows[:1]).all((0, 1))
            # A unit that every position has can never go: no position would be left.
            both = along_outer & along_inner
            if both.any():
                self._equations.hold(rows[0, 0, both], why)
                continue
            mixed = np.flatnonzero(~along_outer & ~along_inner)
            if not len(mixed):
                return self._axis_of(rows[:, 0, along_outer], axis.why), self._axis_of(rows[0][:, along_inner], axis.why)
            factor(self._equations, rows[:, :, mixed[0]], why)
        self.keep_whole(axis, why)
        return Axis.whole(outer, why), Axis.whole(inner, why)

    def _split_block(self, block: Block, outer: int, why: Reason | None) -> tuple[Axis, Axis]:
        """Split a block of which nothing is known: its units stand for pairs of new units."""
        first, second = (replace(self.fresh(size), why=why) for size in (outer, block.size // outer))
        pairs = first.merge(second).rows
        self._equations.define(block, pairs)
        block.reading = Reading(pairs, Content(pairs))
        return first, second

    def _axis_of(self, rows: Rows, why: Reason | None) -> Axis:
        """Return an axis of resolved rows; the axis has a block if the rows are all of a block of which nothing is known."""
        if rows.shape[1] == 1 and len(rows) and rows[0, 0] != NONE:
            block = self._equations.block_of(rows[0, 0])
            if block.is_free and block.rows is not None and np.array_equal(block.rows, rows):
                return Axis(block.rows, why, block.number)
        return Axis(rows, why)
