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
class _Place:
    """The units on one axis: each with its position, ordered by unit and position."""

    tensor: int
    dim: int
    units: Index
    positions: Index


class _Resolver:
    """Resolves axes, each array of rows once."""

    def __init__(self, units: Units) -> None:
        self.units = units
        self.known: dict[int, tuple[Rows, Rows]] = {}

    def __call__(self, axis: Axis) -> Rows:
        if id(axis.rows) not in self.known:
            # The array is kept with its result, so that no other can take its identity.
            self.known[id(axis.rows)] = (axis.rows, self.units.resolve(axis))
        return self.known[id(axis.rows)][1]


def form_groups(units: Units, tensors: Sequence[tuple[Label, bool]], work: Sequence[Work]) -> Found:
    """Form the groups of what parameters and buffers depend on.

    Args:
        units: what is known about the units.
        tensors: for each parameter and buffer its label, and whether it is a parameter.
        work: the work of every call.

    Returns:
        The groups of at least two units with positions on a parameter, ordered by first appearance.
    """
    resolve = _Resolver(units)
    places = [
        _place(t, dim, rows)
        for t, (label, _) in enumerate(tensors)
        for dim, axis in enumerate(label.axes)
        if (rows := resolve(axis)).size
    ]
    classes, order = _classes(units, places)
    parameters = [t for t, (_, is_parameter) in enumerate(tensors) if is_parameter]
    on_parameter = np.zeros(int(classes.max(initial=-1)) + 1, bool)
    for place in places:
        if tensors[place.tensor][1]:
            on_parameter[classes[place.units]] = True
    used = np.flatnonzero(classes >= 0)
    used = used[np.lexsort((order[used], classes[used]))]
    starts = np.flatnonzero(np.r_[True, np.diff(classes[used]) != 0]) if len(used) else np.empty(0, np.intp)
    blocks = [b for b in np.split(used, starts[1:]) if len(b) > 1 and on_parameter[classes[b[0]]]] if len(used) else []
    blocks.sort(key=lambda block: int(order[block].min()))
    group_of = np.full(units.count, -1, np.intp)
    rank = np.zeros(units.count, np.intp)
    for g, block in enumerate(blocks):
        group_of[block], rank[block] = g, np.arange(len(block))
    members: list[list[tuple[int, int, Index]]] = [[] for _ in blocks]
    sizes = [len(block) for block in blocks]
    for place in places:
        for g, positions in _by_group(place, group_of, rank, sizes):
            members[g].append((place.tensor, place.dim, positions))
    flops = _flops(units, work, resolve)
    groups = [
        FoundGroup(block, found, _parameters(found, tensors), float(flops[block].mean()))
        for block, found in zip(blocks, members, strict=True)
    ]
    return Found(groups, _share(parameters, tensors, members))


def _place(tensor: int, dim: int, rows: Rows) -> _Place:
    position, _ = np.nonzero(rows != NONE)
    flat = rows[rows != NONE].astype(np.intp)
    order = np.lexsort((position, flat))
    return _Place(tensor, dim, flat[order], position[order])


def _classes(units: Units, places: list[_Place]) -> tuple[Index, Index]:
    """Return for every unit its class and its place in the order of first appearance; -1 for units on no axis.

    Units are of one class that are of one kind and own equally many positions on each axis.
    """
    classes, order = np.full(units.count, -1, np.intp), np.full(units.count, -1, np.intp)
    kinds = units.kind_of(np.arange(units.count)) if units.count else np.empty(0, np.intp)
    next_class, seen = int(kinds.max(initial=-1)) + 1, 0
    for place in places:
        found, first, counts = np.unique(place.units, return_index=True, return_counts=True)
        new = order[found] < 0
        classes[found[new]] = kinds[found[new]]
        # Of two that start at one position the one that ends first is the outer one: a head before a place in all heads.
        last = place.positions[first + counts - 1]
        by_position = np.lexsort((last[new], place.positions[first[new]]))
        order[found[new][by_position]] = seen + np.arange(new.sum())
        seen += int(new.sum())
        # What an axis tells apart gets a new class; units that it does not have keep theirs.
        _, refined = np.unique(classes[found] * (int(counts.max()) + 1) + counts, return_inverse=True)
        classes[found] = next_class + refined.reshape(-1)
        next_class += int(refined.max()) + 1
    return classes, order


def _by_group(place: _Place, group_of: Index, rank: Index, sizes: list[int]) -> list[tuple[int, Index]]:
    """Return for each group on an axis the positions of its units, shape (units, p)."""
    group = group_of[place.units]
    keep = group >= 0
    group, units, positions = group[keep], place.units[keep], place.positions[keep]
    order = np.lexsort((positions, rank[units], group))
    group, positions = group[order], positions[order]
    starts = np.flatnonzero(np.r_[True, np.diff(group) != 0]) if len(group) else np.empty(0, np.intp)
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


def _flops(units: Units, work: Sequence[Work], resolve: _Resolver) -> NDArray[np.float64]:
    """Return the operations that go with every unit."""
    total = np.zeros(units.count)
    counted: dict[int, tuple[Rows, NDArray[np.float64]]] = {}
    for part in work:
        shares = []
        for axis in part.axes:
            if axis.is_whole or not axis.size:
                continue
            if id(axis.rows) not in counted:
                rows = resolve(axis)
                found, counts = np.unique(rows[rows != NONE], return_counts=True)
                counted[id(axis.rows)] = (found, 1 - counts / axis.size)
            if len(counted[id(axis.rows)][0]):
                shares.append(counted[id(axis.rows)])
        if len(shares) == 1:
            total[shares[0][0]] += part.flops * (1 - shares[0][1])
        elif shares:
            found, place = np.unique(np.concatenate([f for f, _ in shares]), return_inverse=True)
            kept = np.ones(len(found))
            np.multiply.at(kept, place, np.concatenate([k for _, k in shares]))
            total[found] += part.flops * (1 - kept)
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
