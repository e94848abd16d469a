"""Forms groups: units of one kind that own equally many positions on the same axes."""

from __future__ import annotations

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
    """A group by numbers: its units, its members as (tensor, dimension, positions), and the parameter elements of one."""

    units: Index
    members: list[tuple[int, int, Index]]
    parameters: int


@dataclass(frozen=True, eq=False)
class Found:
    """All groups."""

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
        return _share(self._tensors, [group.members for group in self.groups])


def form_groups(units: Units, tensors: Sequence[tuple[Label, bool]], work: Sequence[Work]) -> Found:
    """Form the groups of what parameters and buffers depend on.

    Args:
        units: what is known about the units.
        tensors: for each parameter and buffer its label, and whether it is a parameter.
        work: the work of every call.

    Returns:
        The groups of at least two units with positions on a parameter, ordered by first appearance.
    """
    places: dict[Content, list[tuple[int, int]]] = {}  # the axes of each content
    for t, (label, _) in enumerate(tensors):
        for dim, axis in enumerate(label.axes):
            if (content := units.content(axis)).is_live:
                places.setdefault(content, []).append((t, dim))
    # From here on a unit is known by its place among those that stand on an axis, which are few of all that were made.
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

    Units are of one class that are of one kind and own equally many positions on each axis.

    Args:
        kinds: the kind of every unit.
        at: which units stand on each content, in its order.
    """
    classes, order = kinds.astype(np.intp), np.full(len(kinds), -1, np.intp)
    next_class, seen = int(kinds.max(initial=-1)) + 1, 0
    for content, found in at.items():
        _, counts, positions, first = content.owned
        new = order[found] < 0
        # Of two that start at one position the one that goes on sooner is the outer one: a head before a place in all heads.
        second = positions[first + np.minimum(counts - 1, 1)]
        by_position = np.lexsort((second[new], positions[first[new]]))
        order[found[new][by_position]] = seen + np.arange(len(by_position))
        seen += len(by_position)
        # What an axis tells apart gets a new class; units that it does not have keep theirs.
        told_apart = classes[found] * (int(counts.max()) + 1) + counts
        if (told_apart == told_apart[0]).all():
            classes[found] = next_class
            next_class += 1
        else:
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
    """Yield for each group on an axis the positions of its units, shape (units, p).

    Args:
        content: what stands on the axis.
        group_of: the group of each of its units, -1 for none.
        rank: the place of each of its units in the group.
    """
    if (group_of >= 0).all() and (group_of == group_of[:1]).all() and (rank[1:] > rank[:-1]).all():  # all in order already
        if len(group_of):
            yield int(group_of[0]), content.owned.positions.reshape(len(group_of), -1)
        return
    _, counts, positions, first = content.owned
    order = np.lexsort((rank, group_of))
    for units in np.split(order, starts(group_of[order])[1:]):
        if len(units) and (group := int(group_of[units[0]])) >= 0:
            # All of them have equally many.
            yield group, positions[first[units][:, None] + np.arange(counts[units[0]])]


def _parameters(members: list[tuple[int, int, Index]], tensors: Sequence[tuple[Label, bool]]) -> int:
    """Return how many parameter elements go with one unit; it may own positions on several dimensions of one parameter."""
    left: dict[int, dict[int, int]] = {}
    for tensor, dim, positions in members:
        if tensors[tensor][1]:
            left.setdefault(tensor, {})[dim] = positions.shape[1]
    total = 0
    for tensor, owned in left.items():
        shape = tensors[tensor][0].shape
        kept = [size - owned.get(dim, 0) for dim, size in enumerate(shape)]
        total += math.prod(shape) - math.prod(kept)
    return total


def _flops(live: Index, work: Sequence[Work], units: Units) -> NDArray[np.float64]:
    """Return the operations that go with every unit of ``live``, which are in order."""
    total, kept = np.zeros(len(live)), np.ones(len(live))
    if not len(live):
        return total
    # The live units on each content, and the share of it that is left without one of them.
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
            kept[here] = 1  # which also counts a unit on several axes once
    return total


def _share(tensors: Sequence[tuple[Label, bool]], members: Sequence[Sequence[tuple[int, int, Index]]]) -> float:
    marks: dict[tuple[int, int], Index] = {}
    for found in members:
        for tensor, dim, positions in found:
            if (tensor, dim) not in marks:
                marks[tensor, dim] = np.zeros(tensors[tensor][0].shape[dim], bool)
            marks[tensor, dim][positions.reshape(-1)] = True
    total = inside = 0
    for t, (label, is_parameter) in enumerate(tensors):
        if is_parameter:
            shape = label.shape
            outside = [int((~marks[t, d]).sum()) if (t, d) in marks else size for d, size in enumerate(shape)]
            total += math.prod(shape)
            inside += math.prod(shape) - math.prod(outside)
    return inside / total if total else 0.0
