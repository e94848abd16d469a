"""Operators of the dispatcher: their classes, the facts of their schemas, and the modes that see their calls.

torch documents none of these names, though graphs of ``torch.export`` consist of such operators. A name that torch moves fails
at import.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as no_modes

__all__ = ["REGIONS", "HigherOrderOperator", "OpOverload", "OpOverloadPacket", "TorchDispatchMode", "no_modes"]

REGIONS = (torch.ops.higher_order.wrap_with_set_grad_enabled, torch.ops.higher_order.wrap_with_autocast)
"""The functions that run a graph with gradients or autocast switched; the graph and its inputs are their last arguments."""


def arguments_of(op: OpOverload) -> list[torch.Argument]:
    """Return the arguments of an operator by its schema, in order: names, types, defaults, and which it writes to."""
    return op._schema.arguments


def returns_of(op: OpOverload) -> list[torch.Argument]:
    """Return the results of an operator by its schema: types, and whether they share memory with arguments."""
    return op._schema.returns


def is_mutable(op: OpOverload) -> bool:
    """Tell whether an operator writes to an argument."""
    return op._schema.is_mutable


def base_name(op: OpOverload) -> str:
    """Return the name of an operator without namespace and overload, such as ``"add_"``."""
    return op._schema.name.partition("::")[2]


def overload_name(op: OpOverload) -> str:
    """Return the name of an overload among those of its packet, such as ``"Tensor"``."""
    return op._overloadname


@functools.cache
def is_composite(op: OpOverload) -> bool:
    """Tell whether ``op.decompose`` calls other operators instead; autograd and inference mode see only those."""
    return op._can_decompose()


@functools.cache
def composite_kernel(op: OpOverload) -> Callable[..., Any] | None:
    """Return the kernel of a composite operator, which calls other operators; None of any other operator.

    For some ``op.decompose`` takes a function in Python, whose results may lie in other memory: that of dropout in eval mode
    copies its argument, the kernel returns it.
    """
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    has_one = torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), key)
    return functools.partial(op._op_dk, key) if has_one else None


def below_autograd() -> AbstractContextManager[object]:
    """Let operators pass by autograd, so that a dispatch mode sees composite operators before they fall into others."""
    return torch._C._AutoDispatchBelowAutograd()
