"""What buffers that count hold while a graph or a module runs on tensors without values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxprune.torch_internals.operators import OpOverload, no_modes
from fxprune.torch_internals.tensors import FakeTensor, pytree

READS_VALUE = frozenset([torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default])
"""The operators that ask for the value of a tensor."""


class Counters:
    """Follows real tensors of one integer, such as the number of batches that a batch norm has seen; none is written to."""

    def __init__(self) -> None:
        self._now: dict[int, tuple[Tensor, Tensor]] = {}  # the tensor is kept, so that no other can take its identity

    def now(self, tensor: Tensor) -> Tensor | None:
        """Return what a real tensor holds by now; None of a fake one, of which nobody knows."""
        return None if isinstance(tensor, FakeTensor) else self._now.get(id(tensor), (tensor, tensor))[1]

    def written(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of a call that writes into its first argument."""
        counter, *others = args
        if type(counter) is not Tensor or counter.numel() != 1 or counter.is_floating_point() or counter.is_meta:
            return
        if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((others, kwargs))):
            with no_modes():
                value = self._now.get(id(counter), (counter, counter))[1].clone()
                self._now[id(counter)] = counter, func(value, *others, **kwargs)


def number(tensor: Tensor) -> Any:
    """Return the only element of a real tensor, whatever modes are on."""
    with no_modes():
        return tensor.item()
