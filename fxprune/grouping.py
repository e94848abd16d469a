"""Forms groups: units of one kind that own equally many positions on the same axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.axes import NONE, Axis, Index, Rows
from fxprune.flops import Work
from fxprune.rules.labels import Label
from fxprune.units import Units


@dataclass(frozen=True, eq=False)
class FoundGroup:
    """A group by numbers: its units, its members as (tensor, dimension, positions), and what one unit costs."""

    units: Index
    members: list[tuple[int, int, Index]]
    parameters: int
    flops: float


@dataclass(frozen=True, eq=False)
class Found:
    """All groups, and the share of the parameters' elements that belong to at least one."""

    groups: list[FoundGroup]
    share: float


@dataclass(frozen=True, eq=False)
class _Content:
    """What stands on axes that hold the same units at the same positions: each unit with each of its positions.

    Attributes:
        size: the positions of such an axis.
        owner: the units, each as often as it has a position; in order.
        positions: their positions; those of one unit in order.
        units: each unit once.
        first: where it first stands in ``owner``.
        counts: how many positions it has.
    """

    size: int
    owner: Index
    positions: Index
    units: Index
    first: Index
    counts: Index

    @staticmethod
    def of(rows: Rows) -> _Content:
        """Read resolved rows."""
        position, column = np.nonzero(rows != NONE)
        owner = rows[position, column].astype(np.intp)
        if np.count_nonzero(owner[1:] < owner[:-1]):
            order = np.argsort(owner, kind="stable")  # positions are in order already
            owner, position = owner[order], position[order]
        first = _starts(owner)
        return _Content(len(rows), owner, position, owner[first], first, np.diff(first, append=len(owner)))


def _starts(ordered: Index) -> Index:
    """Return where each run of equal entries starts."""
    new = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return np.flatnonzero(new)


class _Reader:
    """Resolves axes, and reads what stands on them; axes with the same on them once."""

    def __init__(self, units: Units) -> None:
        self.units = units
        self._by_rows: dict[int, tuple[Rows, _Content | None]] = {}
        self._by_value: dict[tuple[tuple[int, ...], bytes], _Content] = {}

    def __call__(self, axis: Axis) -> _Content | None:
        """Return what stands on an axis, None if it stays whole."""
        if axis.is_whole:
            return None
        if id(axis.rows) not in self._by_rows:
            # The array is kept with its content, so that no other can take its identity.
            self._by_rows[id(axis.rows)] = (axis.rows, self._read(axis))
        return self._by_rows[id(axis.rows)][1]

    def _read(self, axis: Axis) -> _Content | None:
        rows = self.units.resolve(axis)
        if not rows.size:
            return None
        key = (rows.shape, rows.tobytes())
        if key not in self._by_value:
            self._by_value[key] = _Content.of(rows)
        return self._by_value[key]


def form_groups(units: Units, tensors: Sequence[tuple[Label, bool]], work: Sequence[Work]) -> Found:
    """Form the groups of what parameters and buffers depend on.

    Args:
        units: what is known about the units.
        tensors: for each parameter and buffer its label, and whether it is a parameter.
        work: the work of every call.

    Returns:
        The groups of at least two units with positions on a parameter, ordered by first appearance.
    """
    read = _Reader(units)
    places: dict[_Content, list[tuple[int, int]]] = {}  # the axes of each content
    for t, (label, _) in enumerate(tensors):
        for dim, axis in enumerate(label.axes):
            if (content := read(axis)) is not None:
                places.setdefault(content, []).append((t, dim))
    classes, order = _classes(units, list(places))
    on_parameter = np.zeros(int(classes.max(initial=-1)) + 1, bool)
    for content, axes in places.items():
        if any(tensors[t][1] for t, _ in axes):
            on_parameter[classes[content.units]] = True
    blocks = [b for b in _blocks(classes, order) if len(b) > 1 and on_parameter[classes[b[0]]]]
    blocks.sort(key=lambda block: int(order[block[0]]))
    group_of = np.full(units.count, -1, np.intp)
    rank = np.zeros(units.count, np.intp)
    for g, block in enumerate(blocks):
        group_of[block], rank[block] = g, np.arange(len(block))
    members: list[list[tuple[int, int, Index]]] = [[] for _ in blocks]
    sizes = [len(block) for block in blocks]
    for content, axes in places.items():
        for g, positions in _by_group(content, group_of, rank, sizes):
            members[g] += [(t, dim, positions) for t, dim in axes]
    flops = _flops(units, work, read)
    for found in members:
        found.sort(key=lambda member: member[:2])
    groups = [
        FoundGroup(block, found, _parameters(found, tensors), float(flops[block].mean()))
        for block, found in zip(blocks, members, strict=True)
    ]
    parameters = [t for t, (_, is_parameter) in enumerate(tensors) if is_parameter]
    return Found(groups, _share(parameters, tensors, members))


def _classes(units: Units, contents: list[_Content]) -> tuple[Index, Index]:
    """Return for every unit its class and its place in the order of first appearance; -1 for units on no axis.

    Units are of one class that are of one kind and own equally many positions on each axis.
    """
    classes, order = np.full(units.count, -1, np.intp), np.full(units.count, -1, np.intp)
    kinds = units.kind_of(np.arange(units.count)) if units.count else np.empty(0, np.intp)
    next_class, seen = int(kinds.max(initial=-1)) + 1, 0
    for content in contents:
        found, first, counts = content.units, content.first, content.counts
        new = order[found] < 0
        classes[found[new]] = kinds[found[new]]
        # Of two that start at one position the one that goes on sooner is the outer one: a head before a place in all heads.
        second = content.positions[first + np.minimum(counts - 1, 1)]
        by_position = np.lexsort((second[new], content.positions[first[new]]))
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
    seen = np.flatnonzero(order >= 0)
    used = np.empty(len(seen), np.intp)
    used[order[seen]] = seen
    used = used[np.argsort(classes[used], kind="stable")]
    return np.split(used, _starts(classes[used])[1:]) if len(used) else []


def _by_group(content: _Content, group_of: Index, rank: Index, sizes: list[int]) -> list[tuple[int, Index]]:
    """Return for each group on an axis the positions of its units, shape (units, p)."""
    group = group_of[content.owner]
    keep = group >= 0
    group, owner, positions = group[keep], content.owner[keep], content.positions[keep]
    order = np.lexsort((positions, rank[owner], group))
    group, positions = group[order], positions[order]
    starts = _starts(group)
    blocks = np.split(positions, starts[1:]) if len(group) else []
    return [(int(g), block.reshape(sizes[g], -1)) for g, block in zip(group[starts], blocks, strict=True)]


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
        total += int(np.prod(shape, dtype=np.int64)) - int(np.prod(kept, dtype=np.int64))
    return total


def _flops(units: Units, work: Sequence[Work], read: _Reader) -> NDArray[np.float64]:
    """Return the operations that go with every unit."""
    total, kept = np.zeros(units.count), np.ones(units.count)
    for part in work:
        contents = [content for axis in part.axes if (content := read(axis)) is not None]
        for content in contents:
            kept[content.units] *= 1 - content.counts / content.size
        for content in contents:
            total[content.units] += part.flops * (1 - kept[content.units])
            kept[content.units] = 1  # which also counts a unit on several axes once
    return total


def _share(
    parameters: list[int], tensors: Sequence[tuple[Label, bool]], members: Sequence[Sequence[tuple[int, int, Index]]]
) -> float:
    marks: dict[tuple[int, int], Index] = {}
    for found in members:
        for tensor, dim, positions in found:
            if (tensor, dim) not in marks:
                marks[tensor, dim] = np.zeros(tensors[tensor][0].shape[dim], bool)
            marks[tensor, dim][positions.reshape(-1)] = True
    total = inside = 0
    for t in parameters:
        shape = tensors[t][0].shape
        outside = [int((~marks[t, d]).sum()) if (t, d) in marks else size for d, size in enumerate(shape)]
        total += int(np.prod(shape, dtype=np.int64))
        inside += int(np.prod(shape, dtype=np.int64)) - int(np.prod(outside, dtype=np.int64))
    return inside / total if total else 0.0
