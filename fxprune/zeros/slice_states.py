"""The states of the slices of a tensor along its dimensions: zero, one number, finite, or unknown."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fxprune.algebra.axes import Flags


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


Slices = NDArray[np.void]
"""The states of the slices of a tensor along one dimension, or along several dimensions that form a grid.

Each element has a "state" and a "value", the number where the state is CONSTANT and zero elsewhere. A tensor
[[0, 0], [5, 5], [1, 2]] has along dimension 0 the states ZERO, CONSTANT, FINITE and the values 0, 5, 0.
"""

_SLICE = np.dtype([("state", np.int8), ("value", np.float64)])


def of_states(states: ArrayLike, values: ArrayLike = 0.0) -> Slices:
    """Return slices in these states; of the values those count whose slice is CONSTANT."""
    slices = np.empty(np.shape(states), _SLICE)
    slices["state"] = states
    slices["value"] = np.where(slices["state"] == SliceState.CONSTANT, values, 0.0)
    return slices


def of_numbers(values: NDArray[np.float64]) -> Slices:
    """Return slices of one number each: CONSTANT or ZERO, but UNKNOWN where the number is not finite."""
    states = np.where(values == 0, SliceState.ZERO, SliceState.CONSTANT)
    return of_states(np.where(np.isfinite(values), states, SliceState.UNKNOWN), values)


def finite(shape: Sequence[int]) -> Slices:
    """Return slices of which nothing else is known than that they are FINITE."""
    return of_states(np.full(shape, SliceState.FINITE))


def or_finite(slices: Slices | None, size: int) -> Slices:
    """Return the slices along one dimension, of which None says that all are FINITE."""
    return finite([size]) if slices is None else slices


def is_constant(slices: Slices) -> Flags:
    """Tell which slices hold one number, zero included."""
    return np.asarray(slices["state"] >= SliceState.CONSTANT, bool)


def unless_finite(slices: Slices | None) -> Slices | None:
    """Return the slices, or None where all of them are FINITE."""
    return None if slices is None or bool((slices["state"] == SliceState.FINITE).all()) else slices


def meet(slices: Slices, dims: Sequence[int]) -> Slices:
    """Return the state that holds for all slices along some dimensions of the grid."""
    states, values = slices["state"].min(tuple(dims)), slices["value"]
    low, high = values.min(tuple(dims)), values.max(tuple(dims))
    return of_states(np.where((states == SliceState.CONSTANT) & (low != high), SliceState.FINITE, states), low)


def join(one: Slices, other: Slices) -> Slices:
    """Return the states where slices along different dimensions cross, the larger of both; broadcasts."""
    return np.where(one["state"] >= other["state"], one, other)


def met(parts: Sequence[Slices]) -> Slices:
    """Return the states that hold for each of several tensors, slice by slice; broadcasts."""
    return meet(np.stack(np.broadcast_arrays(*parts)), [0])


def added(terms: Sequence[Slices]) -> Slices:
    """Return the states of a sum of tensors, slice by slice; broadcasts."""
    grid = np.stack(np.broadcast_arrays(*terms))
    states = grid["state"].min(0)
    return np.where(states >= SliceState.CONSTANT, of_numbers(grid["value"].sum(0)), of_states(states))


def multiplied(factors: Sequence[Slices]) -> Slices:
    """Return the states of a product of tensors, slice by slice, but never CONSTANT; broadcasts."""
    states = np.stack(np.broadcast_arrays(*factors))["state"]
    found = np.where((states == SliceState.ZERO).any(0), SliceState.ZERO, SliceState.FINITE)
    return of_states(np.where((states == SliceState.UNKNOWN).any(0), SliceState.UNKNOWN, found))
