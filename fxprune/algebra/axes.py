"""Axes: the positions of one tensor dimension, each with the units that it goes with.

An axis never changes. :mod:`fxprune.algebra.units` has what is learnt of the units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int32]
Index = NDArray[np.intp]
Flags = NDArray[np.bool_]

NONE = -1  # fills a row up to the width of its array


@dataclass(frozen=True)
class Reason:
    """Why an axis or a unit can never go: the cause, and the operator, graph node and line of the model's code if known.

    ``by_model`` says that the model's inputs and outputs leave no choice.
    """

    text: str
    op: str = ""
    node: str = ""
    source: str = ""
    because: Reason | None = None  # why the axis on the other side of a coupling can never go
    by_model: bool = False

    def __str__(self) -> str:
        at = " in ".join(part for part in (self.op, f"node {self.node!r}" if self.node else "") if part)
        line = f"{self.text} ({at})" if at else self.text
        line += f", at {self.source}" if self.source else ""
        return f"{line}; {self.because}" if self.because else line


@dataclass(frozen=True, eq=False)
class Axis:
    """The positions of one tensor dimension.

    Example: the rows ``[[0, 2], [0, 3], [1, NONE]]`` are three positions. The first goes if unit 0 or unit 2 goes, the last if
    unit 1 goes.

    Attributes:
        rows: int32 array of shape (positions, k): the units of each position, filled up with ``NONE``.
        why: why the axis has no units, or why a part of it has none.
        block: the number of the block, if the rows are all units of one block in order; else -1.
    """

    rows: Rows
    why: Reason | None = None
    block: int = -1

    @staticmethod
    def whole(size: int, why: Reason | None = None) -> Axis:
        """Return an axis of ``size`` positions that can never go."""
        return Axis(np.empty((size, 0), np.int32), why)

    @property
    def size(self) -> int:
        """The number of positions."""
        return len(self.rows)

    @property
    def is_whole(self) -> bool:
        """Whether the axis was made without units. An axis whose units are all held later is empty only when resolved."""
        return not self.rows.shape[1]

    def take(self, index: Index) -> Axis:
        """Return the axis whose position i is position ``index[i]`` of this axis; an index of -1 gives an empty row."""
        if self.is_whole:
            return Axis.whole(len(index), self.why)
        rows = self.rows[index]
        rows[index < 0] = NONE
        return Axis(rows, self.why)

    def merge(self, inner: Axis) -> Axis:
        """Return the axis of all pairs of positions, with this axis outermost: a pair goes if either position goes."""
        for one, other in ((self, inner), (inner, self)):
            if other.size == 1 and other.is_whole:
                why = self.why or inner.why
                return one if one.why is why else Axis(one.rows, why, one.block)
        rows = np.concatenate([np.repeat(self.rows, inner.size, 0), np.tile(inner.rows, (self.size, 1))], 1)
        return Axis(rows, self.why or inner.why)


def concatenate(axes: Sequence[Axis]) -> Axis:
    """Return the axes one after the other."""
    width = max(axis.rows.shape[1] for axis in axes)
    wide = [np.pad(axis.rows, ((0, 0), (0, width - axis.rows.shape[1])), constant_values=NONE) for axis in axes]
    return Axis(np.concatenate(wide), next((axis.why for axis in axes if axis.why), None))
