"""Masks that take out the smallest elements of several tensors, made without a copy of the elements."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from fxprune.graph.masks import FLAG, is_binary
from fxprune.methods.histograms import Cut, magnitude_histogram, magnitudes, piece_size, pieces
from fxprune.torch_internals.pruning_methods import check_elements_to_prune, elements_to_prune


def masks_of_smallest(tensors: Sequence[Tensor], earlier: Sequence[Tensor | None], amount: int | float) -> list[Tensor] | None:
    """Return for each tensor a mask that takes its elements of smallest magnitude out, as torch's ``global_unstructured`` does.

    Magnitudes are compared in the dtype that the tensors promote to. Only elements at which the ``earlier`` mask, if any, is 1
    are ranked; ``amount`` is a share (float in [0, 1]) or a number (int) of them. Of equal magnitudes the first go: by the
    order of the tensors, then of positions, last dimension fastest.

    A mask is of int8. If the earlier mask has other values than 0 and 1, the mask has their dtype and their squares, as
    torch multiplies by an earlier mask twice. The result is None if elements are not floating-point or complex numbers, or
    on the meta device.

    Raises:
        ValueError: there are fewer elements to rank than ``amount``.
    """
    dtype = functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
    if not (dtype.is_floating_point or dtype.is_complex) or any(tensor.is_meta for tensor in tensors):
        return None
    total = sum(_ranked(tensor, mask) for tensor, mask in zip(tensors, earlier, strict=True))
    rank = elements_to_prune(amount, total)
    check_elements_to_prune(rank, total)
    cut = Cut(dtype.to_real(), rank) if rank else None
    while cut is not None and not cut.is_exact:
        cut = magnitude_histogram(tensors, cut, earlier).cut()
    masks, size, ties = [], piece_size(tensors), 0 if cut is None else cut.rank
    for tensor, mask in zip(tensors, earlier, strict=True):
        made, ties = _mask(tensor, mask, cut, ties, size)
        masks.append(made)
    return masks


def _ranked(tensor: Tensor, mask: Tensor | None) -> int:
    if mask is None:
        return tensor.numel()
    return sum(int((piece == 1).sum()) for (piece,) in pieces(piece_size([mask]), mask))


def _mask(tensor: Tensor, earlier: Tensor | None, cut: Cut | None, ties: int, size: int) -> tuple[Tensor, int]:
    """Return the mask of a tensor, and how many elements equal to the cut go from later tensors."""
    binary = earlier is None or is_binary(earlier)
    made = torch.empty(tensor.shape, dtype=FLAG if binary or earlier is None else earlier.dtype, device=tensor.device)
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
    """Return for each magnitude whether it stays, and how many magnitudes equal to the cut go from later pieces."""
    if ties == 0:
        return found >= cut, 0
    at = found == cut if ranked is None else (found == cut) & ranked
    count = int(at.sum())
    kept = found > cut
    if count > ties:
        kept.view(-1)[at.view(-1).nonzero()[ties:, 0]] = True
    return kept, max(ties - count, 0)
