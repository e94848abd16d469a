"""Which groups are pruned: the groups that names mean, and of crossing groups, such as heads and places in heads, only one."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import math
from collections.abc import Iterable
from typing import Any, Literal

import networkx as nx
import numpy as np
from torch import nn

from fxprune.algebra.axes import Index
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
        """Return the indices of all groups that live on the parameters that ``selector`` means."""
        return {index for name in self.parameters(selector, argument) for index in self._groups.get(name, ())}

    def parameters(self, selector: Any, argument: str) -> list[str]:
        """Return the names of the parameters that ``selector`` means.

        ``selector`` is the name of a parameter or module, a glob pattern of names, or a module. Errors name it by ``argument``.
        """
        if isinstance(selector, nn.Module):
            return self._of_module(selector, argument)
        if isinstance(selector, str):
            return self._of_pattern(selector, argument)
        raise PruningTypeError(f"{argument} takes names, glob patterns and modules, not {selector!r}")

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


def selectors(ignore: Any) -> list[Any]:
    """Return the names, patterns and modules that ``ignore`` has."""
    if isinstance(ignore, str | nn.Module):
        return [ignore]
    if not isinstance(ignore, Iterable):
        raise PruningTypeError(f"ignore must be an iterable of names, glob patterns and modules, not {ignore!r}")
    return list(ignore)


def uncrossed(deps: Dependencies, census: Census, ignored: set[int], choose: Choose | None) -> list[Group]:
    """Return the groups to prune, not ``ignored`` and no two of them crossing, unless ``choose`` is "all".

    Two groups cross if some position of a parameter or buffer belongs to both, as a row of a projection belongs to a head and
    to a place in the heads. The groups are gone through in an order, and a group is taken unless it crosses a group taken
    before: "outer" goes from the outermost to the innermost group, "inner" back. By default groups of at least eight units
    come first, outermost first, then the smaller groups by falling number of units.
    """
    if choose not in (None, "outer", "inner", "all"):
        raise PlanError(f'choose must be None, "outer", "inner" or "all", not {choose!r}')
    if choose == "all":
        return [group for group in deps.groups if group.index not in ignored]
    nesting = _nesting(deps, census)
    candidates = [deps.groups[index] for index in nx.dfs_postorder_nodes(nesting) if index not in ignored]
    if choose == "inner":
        candidates.reverse()
    elif choose is None:
        candidates.sort(key=lambda g: (0, 0) if g.size >= _ENOUGH else (1, -g.size))
    taken: dict[int, Group] = {}
    for group in candidates:
        if taken.keys().isdisjoint(nx.all_neighbors(nesting, group.index)):
            taken[group.index] = group
    return [taken[index] for index in sorted(taken)]


def _nesting(deps: Dependencies, census: Census) -> nx.DiGraph[int]:
    """Return the graph of the groups' indices, with an edge from inner to outer where two share positions of a tensor.

    The units of the outer group lie further apart: of two heads of six places, which a rotary embedding takes in pairs of
    neighbours, the heads start at 0 and 6, and the pairs at 0, 2 and 4. The first axis that both groups are on decides.
    """
    total = len(deps.groups)
    group_of = np.full(deps.units.count + 1, -1, np.intp)  # the last for NONE
    for group in deps.groups:
        group_of[group.units] = group.index
    nesting: nx.DiGraph[int] = nx.empty_graph(total, nx.DiGraph)
    for slot in dict.fromkeys(census.slot(axis) for tracked in deps.tracked for axis in tracked.label.axes):
        for one, other in itertools.combinations(census.rows[slot].T, 2):
            pairs = np.where((group_of[one] >= 0) & (group_of[other] >= 0), group_of[one] * total + group_of[other], -1)
            for pair in np.unique(pairs[pairs >= 0]).tolist():
                a, b = divmod(pair, total)
                if a != b and not nesting.has_edge(a, b) and not nesting.has_edge(b, a):
                    at = np.flatnonzero(pairs == pair)
                    inner = min((_distance(one, at), -a), (_distance(other, at), -b))
                    nesting.add_edge(*((a, b) if inner[1] == -a else (b, a)))
    return nesting


def _distance(units: Index, at: Index) -> float:
    """Return the least distance between the first of the positions ``at`` that each unit has; infinite for one unit."""
    first = np.sort(at[np.unique(units[at], return_index=True)[1]])
    return float(np.diff(first).min()) if len(first) > 1 else math.inf
