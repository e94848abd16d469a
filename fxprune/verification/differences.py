"""The difference of two values; the second may lack positions of the first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fxprune.analysis.remaining import Places, at_places
from fxprune.torch_internals.tensors import pytree


def named_leaves(value: Any, name: str = "output") -> Iterator[tuple[str, Any]]:
    """Yield each leaf of a model's result with a name for people: ``output['logits'][0]``."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from named_leaves(part, f"{name}[{key!r}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from named_leaves(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from named_leaves(part, f"{name}[{index}]")
    else:
        leaves, spec = pytree.tree_flatten(value)
        several = not spec.is_leaf()
        for index, leaf in enumerate(leaves):
            yield f"{name} part {index}" if several else name, leaf


def select(tensor: Tensor, kept: Places | None) -> Tensor | None:
    """Return the part of ``tensor`` at the kept positions; None if the tensor lacks one of them."""
    if kept is None:
        return tensor
    if len(kept) != tensor.dim():
        return None
    pairs = zip(kept, tensor.shape, strict=True)
    lacks = any(at is not None and at.numel() and int(at.max()) >= size for at, size in pairs)
    return None if lacks else at_places(tensor, kept)


def relative_error(reference: Tensor, candidate: Tensor, floor: float | None = None) -> float:
    """Return the largest difference relative to the largest magnitude in ``reference``.

    The error is infinite if shapes or dtypes differ, if only one tensor has NaN or an infinity at some position, and for
    integers that differ. Magnitudes below ``floor`` count as ``floor``, so that rounding errors of zeros stay small: by
    default 1e-9 in double precision, else 1e-3.
    """
    if reference.shape != candidate.shape or reference.dtype != candidate.dtype:
        return math.inf
    if reference.numel() == 0:
        return 0.0
    reference, candidate = (
        t.detach().to_dense() if t.layout is not torch.strided else t.detach() for t in (reference, candidate)
    )
    if not (reference.is_floating_point() or reference.is_complex()):
        return 0.0 if torch.equal(reference, candidate) else math.inf
    if floor is None:
        floor = 1e-9 if reference.dtype in (torch.float64, torch.complex128) else 1e-3
    wide = torch.complex128 if reference.is_complex() else torch.float64
    reference, candidate = reference.to(wide), candidate.to(wide)
    finite = reference.isfinite()
    if not bool(finite.all()):
        alike = torch.equal(finite, candidate.isfinite())
        if not alike or not torch.equal(reference[~finite].nan_to_num(0.0), candidate[~finite].nan_to_num(0.0)):
            return math.inf  # also for another sign of infinity, or NaN in place of infinity
        reference, candidate = reference[finite], candidate[finite]
        if reference.numel() == 0:
            return 0.0
    error = float((reference - candidate).abs().max()) / max(float(reference.abs().max()), floor)
    return error if math.isfinite(error) else math.inf  # NaN in the candidate alone


def node_error(reference: Any, candidate: Any, kept: Any) -> float | None:
    """Return the relative error of a node's value in the candidate; None if it cannot be compared.

    Values are tensors within lists, tuples and dicts. ``kept`` has the same structure, with the positions of the reference
    that are left in place of each tensor; None if no positions are recorded.
    """
    expected, spec = pytree.tree_flatten(reference)
    found, other = pytree.tree_flatten(candidate)
    if spec != other:
        return None
    positions = [None] * len(found) if kept is None else spec.flatten_up_to(kept)
    errors: list[float] = []
    for theirs, ours, left in zip(expected, found, positions, strict=True):
        if isinstance(theirs, Tensor) and isinstance(ours, Tensor):
            part = select(theirs, left)
            if part is not None and (left is not None or part.shape == ours.shape):
                errors.append(relative_error(part, ours))
    return max(errors, default=None)
