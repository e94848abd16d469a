"""Forms groups: units of one kind that own equally many positions on the same axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fxprune.algebra.axes import Index, Rows
from fxprune.algebra.contents import Content, starts
from fxprune.algebra.units import Units
from fxprune.rules.card import Work
from fxprune.rules.labels import Label


@dataclass(frozen=True, eq=False)
class FoundGroup:
    """A group by numbers."""

    units: Index
    members: list[tuple[int, int, Index]]  # (tensor, dimension, positions)
    parameters: int  # elements of parameters that go with one unit


@dataclass(frozen=True, eq=False)
class Found:
    """All groups; their operations and share are computed when asked for."""

    groups: list[FoundGroup]
    _tensors: Sequence[tuple[Label, bool]]
    _live: Index
    _work: Sequence[Work]
    _units: Units

    @cached_property
    def flops(self) -> list[float]:
        """The operations that go with one unit of each group, on average."""
        flops = _flops(self._live, self._work, self._units)
        return [float(flops[np.searchsorted(self._live, group.units)].mean()) for group in self.groups]

    @cached_property
    def share(self) -> float:
        """The share of the parameters' elements that belong to at least one group."""
        marks: dict[tuple[int, int], NDArray[np.bool_]] = {}
        for tensor, dim, positions in (member for group in self.groups for member in group.members):
            flags = marks.setdefault((tensor, dim), np.zeros(self._tensors[tensor][0].shape[dim], bool))
            flags[positions.reshape(-1)] = True
        total = inside = 0
        for t, (label, is_parameter) in enumerate(self._tensors):
            if is_parameter:
                outside = [int((~marks[t, d]).sum()) if (t, d) in marks else size for d, size in enumerate(label.shape)]
                total += math.prod(label.shape)
                inside += math.prod(label.shape) - math.prod(outside)
        return inside / total if total else 0.0


def form_groups(units: Units, tensors: Sequence[tuple[Label, bool]], work: Sequence[Work]) -> Found:
    """Form the groups of at least two units that have positions on a parameter, ordered by first appearance.

    Args:
        tensors: for each parameter and buffer its label, and whether it is a parameter.
        work: the work of every call.
    """
    places: dict[Content, list[tuple[int, int]]] = {}  # the axes of each content
    for t, (label, _) in enumerate(tensors):
        for dim, axis in enumerate(label.axes):
            if (content := units.content(axis)).is_live:
                places.setdefault(content, []).append((t, dim))
    # From here on a unit is its index in ``live``, the units on axes of parameters and buffers: few of all that were made.
    number = np.zeros(units.count, np.intp)
    for content in places:
        number[content.owned.units] = 1
    live = np.flatnonzero(number)
    number[live] = np.arange(len(live))
    at = {content: number[content.owned.units] for content in places}
    classes, order = _classes(units.kind_of(live), at)
    on_parameter = np.zeros(int(classes.max(initial=-1)) + 1, bool)
    for content, axes in places.items():
        if any(tensors[t][1] for t, _ in axes):
            on_parameter[classes[at[content]]] = True
    blocks = [b for b in _blocks(classes, order) if len(b) > 1 and on_parameter[classes[b[0]]]]
    blocks.sort(key=lambda block: int(order[block[0]]))
    group_of, rank = np.full(len(live), -1, np.intp), np.zeros(len(live), np.intp)
    for g, block in enumerate(blocks):
        group_of[block], rank[block] = g, np.arange(len(block))
    members: list[list[tuple[int, int, Index]]] = [[] for _ in blocks]
    for content, axes in places.items():
        for g, positions in _by_group(content, group_of[at[content]], rank[at[content]]):
            members[g] += [(t, dim, positions) for t, dim in axes]
    for found in members:
        found.sort(key=lambda member: member[:2])
    groups = [FoundGroup(live[block], found, _parameters(found, tensors)) for block, found in zip(blocks, members, strict=True)]
    return Found(groups, tensors, live, work, units)


def _classes(kinds: Rows, at: Mapping[Content, Index]) -> tuple[Index, Index]:
    """Return for every unit its class and its place in the order of first appearance.

    Units of one class are of one kind and own equally many positions on each axis. Example: kind 0 has the units 0 to 3, and a
    content has the rows ``[[0], [0], [1], [2]]``. Unit 0 owns two positions, units 1 and 2 one, unit 3 none: three classes.

    Args:
        kinds: the kind of every unit.
        at: the units on each content, in the order of ``content.owned.units``.
    """
    classes, order = kinds.astype(np.intp), np.full(len(kinds), -1, np.intp)
    next_class, seen = int(kinds.max(initial=-1)) + 1, 0
    for content, found in at.items():
        _, counts, positions, first = content.owned
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
    used = np.empty(len(order), np.intp)
    used[order] = np.arange(len(order))
    used = used[np.argsort(classes[used], kind="stable")]
    return np.split(used, starts(classes[used])[1:]) if len(used) else []


def _by_group(content: Content, group_of: Index, rank: Index) -> Iterator[tuple[int, Index]]:
    """Yield for each group on a content the positions of its units, shape (units, p).

    Args:
        group_of: the group of each unit on the content, -1 for none.
        rank: the place of each unit in its group.
    """
    _, counts, positions, first = content.owned
    order = np.lexsort((rank, group_of))
    for units in np.split(order, starts(group_of[order])[1:]):
        if len(units) and (group := int(group_of[units[0]])) >= 0:
            # The units of a group have equally many positions.
            yield group, positions[first[units][:, None] + np.arange(counts[units[0]])]


def _parameters(members: list[tuple[int, int, Index]], tensors: Sequence[tuple[Label, bool]]) -> int:
    """Return how many parameter elements go with one unit, which may own positions on several dimensions of one parameter."""
    total = 0
    for tensor, on_tensor in itertools.groupby(members, lambda member: member[0]):
        label, is_parameter = tensors[tensor]
        if is_parameter:
            kept = list(label.shape)
            for _, dim, positions in on_tensor:
                kept[dim] -= positions.shape[1]
            total += math.prod(label.shape) - math.prod(kept)
    return total


def _flops(live: Index, work: Sequence[Work], units: Units) -> NDArray[np.float64]:
    """Return the operations that go with every unit of ``live``, which is sorted."""
    total, kept = np.zeros(len(live)), np.ones(len(live))
    if not len(live):
        return total
    # By content the live units on it, and the share of its positions that is left without each of them.
    known: dict[Content, tuple[Index, NDArray[np.float64]]] = {}
    for part in work:
        contents = [content for axis in part.axes if (content := units.content(axis)).is_live]
        for content in contents:
            if content not in known:
                owned = content.owned
                here = np.minimum(np.searchsorted(live, owned.units), len(live) - 1)
                there = live[here] == owned.units
                known[content] = here[there], 1 - owned.counts[there] / content.size
            here, left = known[content]
            kept[here] *= left
        for content in contents:
            here, _ = known[content]
            total[here] += part.flops * (1 - kept[here])
            kept[here] = 1  # so a unit on several axes counts once
    return total
