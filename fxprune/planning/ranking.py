"""Which groups are pruned, in which order their units go, and how many of each."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fxprune.algebra.axes import NONE, Index, Rows
from fxprune.analysis.corrections import degrees_lost
from fxprune.analysis.costs import Census, Flags
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group
from fxprune.errors import PlanError, PruningTypeError
from fxprune.graph.paths import parameters_by_name

Choose = Literal["outer", "inner", "all"]
Scores = NDArray[np.float64]

# Units of a group: from so many on, half of them are enough to choose from. Networks left with two attention heads of four fall
# behind those left with half of each head, and those left with four of eight do not (python -m tests.benchmarks accuracy).
_ENOUGH = 8


class Names:
    """Finds the groups that a pattern or a module means.

    Args:
        deps: the analysis of the graph.
    """

    def __init__(self, deps: Dependencies) -> None:
        self._gm = deps.gm
        self._parameters = [t for t in deps.tracked if t.is_parameter]
        self._groups: dict[str, list[int]] = {}
        for group in deps.groups:
            for member in group.members:
                if not member.is_buffer:
                    self._groups.setdefault(member.parameter, []).append(group.index)

    def groups(self, what: Any, argument: str) -> set[int]:
        """Return the indices of all groups that live on a parameter that is meant.

        Args:
            what: a parameter's name, a module's name, a glob pattern of either, or a module.
            argument: the name of the argument that it was given in, for errors.

        Raises:
            PruningTypeError: it is neither a string nor a module.
            PlanError: no parameter of the graph is meant.
        """
        if isinstance(what, nn.Module):
            found = self._of_module(what, argument)
        elif isinstance(what, str):
            found = self._of_pattern(what, argument)
        else:
            raise PruningTypeError(f"{argument} takes names, glob patterns and modules, not {what!r}")
        return {index for name in found for index in self._groups.get(name, ())}

    def _of_module(self, module: nn.Module, argument: str) -> list[str]:
        theirs, ours = {id(p) for p in module.parameters()}, parameters_by_name(self._gm)
        found = [t.name for t in self._parameters if any(id(ours.get(n)) in theirs for n in t.names)]
        if not found:
            raise PlanError(
                f"{argument} has a {type(module).__name__} that shares no parameter with the graph: give a module of the model "
                "that was captured, or a name"
            )
        return found

    def _of_pattern(self, pattern: str, argument: str) -> list[str]:
        inside = pattern + ".*"
        found = [
            t.name
            for t in self._parameters
            if any(fnmatch.fnmatchcase(n, pattern) or fnmatch.fnmatchcase(n, inside) for n in t.names)
        ]
        if not found:
            names = [n for t in self._parameters for n in t.names]
            modules = {n[:end] for n in names for end, letter in enumerate(n) if letter == "."}
            close = difflib.get_close_matches(pattern, [*names, *sorted(modules)], 3)
            hint = f"; did you mean {', '.join(map(repr, close))}?" if close else f"; it has {len(names)} parameters"
            raise PlanError(f"{argument} has {pattern!r}, which matches no parameter of the graph{hint}")
        return found


def ignored_groups(names: Names, ignore: Any) -> set[int]:
    """Return the indices of the groups to leave alone; see :func:`fxprune.planning.planner.plan`."""
    if isinstance(ignore, str | nn.Module):
        ignore = (ignore,)
    if not isinstance(ignore, Iterable):
        raise PruningTypeError(f"ignore must be an iterable of names, glob patterns and modules, not {ignore!r}")
    return {index for what in ignore for index in names.groups(what, "ignore")}


def uncrossed(deps: Dependencies, census: Census, ignored: set[int], choose: Choose | None) -> list[Group]:
    """Return the groups to prune: where several cross, such that no two chosen ones do, unless all are wanted.

    Two groups cross if some position of a parameter or buffer belongs to both, as a row of a projection belongs to a head and
    to a place in the heads. Candidates are taken one after the other, each unless it crosses one that was taken before it:
    by default first those of at least eight units, outermost first, then the others, those of most units first.

    Args:
        deps: the analysis of the graph.
        census: its axes.
        ignored: the indices of groups that are left alone.
        choose: "outer" takes the outermost first, "inner" the innermost, however many units they have; "all" takes all.
    """
    if choose not in (None, "outer", "inner", "all"):
        raise PlanError(f'choose must be None, "outer", "inner" or "all", not {choose!r}')
    candidates = [group for group in deps.groups if group.index not in ignored]
    if choose == "all":
        return candidates
    if choose == "inner":
        candidates.reverse()
    elif choose is None:
        candidates.sort(key=lambda g: (0, g.index) if g.size >= _ENOUGH else (1, -g.size))
    crossing = _crossings(deps, census)
    taken: dict[int, Group] = {}
    for group in candidates:
        if not crossing[group.index] & taken.keys():
            taken[group.index] = group
    return [taken[index] for index in sorted(taken)]


def _crossings(deps: Dependencies, census: Census) -> list[set[int]]:
    """Return for every group the indices of the groups that it shares a position of a parameter or buffer with."""
    total = len(deps.groups)
    group_of = np.full(deps.units.count + 1, -1, np.intp)  # one more, for NONE
    for group in deps.groups:
        group_of[group.units] = group.index
    found: list[set[int]] = [set() for _ in range(total)]
    for slot in {census.slot(axis) for tracked in deps.tracked for axis in tracked.label.axes}:
        if census.rows[slot].shape[1] < 2:
            continue
        groups = group_of[census.rows[slot]]
        for i in range(groups.shape[1]):
            for j in range(i):
                both = (groups[:, i] >= 0) & (groups[:, j] >= 0) & (groups[:, i] != groups[:, j])
                for code in np.unique(groups[both, i] * total + groups[both, j]).tolist():
                    found[code // total].add(code % total)
                    found[code % total].add(code // total)
    return found


@dataclass(frozen=True, eq=False)
class Ranking:
    """The units of the chosen groups, each group's in the order in which they stay.

    Attributes:
        groups: the groups.
        scores: for each group the importance of its units.
        total: how many units the analysis knows.
        units: all units of the groups, one group after the other.
        owner: the place in ``groups`` of each unit's group.
        place: the place of each unit in its group: 0 is the last to go.
        least: for each group how many units have to stay, so that no axis of the graph loses all of its positions.
    """

    groups: Sequence[Group]
    scores: Sequence[Scores]
    total: int
    units: Index
    owner: Index
    place: Index
    least: Index

    @property
    def sizes(self) -> Index:
        """The units of each group."""
        return np.array([group.size for group in self.groups], np.intp)

    def removed(self, kept: Index) -> Flags:
        """Return a flag for every unit: whether it goes when ``kept[i]`` units of group i stay."""
        flags = np.zeros(self.total, bool)
        flags[self.units] = self.place >= kept[self.owner]
        return flags

    def to_keep(self, wanted: Index, round_to: int) -> Index:
        """Return how many units of each group stay where ``wanted`` should: rounded up, and no fewer than have to."""
        rounded = -(-np.maximum(wanted, self.least) // round_to) * round_to
        kept: Index = np.minimum(rounded, self.sizes)
        return kept

    def in_order(self, among: Flags) -> Index:
        """Return the groups, by their places, of all units that may go, the unit that goes first first.

        Args:
            among: for each group whether its units take part.
        """
        may_go = (self.place >= self.least[self.owner]) & among[self.owner]
        score = np.concatenate([*self.scores, np.empty(0)])[may_go]
        owner = self.owner[may_go]
        # Of units that are equally important the last of its group goes first, wherever the group stands.
        order = np.lexsort((owner, -self.place[may_go], score))
        ordered: Index = owner[order]
        return ordered


def rank(deps: Dependencies, census: Census, groups: Sequence[Group], scores: Sequence[Scores]) -> Ranking:
    """Put the units of groups in the order in which they stay.

    The most important of a group never goes, and the others go by rising importance. Some values of a graph are made of a
    part of a group's units, such as a slice of channels: of each such part the most important unit never goes either, nor
    the second where an unbiased variance is taken, which one number does not have.

    Args:
        deps: the analysis of the graph.
        census: its axes.
        groups: the groups.
        scores: for each of them the importance of its units.
    """
    total = deps.units.count
    sizes = [group.size for group in groups]
    units = np.concatenate([*(g.units for g in groups), np.empty(0, np.intp)]).astype(np.intp)
    owner = np.repeat(np.arange(len(groups)), sizes)
    place = _places(scores, [np.zeros(size, bool) for size in sizes])
    place_of = np.zeros(total + 1, np.int32)  # 0 for all that never goes, NONE among them
    place_of[units] = place
    held = place_of[units] == 0
    if len(last := _last_held(census, place_of, _fewest(deps, census))):
        held |= np.isin(units, last)
        place = _places(scores, np.split(held, np.cumsum(sizes)[:-1]))
    least = np.bincount(owner[held], minlength=len(groups)).astype(np.intp)
    return Ranking(groups, scores, total, units, owner, place, least)


def _places(scores: Sequence[Scores], first: Sequence[Flags]) -> Index:
    """Return each unit's place in its group by falling importance, those flagged before all others."""
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


def _last_held(census: Census, place_of: Index | Rows, fewest: Index) -> Index:
    """Return, for each axis with too few positions that have first units only, the units of those that stay longest."""
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
    """Return how many units stay of groups of these sizes when ``amounts`` of them go, rounded as torch's prune rounds."""
    gone = [
        min(amount, size) if isinstance(amount, int) else round(amount * size)
        for size, amount in zip(sizes.tolist(), amounts, strict=True)
    ]
    return sizes - np.array(gone, np.intp)
