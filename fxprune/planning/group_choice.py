"""Which groups are pruned of those that cross, such as heads and places in heads: only one."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import networkx as nx
import numpy as np

from fxprune.algebra.axes import Index
from fxprune.analysis.costs import Census
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group
from fxprune.errors import PlanError

Choose = Literal["outer", "inner", "all"]

# The least number of units of which half are enough. Networks left with two of four attention heads fall behind networks left
# with half of each head; networks left with four of eight heads do not (python -m tests.benchmarks accuracy).
_ENOUGH = 8


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
