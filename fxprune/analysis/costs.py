"""Counts what is left of a graph when units go: positions of axes, elements of parameters, floating-point operations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fxprune.algebra.axes import NONE, Axis, Flags, Index, Rows
from fxprune.algebra.units import Units
from fxprune.analysis.sources import Tracked
from fxprune.analysis.steps import Step
from fxprune.rules.card import Work


class Census:
    """The rows of many axes side by side, so that the positions left on all of them are counted at once.

    Axes with the same units at the same positions share one slot.
    """

    def __init__(self, units: Units, axes: Iterable[Axis]) -> None:
        self._units = units
        contents = dict.fromkeys(map(units.content, axes))
        self._slots = {content: slot for slot, content in enumerate(contents)}
        self.rows: list[Index | Rows] = [content.rows for content in contents]
        self.sizes = np.array([len(rows) for rows in self.rows], np.intp)
        self.blocks = list(self._side_by_side())

    def _side_by_side(self) -> Iterator[tuple[Index, Index, Index]]:
        """Yield for each width the slots of the axes whose rows have it, the start of each in one array, and the array."""
        widths = np.array([rows.shape[1] if len(rows) else 0 for rows in self.rows], np.intp)
        for width in np.unique(widths[widths > 0]):
            at = np.flatnonzero(widths == width)
            starts = np.r_[0, np.cumsum(self.sizes[at])[:-1]].astype(np.intp)
            beside = np.concatenate([self.rows[i] for i in at.tolist()], dtype=np.intp)
            for i, start in zip(at.tolist(), starts.tolist(), strict=True):
                self.rows[i] = beside[start : start + len(self.rows[i])]  # a view
            yield at, starts, beside

    def slot(self, axis: Axis) -> int:
        """Return the index of an axis in ``rows``, in ``sizes`` and in the result of :meth:`kept`."""
        return self._slots[self._units.content(axis)]

    def kept(self, removed: Flags) -> Index:
        """Return how many positions of every axis are left when the units flagged in ``removed`` go."""
        left, flags = self.sizes.copy(), np.append(removed, False)
        assert NONE == -1, "NONE finds the flag at the end"
        for at, starts, rows in self.blocks:
            gone = flags[rows[:, 0]]
            for column in rows.T[1:]:
                gone |= flags[column]
            left[at] -= np.add.reduceat(gone, starts, dtype=np.intp)
        return left


class Costs:
    """Counts the parameters and operations that are left of a graph, for any choice of units; ``census`` has all its axes."""

    def __init__(self, units: Units, steps: Sequence[Step], tracked: Sequence[Tracked], work: Sequence[Work]) -> None:
        labels = [label for step in steps for label in step.results] + [t.label for t in tracked]
        places = [part.axes for part in work] + [label.axes for label in labels]
        self.census = Census(units, [axis for axes in places for axis in axes])
        self._parameters = [[self.census.slot(axis) for axis in t.label.axes] for t in tracked if t.is_parameter]
        self._work = [(part.flops, [self.census.slot(axis) for axis in part.axes]) for part in work]

    def parameters(self, removed: Flags) -> int:
        """Return how many elements of parameters are left; a tied parameter counts once."""
        return sum(self.elements(removed))

    def elements(self, removed: Flags) -> list[int]:
        """Return how many elements are left of each parameter."""
        kept = self.census.kept(removed).tolist()
        return [math.prod(kept[slot] for slot in slots) for slots in self._parameters]

    def flops(self, removed: Flags) -> float:
        """Return how many operations are left: those of each call times the share left of every axis of its work."""
        sizes = self.census.sizes
        share = (self.census.kept(removed) / np.where(sizes, sizes, 1)).tolist()
        return float(sum(flops * math.prod(share[slot] for slot in slots) for flops, slots in self._work))
