"""What is known of the values of a tensor, slice by slice along its dimensions."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.algebra.axes import Index
from fxprune.analysis.remaining import Flags


class SliceState(enum.IntEnum):
    """What all elements of a slice are. Of two that meet the smaller is the safe one."""

    UNKNOWN = 0
    """Perhaps infinite or no number."""
    FINITE = 1
    """Some numbers."""
    CONSTANT = 2
    """One and the same number, whatever the graph is given, in train and in eval mode."""
    ZERO = 3
    """Zero, likewise."""


@dataclass(frozen=True, eq=False)
class Slices:
    """The states of the slices of a tensor along one dimension, or along several that form a grid.

    Attributes:
        states: an int8 array of :class:`State`.
        values: of the same shape, the number where the state is CONSTANT; zero elsewhere.
    """

    states: NDArray[np.int8]
    values: NDArray[np.float64]

    @staticmethod
    def all(state: SliceState, shape: Sequence[int]) -> Slices:
        """Return slices in one state other than CONSTANT."""
        return Slices(np.full(shape, state, np.int8), np.zeros(shape))

    @staticmethod
    def of_numbers(values: NDArray[np.float64], known: Flags) -> Slices:
        """Return slices that hold these numbers where they are ``known``, and some numbers elsewhere."""
        states = np.where(values == 0, SliceState.ZERO, SliceState.CONSTANT)
        states = np.where(np.isfinite(values), states, SliceState.UNKNOWN)
        states = np.where(known, states, SliceState.FINITE).astype(np.int8)
        return Slices(states, np.where(states == SliceState.CONSTANT, values, 0.0))

    @property
    def is_constant(self) -> Flags:
        """Which slices hold one number, zero included."""
        flags: Flags = self.states >= SliceState.CONSTANT
        return flags

    @property
    def tells(self) -> bool:
        """Whether anything else is known than that there are numbers."""
        return bool((self.states != SliceState.FINITE).any())

    # The same slices in another order or shape.

    def take(self, index: Index) -> Slices:
        """Return the slices along a dimension of which position i was position ``index[i]``."""
        return Slices(self.states[index], self.values[index])

    def reshape(self, shape: Sequence[int]) -> Slices:
        """Return the slices on a grid of another shape."""
        return Slices(self.states.reshape(shape), self.values.reshape(shape))

    def transpose(self, order: Sequence[int]) -> Slices:
        """Return the slices on a grid whose dimensions are in another order."""
        return Slices(self.states.transpose(order), self.values.transpose(order))

    def expand(self, shape: Sequence[int]) -> Slices:
        """Return the slices repeated along the dimensions of size one."""
        return Slices(np.broadcast_to(self.states, shape), np.broadcast_to(self.values, shape))

    # Several in one.

    def meet(self, dims: Sequence[int]) -> Slices:
        """Return what holds of all slices along some dimensions of the grid together."""
        if not dims:
            return self
        over = tuple(dims)
        states: NDArray[np.int8] = self.states.min(over)
        low, high = self.values.min(over), self.values.max(over)
        constant = states == SliceState.CONSTANT
        states = np.where(constant & (low != high), SliceState.FINITE, states).astype(np.int8)
        return Slices(states, np.where(states == SliceState.CONSTANT, low, 0.0))

    def join(self, other: Slices) -> Slices:
        """Return what is known of the places where slices along different dimensions cross; broadcasts."""
        mine = self.states >= other.states
        return Slices(np.where(mine, self.states, other.states), np.where(mine, self.values, other.values))


def met(parts: Sequence[Slices]) -> Slices:
    """Return what holds of equally many slices of several tensors alike."""
    shape = np.broadcast_shapes(*(part.states.shape for part in parts))
    wide = [part.expand(shape) for part in parts]
    return Slices(np.stack([p.states for p in wide]), np.stack([p.values for p in wide])).meet([0])


def added(terms: Sequence[Slices]) -> Slices:
    """Return what the sum of tensors holds, slice by slice; broadcasts."""
    shape = np.broadcast_shapes(*(term.states.shape for term in terms))
    wide = [term.expand(shape) for term in terms]
    states = np.stack([term.states for term in wide]).min(0)
    total = np.stack([term.values for term in wide]).sum(0)
    constant = states >= SliceState.CONSTANT
    return Slices(np.where(constant, Slices.of_numbers(total, constant).states, states), np.where(constant, total, 0.0))


def multiplied(factors: Sequence[Slices]) -> Slices:
    """Return what the product of tensors holds, slice by slice, in which only zeros tell something; broadcasts."""
    shape = np.broadcast_shapes(*(factor.states.shape for factor in factors))
    states = np.stack([factor.expand(shape).states for factor in factors])
    found = np.where((states == SliceState.ZERO).any(0), SliceState.ZERO, SliceState.FINITE)
    return Slices(np.where((states == SliceState.UNKNOWN).any(0), SliceState.UNKNOWN, found).astype(np.int8), np.zeros(shape))
