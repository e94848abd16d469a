"""Which groups are pruned: those that names mean, and of groups that cross, such as heads and places in a head, one."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from torch import nn

from fxprune.analysis.costs import Census
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group
from fxprune.errors import PlanError, PruningTypeError
from fxprune.graph.paths import parameters_by_name

Choose = Literal["outer", "inner", "all"]

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
        theirs, ours = set(module.parameters()), parameters_by_name(self._gm)
        found = [t.name for t in self._parameters if any(ours.get(n) in theirs for n in t.names)]
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
