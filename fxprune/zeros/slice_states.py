"""The states of the slices of a tensor along its dimensions: zero, one number, finite, or unknown."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.algebra.axes import Index
from fxprune.analysis.remaining import Flags


class SliceState(enum.IntEnum):
    """The state of all elements of a slice. Where two states are possible the smaller is the safe one."""

    UNKNOWN = 0
    """Nothing: elements may be infinite or not a number."""
    FINITE = 1
    """Every element is a finite number."""
    CONSTANT = 2
    """All elements are the same number, for all inputs of the graph, in train and in eval mode."""
    ZERO = 3
    """All elements are zero, for all inputs of the graph, in train and in eval mode."""


@dataclass(frozen=True, eq=False)
class Slices:
    """The states of the slices of a tensor along one dimension, or along several dimensions that form a grid.

    A tensor [[0, 0], [5, 5], [1, 2]] has along dimension 0 the states ZERO, CONSTANT, FINITE and the values 0, 5, 0.

    Attributes:
        states: an int8 array of :class:`SliceState`.
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
        """Return slices that are CONSTANT or ZERO where ``known``, FINITE elsewhere."""
        states = np.where(values == 0, SliceState.ZERO, SliceState.CONSTANT)
        states = np.where(np.isfinite(values), states, SliceState.UNKNOWN)
        states = np.where(known, states, SliceState.FINITE).astype(np.int8)
        return Slices(states, np.where(states == SliceState.CONSTANT, values, 0.0))

    @property
    def is_constant(self) -> Flags:
        """Which slices hold one number, zero included."""
        return np.asarray(self.states >= SliceState.CONSTANT, bool)

    @property
    def tells(self) -> bool:
        """Whether any slice is in another state than FINITE."""
        return bool((self.states != SliceState.FINITE).any())

    # The same slices in another order or shape.

    def take(self, index: Index) -> Slices:
        """Return slice ``index[i]`` at each position i."""
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

    # Several slices in one.

    def meet(self, dims: Sequence[int]) -> Slices:
        """Return the state that holds for all slices along some dimensions of the grid."""
        states, low, high = self.states.min(tuple(dims)), self.values.min(tuple(dims)), self.values.max(tuple(dims))
        states = np.where((states == SliceState.CONSTANT) & (low != high), SliceState.FINITE, states).astype(np.int8)
        return Slices(states, np.where(states == SliceState.CONSTANT, low, 0.0))

    def join(self, other: Slices) -> Slices:
        """Return the states where slices along different dimensions cross, the larger of both; broadcasts."""
        mine = self.states >= other.states
        return Slices(np.where(mine, self.states, other.states), np.where(mine, self.values, other.values))


def concatenated(parts: Sequence[Slices]) -> Slices:
    """Return the slices of several tensors one behind the other."""
    return Slices(np.concatenate([part.states for part in parts]), np.concatenate([part.values for part in parts]))


def _stacked(parts: Sequence[Slices]) -> Slices:
    """Return a grid with one more dimension in front, along which the parts stand; they broadcast."""
    shape = np.broadcast_shapes(*(part.states.shape for part in parts))
    return concatenated([part.expand(shape).reshape([1, *shape]) for part in parts])


def met(parts: Sequence[Slices]) -> Slices:
    """Return the states that hold for each of several tensors, slice by slice."""
    return _stacked(parts).meet([0])


def added(terms: Sequence[Slices]) -> Slices:
    """Return the states of a sum of tensors, slice by slice; broadcasts."""
    grid = _stacked(terms)
    states, total = grid.states.min(0), grid.values.sum(0)
    constant = states >= SliceState.CONSTANT
    return Slices(np.where(constant, Slices.of_numbers(total, constant).states, states), np.where(constant, total, 0.0))


def multiplied(factors: Sequence[Slices]) -> Slices:
    """Return the states of a product of tensors, slice by slice, but never CONSTANT; broadcasts."""
    states = _stacked(factors).states
    found = np.where((states == SliceState.ZERO).any(0), SliceState.ZERO, SliceState.FINITE)
    found = np.where((states == SliceState.UNKNOWN).any(0), SliceState.UNKNOWN, found).astype(np.int8)
    return Slices(found, np.zeros(found.shape))
