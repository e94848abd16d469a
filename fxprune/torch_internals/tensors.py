"""Tensors: fake ones, the memory of real ones, and nested values of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._prims_common import make_contiguous_strides_for as contiguous_strides
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

# The pytree of torch.fx and torch.export, which has no public name up to torch 2.14.
from torch.utils import _pytree as pytree

__all__ = ["DynamicOutputShapeException", "FakeTensor", "FakeTensorMode", "contiguous_strides", "pytree"]

lock_memory = torch._C._set_throw_on_mutable_data_ptr
"""Make a read or write of a tensor's memory fail. Without it the garbage in the memory of a fake tensor is taken for values."""

undispatched = torch._C._DisableTorchDispatch
"""A guard: while it lives, calls of operators bypass all modes and subclasses, as within torch's own ``no_dispatch``."""

read_numpy = torch._C.TensorBase.numpy
"""``Tensor.numpy``, also while ``switches.watching_reads`` replaces it."""


def hint(number: Any) -> Any:
    """Return the value of a symbolic number for the example inputs, None if it depends on values; a plain number as it is."""
    return getattr(getattr(number, "node", None), "hint", number)


def memory_of(tensor: Tensor) -> int:
    """Return a number for the memory of a tensor, equal for all tensors that share it, also on devices without addresses."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written to."""
    return tensor._version


def marked_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a tensor marked as the conjugate and as the negative of its memory where another is; operators resolve that."""
    tensor = tensor.conj() if other.is_conj() else tensor
    return torch._neg_view(tensor) if other.is_neg() else tensor


def keep_python_object(tensor: Tensor) -> None:
    """Let the Python object of a tensor own it again after it came out of a weak reference: torch may own the tensor alone."""
    tensor._fix_weakref()  # type: ignore[attr-defined]


def overwrite(tensor: Tensor, values: Tensor) -> None:
    """Write values into a tensor, in place, also into one that was made in inference mode."""
    with torch.inference_mode(tensor.is_inference()):
        tensor.copy_(values)


def parameter_like(old: nn.Parameter, values: Tensor) -> nn.Parameter:
    """Return a parameter of other values with the class, the attributes and the ``requires_grad`` of another; without hooks."""
    plain = type(old) is nn.Parameter
    new = nn.Parameter(values, old.requires_grad) if plain else Tensor._make_subclass(type(old), values, old.requires_grad)
    vars(new).update(vars(old))
    assert isinstance(new, nn.Parameter)
    return new


def hooks_of(parameter: Tensor) -> list[Any]:
    """Return the hooks on the gradient of a parameter."""
    registered = (parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None))
    return [hook for hooks in registered if hooks for hook in hooks.values()]


def module_hooks(module: nn.Module) -> list[Any]:
    """Return the hooks on the calls of a module and on their gradients."""
    registered = module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks
    return [hook for hooks in registered for hook in hooks.values()]


def fake_like(state: dict[str, Any], meta: Tensor, device: torch.device) -> FakeTensor:
    """Return a fake tensor on a device for a tensor on the meta device, ten times as fast as ``FakeTensor`` does.

    ``state`` has the attributes of another fake tensor on that device, which the new fake tensor shares. If torch adds an
    attribute that differs by tensor, ``tests/abstract/test_fakes.py`` fails.
    """
    fake = Tensor._make_subclass(FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=device)
    lock_memory(fake)
    vars(fake).update(state)
    return fake


class _OfCopies(TorchFunctionMode):
    """Gives ``change(tensor)`` in place of a copy of each tensor that ``copy.deepcopy`` finds."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._change = change

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._change(args[0]) if func is Tensor.__deepcopy__ else func(*args, **(kwargs or {}))


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of a nested value with ``change`` of each tensor in place of the tensor, also in objects of any class.

    An object that cannot be copied stays, with the tensors in it.
    """
    known: dict[int, Any] = {}

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return known[id(leaf)] if id(leaf) in known else known.setdefault(id(leaf), change(leaf))
        if type(leaf) in _WITHOUT_TENSORS:
            return leaf
        try:
            with _OfCopies(change):
                return copy.deepcopy(leaf, known)
        except Exception:  # such as a lock or a generator in it
            return leaf

    return pytree.tree_map(changed, value)


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Return a nested value with ``change`` of each leaf; a container whose class does not take the new leaves is a list."""
    leaves, spec = pytree.tree_flatten(value)
    changed = [change(leaf) for leaf in leaves]
    try:
        return pytree.tree_unflatten(changed, spec)
    except Exception:  # its constructor asks for more than there is, such as the device of a tensor
        return changed


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in a nested value, each once, also those in objects of any class."""
    found: list[Tensor] = []
    with_tensors(value, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


_WITHOUT_TENSORS = frozenset({bool, int, float, complex, str, bytes, type(None), object, torch.dtype, torch.device})
