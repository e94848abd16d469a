"""Groups as users see them, with members by the names of parameters."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from fxprune.algebra.axes import Index
from fxprune.analysis.flops import UnitFlops


@dataclass(frozen=True, eq=False)
class Member:
    """One parameter or buffer axis on which the units of a group have positions.

    Attributes:
        parameter: the dotted name.
        dim: the dimension.
        positions: int array of shape (units, p): the positions that each unit owns.
        is_buffer: whether it is a buffer.
    """

    parameter: str
    dim: int
    positions: Index
    is_buffer: bool

    @property
    def name(self) -> str:
        """The dotted name."""
        return self.parameter

    def __str__(self) -> str:
        times = f"*{self.positions.shape[1]}" if self.positions.shape[1] != 1 else ""
        return f"{self.parameter}[{self.dim}]{times}"


@dataclass(frozen=True, eq=False)
class Group:
    """Units of one kind, which own equally many positions on the same axes.

    Attributes:
        index: its place in ``Dependencies.groups``.
        size: the number of units.
        members: the axes on which the units have positions, parameters first.
        parameters: elements of parameters that go with one unit.
        units: the units themselves.
    """

    index: int
    size: int
    members: tuple[Member, ...]
    parameters: int
    units: Index
    _flops: UnitFlops = field(repr=False)

    @property
    def on_parameters(self) -> tuple[Member, ...]:
        """The members that are not buffers."""
        return tuple(member for member in self.members if not member.is_buffer)

    @property
    def flops(self) -> float:
        """The floating-point operations at the example's sizes that go with one unit, on average."""
        return self._flops.of(self.units)

    def __str__(self) -> str:
        return f"group {self.index}: {self.size} units of {self.parameters:,} parameters on " + " ".join(map(str, self.members))


def digest(group: Group) -> str:
    """Return a digest of a group's positions on parameters. It does not depend on the order of members and units."""
    members = sorted(group.on_parameters, key=lambda m: (m.parameter, m.dim))
    positions = np.concatenate([np.empty((group.size, 0), np.int64), *(m.positions for m in members)], 1)
    positions = positions[np.lexsort(positions.T[::-1])]
    digest = hashlib.sha256(" ".join(f"{m.parameter} {m.dim} {m.positions.shape[1]}" for m in members).encode())
    digest.update(positions.astype("<i8").tobytes())
    return f"{group.size} {digest.hexdigest()}"
