"""Masks that take the smallest of all elements of several tensors out, made without a copy of the elements."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from fxprune.graph.masks import is_binary
from fxprune.methods.histograms import Cut, magnitude_histogram, magnitudes, piece_size, pieces
from fxprune.torch_internals.pruning_methods import check_elements_to_prune, elements_to_prune


def masks_of_smallest(tensors: Sequence[Tensor], earlier: Sequence[Tensor | None], amount: int | float) -> list[Tensor] | None:
    """Return masks that take the elements of smallest magnitude out, among those that are not masked yet.

    Of elements of the same magnitude the first go: by the order of the tensors, then of positions, last dimension fastest.

    Args:
        tensors: what is ranked, of any shapes and dtypes, compared in the dtype that they promote to.
        earlier: for each tensor the mask in force, of its shape, or None; where it is not 1, nothing is ranked.
        amount: share (float in [0, 1]) or number (int) of the elements that are ranked.

    Returns:
        For each tensor a mask of its shape: in uint8, or in the dtype of the mask in force if that has other values than
        zero and one; these are squared, which is what masking twice comes to in torch. None if the elements cannot be
        ranked so: not of floating-point or complex dtype, or on the meta device.

    Raises:
        ValueError: there are fewer elements to rank than ``amount``.

    Source: ``torch.nn.utils.prune.global_unstructured`` with ``L1Unstructured``.
    """
    dtype = functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
    if not (dtype.is_floating_point or dtype.is_complex) or any(tensor.is_meta for tensor in tensors):
        return None
    total = sum(_ranked(tensor, mask) for tensor, mask in zip(tensors, earlier, strict=True))
    rank = elements_to_prune(amount, total)
    check_elements_to_prune(rank, total)
    cut = None
    if rank:
        cut = Cut(dtype.to_real(), rank)
        while not cut.is_exact:
            cut = magnitude_histogram(tensors, cut, earlier).cut()
    masks, size, ties = [], piece_size(tensors), 0 if cut is None else cut.rank
    for tensor, mask in zip(tensors, earlier, strict=True):
        made, ties = _mask(tensor, mask, cut, ties, size)
        masks.append(made)
    return masks


def _ranked(tensor: Tensor, mask: Tensor | None) -> int:
    """Return how many elements of a tensor are ranked."""
    if mask is None:
        return tensor.numel()
    return sum(int((piece == 1).sum()) for (piece,) in pieces(piece_size([mask]), mask))


def _mask(tensor: Tensor, earlier: Tensor | None, cut: Cut | None, ties: int, size: int) -> tuple[Tensor, int]:
    """Return the mask of one tensor, and how many elements at the cut are to go from the tensors behind it."""
    binary = earlier is None or is_binary(earlier)
    made = torch.empty(tensor.shape, dtype=torch.uint8 if binary or earlier is None else earlier.dtype, device=tensor.device)
    together = (tensor, made) if earlier is None else (tensor, made, earlier)
    for piece, result, *before in pieces(size, *together):
        kept = torch.ones_like(piece, dtype=torch.bool)
        ranked = before[0] == 1 if before else None
        if cut is not None:
            kept, ties = _kept(magnitudes(piece, cut.dtype), ranked, cut.prefix, ties)
        if ranked is None:
            result.copy_(kept)
        else:
            result.copy_(torch.where(ranked, kept, before[0] if binary else before[0] * before[0]))
    return made, ties


def _kept(found: Tensor, ranked: Tensor | None, cut: int, ties: int) -> tuple[Tensor, int]:
    """Return a flag for each magnitude, whether it stays, and how many of those at the cut are to go behind this piece."""
    if ties == 0:
        return found >= cut, 0
    at = found == cut if ranked is None else (found == cut) & ranked
    count = int(at.sum())
    kept = found > cut
    if count > ties:
        kept.view(-1)[at.view(-1).nonzero()[ties:, 0]] = True
    return kept, max(ties - count, 0)
