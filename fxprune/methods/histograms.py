"""Histograms: where the k smallest of many magnitudes end, without sorting or copying them.

The bits of a floating-point number without its sign, read as an integer, are in the order of its magnitude, NaN last. So the
k-th smallest magnitude is found digit by digit: count the numbers for each value of the first digit, take the digit in which
the k-th number lies, and go on with the numbers that begin with this digit. Every pass reads the tensors once, a small piece
at a time. Counts of several tensors add up, so several processes can find one threshold, each with tensors of its own.

Source: radix select, e.g. Alabi et al. 2012, "Fast k-selection algorithms for graphics processing units",
https://doi.org/10.1145/2133803.2345676.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxprune.errors import PruningTypeError, PruningValueError

_DIGIT = 16  # bits
_LEAST, _MOST = 1 << 16, 1 << 20  # elements of a piece
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


@dataclass(frozen=True)
class Cut:
    """Where the ``rank`` smallest magnitudes end, as far as it is known.

    Attributes:
        dtype: the floating-point dtype that magnitudes are compared in.
        rank: how many of the magnitudes that begin with ``prefix`` lie below the cut or on it.
        prefix: the first bits of the magnitude at the cut, as an integer.
        known: how many bits ``prefix`` has.

    Example:
        >>> cut = Cut(torch.float32, rank=1000)
        >>> while not cut.is_exact:
        ...     cut = magnitude_histogram(tensors, cut).cut()
        >>> cut.value  # the 1000th smallest magnitude
    """

    dtype: torch.dtype
    rank: int
    prefix: int = 0
    known: int = 0

    def __post_init__(self) -> None:
        if not self.dtype.is_floating_point:
            raise PruningTypeError(f"magnitudes are compared in a floating-point dtype, not in {self.dtype}")
        if self.rank < 1:
            raise PruningValueError(f"rank counts from 1, got {self.rank}")

    @property
    def bits(self) -> int:
        """How many bits a magnitude has: all but the sign bit."""
        return 8 * self.dtype.itemsize - 1

    @property
    def is_exact(self) -> bool:
        """Whether all bits are known; then ``rank`` of the magnitudes equal to ``value`` lie below the cut."""
        return self.known == self.bits

    @property
    def digit(self) -> int:
        """How many bits the next digit has."""
        return self.bits % _DIGIT or _DIGIT if self.known == 0 else _DIGIT

    @property
    def value(self) -> float:
        """The magnitude at the cut."""
        if not self.is_exact:
            raise PruningValueError(f"only {self.known} of {self.bits} bits are known; go on with magnitude_histogram")
        return float(torch.tensor(self.prefix, dtype=_INTEGERS[self.dtype.itemsize]).view(self.dtype))


@dataclass(frozen=True, eq=False)
class Histogram:
    """How many magnitudes with the prefix of a cut have each value of its next digit.

    Attributes:
        at: the cut.
        counts: shape (2 ** ``at.digit``,), int64, on the CPU.
    """

    at: Cut
    counts: Tensor

    def cut(self) -> Cut:
        """Return the cut with one more digit known.

        Raises:
            PruningValueError: there are fewer magnitudes than the cut's rank.
        """
        up_to = self.counts.cumsum(0)
        digit = int(torch.searchsorted(up_to, self.at.rank))
        if digit == len(up_to):
            raise PruningValueError(f"there is no magnitude of rank {self.at.rank} among {int(up_to[-1])}")
        below = int(up_to[digit] - self.counts[digit])
        at = self.at
        return replace(at, rank=at.rank - below, prefix=at.prefix << at.digit | digit, known=at.known + at.digit)


def merge_histograms(histograms: Iterable[Histogram]) -> Histogram:
    """Return the sum of histograms, each of a part of the tensors.

    So several processes find one threshold: each counts its own tensors, all counts are added, and each process goes on with
    the cut of the sum.

    Args:
        histograms: at least one, all at the same cut.

    Raises:
        PruningValueError: there is no histogram, or their cuts differ.

    Example:
        >>> cut = Cut(torch.float32, rank=1000)
        >>> while not cut.is_exact:
        ...     cut = merge_histograms(magnitude_histogram(part, cut) for part in parts).cut()
    """
    found = list(histograms)
    if not found:
        raise PruningValueError("there is no histogram to merge")
    for histogram in found:
        if histogram.at != found[0].at:
            raise PruningValueError(f"histograms at different cuts cannot be merged: {found[0].at} and {histogram.at}")
    return Histogram(found[0].at, torch.stack([histogram.counts for histogram in found]).sum(0))


def magnitude_histogram(tensors: Iterable[Tensor], at: Cut, among: Iterable[Tensor | None] | None = None) -> Histogram:
    """Count the magnitudes that have the prefix of a cut, by their next digit.

    Args:
        tensors: tensors of any shapes, devices and dtypes that ``at.dtype`` can hold; complex ones count by their modulus.
        at: the cut, as far as it is known.
        among: for each tensor None or a mask of its shape: only elements where the mask is 1 count.

    Returns:
        The histogram. No more than a piece of a million elements is copied at a time.

    Raises:
        PruningValueError: the cut is exact.

    Example: see :func:`merge_histograms`.
    """
    if at.is_exact:
        raise PruningValueError("all bits of the cut are known: there is nothing left to count")
    tensors = list(tensors)
    size = piece_size(tensors)
    masks = [None] * len(tensors) if among is None else among
    read = [(tensor,) if mask is None else (tensor, mask) for tensor, mask in zip(tensors, masks, strict=True)]
    counts = torch.zeros(1 << at.digit, dtype=torch.int64)
    with torch.no_grad():
        for piece, *part in itertools.chain.from_iterable(pieces(size, *pair) for pair in read):
            counts += _counted(magnitudes(piece, at.dtype), at, [mask == 1 for mask in part])
    return Histogram(at, counts)


def _counted(found: Tensor, at: Cut, among: list[Tensor]) -> Tensor:
    """Return the counts of one piece, on the CPU."""
    rest = at.bits - at.known
    if at.known:
        among = [found >> rest == at.prefix, *among]
        found = found & (1 << rest) - 1
    if among:
        found = found[functools.reduce(torch.logical_and, among)]
    return torch.bincount((found >> rest - at.digit).flatten(), minlength=1 << at.digit).cpu()


def magnitudes(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return integers in the order of the magnitudes of a tensor's elements in ``dtype``, NaN last."""
    real = tensor.abs() if tensor.is_complex() else tensor
    bits = real.to(dtype).view(_INTEGERS[dtype.itemsize])
    return bits & (1 << 8 * dtype.itemsize - 1) - 1


def piece_size(tensors: Iterable[Tensor]) -> int:
    """Return how many elements to read at a time: a small part of all, but enough to be worth a call."""
    return min(max(sum(tensor.numel() for tensor in tensors) >> 8, _LEAST), _MOST)


def pieces(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the elements of tensors of one shape in the order of their positions, as views of at most ``size`` elements."""
    first = tensors[0]
    if first.numel() <= size:
        yield tensors
    elif all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)
    else:
        rows = max(size * len(first) // first.numel(), 1)
        for blocks in zip(*(tensor.split(rows) for tensor in tensors), strict=True):
            yield from pieces(size, *(block if len(block) > 1 else block[0] for block in blocks))
