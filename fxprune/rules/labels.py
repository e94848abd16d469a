"""Labels: the axes of a tensor, and its values where positions were removed."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from fxprune.algebra.axes import Axis, Reason


class Zero(enum.IntEnum):
    """The values at the removed positions of an axis in a masked graph. Where two are possible the smaller is the safe one."""

    UNKNOWN = 0
    """Perhaps infinite or not a number, such as 1 / 0."""
    FINITE = 1
    """Some number, such as the 0.5 that a sigmoid makes of 0."""
    ZERO = 2
    """Always zero."""

    __hash__ = int.__hash__  # that of enum.Enum is many times slower


def product(states: Iterable[Zero]) -> Zero:
    """Return the state of a product: 0 * inf is UNKNOWN, 0 * 0.5 is ZERO."""
    states = list(states)
    if Zero.UNKNOWN in states:
        return Zero.UNKNOWN
    return Zero.ZERO if Zero.ZERO in states else Zero.FINITE


@dataclass(frozen=True, eq=False)
class Label:
    """The label of a tensor.

    Behind a ReLU of shape (8, 64) the label has a whole axis of 8, an axis of 64 units, and the states FINITE, ZERO.

    Attributes:
        axes: the axis of each dimension.
        zeros: the state of each dimension at its removed positions.
        constant: the tensor's values, if they are integers or flags that depend on no input and no weight.
        producer: the number of the step that made the tensor; -1 if no step did.
        shape: the tensor's shape.
    """

    axes: tuple[Axis, ...]
    zeros: tuple[Zero, ...]
    constant: Tensor | None = None
    producer: int = -1
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple([axis.size for axis in self.axes]))

    @staticmethod
    def whole(shape: Iterable[int], why: Reason | None = None) -> Label:
        """Return the label of a tensor whose positions can never go."""
        axes = tuple(Axis.whole(size, why) for size in shape)
        return Label(axes, (Zero.FINITE,) * len(axes))

    def __len__(self) -> int:
        return len(self.axes)
