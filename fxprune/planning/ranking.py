"""The order in which the units of groups go, and the number of units of each group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.algebra.axes import NONE, Flags, Index, Rows
from fxprune.analysis.costs import Census
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group
from fxprune.rules.reductions import degrees_lost
from fxprune.rules.registry import op_card

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ranking:
    """The units of the chosen groups, and the order in which they go.

    Two groups, of units 0, 1, 2 with scores 5, 7, 6 and of units 8, 9 with scores 2, 1, have ``units`` 0 1 2 8 9, ``owner``
    0 0 0 1 1 and ``place`` 2 0 1 0 1. ``least`` is 1 1 where only the most important unit of each group has to stay.

    Attributes:
        groups: the groups.
        scores: for each group the importance of its units.
        total: the number of units of the analysis.
        units: all units of the groups, one group after the other.
        owner: for each unit the index of its group in ``groups``.
        place: for each unit its place in its group; the unit at place 0 goes last.
        least: for each group how many units have to stay, so that no axis of the graph loses all of its positions.
        multiples: for each group a number whose multiples alone may stay, as some operator runs on no other sizes.
    """

    groups: Sequence[Group]
    scores: Sequence[Scores]
    total: int
    units: Index
    owner: Index
    place: Index
    least: Index
    multiples: Index

    @property
    def sizes(self) -> Index:
        """The number of units of each group."""
        return np.array([group.size for group in self.groups], np.intp)

    def removed(self, kept: Index) -> Flags:
        """Return for every unit whether it goes when ``kept[i]`` units of group i stay."""
        flags = np.zeros(self.total, bool)
        flags[self.units] = self.place >= kept[self.owner]
        return flags

    def to_keep(self, wanted: Index, round_to: int) -> Index:
        """Return the units to keep of each group: ``wanted`` or ``least``, rounded up to a multiple of ``round_to``."""
        step = np.lcm(round_to, self.multiples)
        rounded = -(-np.maximum(wanted, self.least) // step) * step
        kept: Index = np.minimum(rounded, self.sizes)
        return kept

    def in_order(self, among: Flags) -> Index:
        """Return the index of the group of each unit that may go, in the order in which the units of groups ``among`` go."""
        may_go = (self.place >= self.least[self.owner]) & among[self.owner]
        score = np.concatenate([*self.scores, np.empty(0)])[may_go]
        owner = self.owner[may_go]
        # Of equally important units the last of its group goes first, whichever group that is.
        order = np.lexsort((owner, -self.place[may_go], score))
        ordered: Index = owner[order]
        return ordered


def rank(deps: Dependencies, census: Census, groups: Sequence[Group], scores: Sequence[Scores]) -> Ranking:
    """Put the units of groups in order by rising importance.

    The most important unit of a group never goes. Some values of a graph hold a part of a group's units, such as a slice of
    channels: the most important unit of each such part never goes either, nor the second where the graph takes an unbiased
    variance, which is not defined for one number.
    """
    total = deps.units.count
    sizes = [group.size for group in groups]
    units = np.concatenate([*(g.units for g in groups), np.empty(0, np.intp)]).astype(np.intp)
    owner = np.repeat(np.arange(len(groups)), sizes)
    place = _places(scores, [np.zeros(size, bool) for size in sizes])
    place_of = np.zeros(total + 1, np.int32)  # 0 for units that never go, and for NONE
    place_of[units] = place
    held = place_of[units] == 0
    if len(last := _last_held(census, place_of, _fewest(deps, census))):
        held |= np.isin(units, last)
        place = _places(scores, np.split(held, np.cumsum(sizes)[:-1]))
    least = np.bincount(owner[held], minlength=len(groups)).astype(np.intp)
    return Ranking(groups, scores, total, units, owner, place, least, _multiples(deps, groups))


def _places(scores: Sequence[Scores], first: Sequence[Flags]) -> Index:
    """Return each unit's place in its group: flagged units first, then by falling importance."""
    places = [np.empty(0, np.intp)]
    for score, before in zip(scores, first, strict=True):
        place = np.empty(len(score), np.intp)
        place[np.lexsort((-score, ~before))] = np.arange(len(score))
        places.append(place)
    return np.concatenate(places)


def _fewest(deps: Dependencies, census: Census) -> Index:
    """Return for each axis how many of its positions have to stay."""
    fewest = np.ones(len(census.sizes), np.intp)
    for point in deps.points:
        if point.kind != "var" or not deps.units.resolve(point.axis).size:
            continue
        call = deps.steps[point.step].call
        if call is not None and (lost := degrees_lost(call)):
            slot = census.slot(point.axis)
            fewest[slot] = max(fewest[slot], lost + 1)
    return np.minimum(fewest, census.sizes)


def _multiples(deps: Dependencies, groups: Sequence[Group]) -> Index:
    """Return for each group of which number multiples alone may stay."""
    found = np.ones(len(groups), np.intp)
    for call in (step.call for step in deps.steps if step.call is not None):
        if (given := op_card(call.op).multiples) is None:
            continue
        for axis, multiple in given(call):
            rows = deps.units.resolve(axis)
            for i, group in enumerate(groups):
                # Each unit of a group owns equally many positions of the axis.
                found[i] = np.lcm(found[i], multiple // math.gcd(multiple, int((rows == group.units[0]).any(1).sum())))
    return found


def _last_held(census: Census, place_of: Index | Rows, fewest: Index) -> Index:
    """Return units that have to stay, as too few positions of some axis hold units of place 0 alone.

    For each such axis these are the units of the positions that stay longest.
    """
    found = [np.empty(0, np.intp)]
    for at, starts, rows in census.blocks:
        worst = place_of[rows].max(1)
        ends = np.r_[starts[1:], len(rows)]
        for i in np.flatnonzero(np.add.reduceat(worst == 0, starts, dtype=np.intp) < fewest[at]):
            last = worst[starts[i] : ends[i]].argsort(kind="stable")[: fewest[at[i]]]
            row = rows[starts[i] + last]
            found.append(row[row != NONE])
    return np.concatenate(found)


def local_counts(sizes: Index, amounts: Sequence[float]) -> Index:
    """Return how many units of each group stay when ``amounts`` go, rounded as in ``torch.nn.utils.prune``."""
    gone = [
        min(amount, size) if isinstance(amount, int) else round(amount * size)
        for size, amount in zip(sizes.tolist(), amounts, strict=True)
    ]
    return sizes - np.array(gone, np.intp)
