"""Forms groups: units of one kind that own equally many positions on the same axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fxprune.algebra.axes import Index, Rows
from fxprune.algebra.contents import Content, starts
from fxprune.algebra.units import Units
from fxprune.analysis.flops import UnitFlops
from fxprune.analysis.groups import Group, Member
from fxprune.analysis.sources import Tracked
from fxprune.rules.card import Work


def form_groups(units: Units, tracked: Sequence[Tracked], work: Sequence[Work]) -> tuple[Group, ...]:
    """Form the groups of at least two units that have positions on a parameter, ordered by first appearance."""
    places: dict[Content, list[tuple[int, int]]] = {}  # the axes of each content
    for t, tensor in enumerate(tracked):
        for dim, axis in enumerate(tensor.label.axes):
            if (content := units.content(axis)).is_live:
                places.setdefault(content, []).append((t, dim))
    classes, order = _classes(units.kinds(), places)
    on_parameter = np.zeros(int(classes.max(initial=-1)) + 1, bool)
    for content, axes in places.items():
        if any(tracked[t].is_parameter for t, _ in axes):
            on_parameter[classes[content.owned.units]] = True
    blocks = [b for b in _blocks(classes, order) if len(b) > 1 and on_parameter[classes[b[0]]]]
    blocks.sort(key=lambda block: int(order[block[0]]))
    group_of, rank = np.full(units.count, -1, np.intp), np.zeros(units.count, np.intp)
    for g, block in enumerate(blocks):
        group_of[block], rank[block] = g, np.arange(len(block))
    members: list[list[tuple[int, int, Index]]] = [[] for _ in blocks]
    for content, axes in places.items():
        for g, positions in _by_group(content, group_of, rank):
            members[g] += [(t, dim, positions) for t, dim in axes]
    flops = UnitFlops(units, work)
    groups: list[Group] = []
    for block, found in zip(blocks, members, strict=True):
        found.sort(key=lambda member: (not tracked[member[0]].is_parameter, *member[:2]))
        named = [Member(tracked[t].name, dim, positions, not tracked[t].is_parameter) for t, dim, positions in found]
        groups.append(Group(len(groups), len(block), tuple(named), _parameters(found, tracked), block, flops))
    return tuple(groups)


def _classes(kinds: Rows, contents: Iterable[Content]) -> tuple[Index, Index]:
    """Return for every unit its class and its place in the order of first appearance, -1 for a unit on no content.

    Units of one class are of one kind and own equally many positions on each axis. Example: kind 0 has the units 0 to 3, and a
    content has the rows ``[[0], [0], [1], [2]]``. Unit 0 owns two positions, units 1 and 2 one, unit 3 none: three classes.
    """
    classes, order = kinds.astype(np.intp), np.full(len(kinds), -1, np.intp)
    next_class, seen = int(kinds.max(initial=-1)) + 1, 0
    for content in contents:
        found, counts, positions, first = content.owned
        new = order[found] < 0
        # Two units may have the same first position, as a head and a place in all heads. The head comes first: its second
        # position is the nearer one.
        second = positions[first + np.minimum(counts - 1, 1)]
        by_position = np.lexsort((second[new], positions[first[new]]))
        order[found[new][by_position]] = seen + np.arange(len(by_position))
        seen += len(by_position)
        # The units on the content get new classes, one for each pair of class and count; all other units keep theirs.
        told_apart = classes[found] * (int(counts.max()) + 1) + counts
        _, refined = np.unique(told_apart, return_inverse=True)
        classes[found] = next_class + refined.reshape(-1)
        next_class += int(refined.max()) + 1
    return classes, order


def _blocks(classes: Index, order: Index) -> list[Index]:
    """Return the units of each class, in the order of first appearance."""
    used = np.flatnonzero(order >= 0)
    used = used[np.lexsort((order[used], classes[used]))]
    return np.split(used, starts(classes[used])[1:]) if len(used) else []


def _by_group(content: Content, group_of: Index, rank: Index) -> Iterator[tuple[int, Index]]:
    """Yield for each group on a content the positions of its units, shape (units, p).

    Args:
        group_of: the group of each unit, -1 for none.
        rank: the place of each unit in its group.
    """
    units, counts, positions, first = content.owned
    order = np.lexsort((rank[units], group_of[units]))
    for here in np.split(order, starts(group_of[units[order]])[1:]):
        if len(here) and (group := int(group_of[units[here[0]]])) >= 0:
            # The units of a group have equally many positions.
            yield group, positions[first[here][:, None] + np.arange(counts[here[0]])]


def _parameters(members: list[tuple[int, int, Index]], tracked: Sequence[Tracked]) -> int:
    """Return how many parameter elements go with one unit, which may own positions on several dimensions of one parameter."""
    total = 0
    for t, on_tensor in itertools.groupby(members, lambda member: member[0]):
        if tracked[t].is_parameter:
            kept = list(tracked[t].label.shape)
            for _, dim, positions in on_tensor:
                kept[dim] -= positions.shape[1]
            total += math.prod(tracked[t].label.shape) - math.prod(kept)
    return total
