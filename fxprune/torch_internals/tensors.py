"""Tensors: fake ones, the memory of real ones, and nested values of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import make_contiguous_strides_for as contiguous_strides
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode

# What torch.fx and torch.export themselves take apart with: up to torch 2.14 there is no public name for it.
from torch.utils import _pytree as pytree

__all__ = ["DynamicOutputShapeException", "FakeTensor", "FakeTensorMode", "contiguous_strides", "pytree"]

lock_memory = torch._C._set_throw_on_mutable_data_ptr
"""Make Python code that would read or write the memory of a tensor fail: so stand-ins show no values. Without it garbage would
be taken for values."""

undispatched = torch._C._DisableTorchDispatch
"""A guard that lets operators pass by all modes and subclasses while it lives, as torch's own ``no_dispatch`` does."""

read_numpy = torch._C.TensorBase.numpy
"""``Tensor.numpy``, whatever stands in its place."""


def memory_of(tensor: Tensor) -> int:
    """Return what tells the memory of a tensor, the same for all that share it, also on devices without addresses."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written to."""
    return tensor._version


def keep_python_object(tensor: Tensor) -> None:
    """Let a tensor that came out of a weak reference live as others do: torch may have kept it behind Python's back."""
    tensor._fix_weakref()  # type: ignore[attr-defined]


def fake_like(state: dict[str, Any], meta: Tensor, device: torch.device) -> FakeTensor:
    """Return the fake tensor on a device that a tensor on the meta device makes, in a tenth of the time.

    Args:
        state: the attributes of another fake tensor on that device. If torch adds one of a tensor alone, all would share it:
            ``tests/abstract/test_fakes.py`` compares them.
        meta: the tensor on the meta device.
        device: the device.
    """
    fake = Tensor._make_subclass(FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=device)
    lock_memory(fake)
    vars(fake).update(state)
    return fake
