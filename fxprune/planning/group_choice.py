"""Which groups are pruned: the groups that names mean, and of crossing groups, such as heads and places in heads, only one."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
from collections.abc import Iterable
from typing import Any, Literal

import networkx as nx
import numpy as np
from torch import nn

from fxprune.analysis.costs import Census
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group
from fxprune.errors import PlanError, PruningTypeError

Choose = Literal["outer", "inner", "all"]

# The least number of units of which half are enough. Networks left with two of four attention heads fall behind networks left
# with half of each head; networks left with four of eight heads do not (python -m tests.benchmarks accuracy).
_ENOUGH = 8


class Names:
    """Finds the groups that a pattern or a module means."""

    def __init__(self, deps: Dependencies) -> None:
        self._gm = deps.gm
        self._parameters = [t for t in deps.tracked if t.is_parameter]
        self._groups: dict[str, list[int]] = {}
        for group in deps.groups:
            for member in group.on_parameters:
                self._groups.setdefault(member.parameter, []).append(group.index)

    def groups(self, selector: Any, argument: str) -> set[int]:
        """Return the indices of all groups that live on the parameters that ``selector`` means.

        ``selector`` is the name of a parameter or module, a glob pattern of names, or a module. Errors name it by ``argument``.
        """
        if isinstance(selector, nn.Module):
            found = self._of_module(selector, argument)
        elif isinstance(selector, str):
            found = self._of_pattern(selector, argument)
        else:
            raise PruningTypeError(f"{argument} takes names, glob patterns and modules, not {selector!r}")
        return {index for name in found for index in self._groups.get(name, ())}

    def _of_module(self, module: nn.Module, argument: str) -> list[str]:
        theirs, ours = set(module.parameters()), dict(self._gm.named_parameters(remove_duplicate=False))
        found = [t.name for t in self._parameters if any(ours.get(n) in theirs for n in t.names)]
        if not found:
            raise PlanError(
                f"{argument} has a {type(module).__name__} that shares no parameter with the graph: give a module of the model "
                "that was captured, or a name"
            )
        return found

    def _of_pattern(self, pattern: str, argument: str) -> list[str]:
        inside = pattern + ".*"
        matches = fnmatch.fnmatchcase
        found = [t.name for t in self._parameters if any(matches(n, pattern) or matches(n, inside) for n in t.names)]
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
    return {index for selector in ignore for index in names.groups(selector, "ignore")}


def uncrossed(deps: Dependencies, census: Census, ignored: set[int], choose: Choose | None) -> list[Group]:
    """Return the groups to prune, not ``ignored`` and no two of them crossing, unless ``choose`` is "all".

    Two groups cross if some position of a parameter or buffer belongs to both, as a row of a projection belongs to a head and
    to a place in the heads. The groups are gone through in an order, and a group is taken unless it crosses a group taken
    before: "outer" goes from the outermost to the innermost group, "inner" back. By default groups of at least eight units
    come first, outermost first, then the smaller groups by falling number of units.
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
        if taken.keys().isdisjoint(crossing[group.index]):
            taken[group.index] = group
    return [taken[index] for index in sorted(taken)]


def _crossings(deps: Dependencies, census: Census) -> nx.Graph[int]:
    """Return the graph of the groups' indices, with an edge wherever two share a position of a parameter or buffer."""
    total = len(deps.groups)
    group_of = np.full(deps.units.count + 1, -1, np.intp)  # the last for NONE
    for group in deps.groups:
        group_of[group.units] = group.index
    crossing: nx.Graph[int] = nx.empty_graph(total)
    for slot in {census.slot(axis) for tracked in deps.tracked for axis in tracked.label.axes}:
        for one, other in itertools.combinations(group_of[census.rows[slot].T], 2):
            both = (one >= 0) & (other >= 0) & (one != other)
            crossing.add_edges_from(divmod(code, total) for code in np.unique(one[both] * total + other[both]).tolist())
    return crossing
