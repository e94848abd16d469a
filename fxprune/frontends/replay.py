"""Calls of torch's own modules that come again on operands of the same forms: noted once, and replayed.

What such a module does is decided by its type, its plain attributes, its mode, its tensors and its arguments. Layers of a
network are alike for the most part; and graph and model call the same ones, as do the graphs of both modes.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils import _pytree as pytree

from fxprune.frontends.standins import Effect, IncomparableError, frozen
from fxprune.frontends.values import OfTensors, Step, Value

_REGISTRIES = frozenset(vars(nn.Module())) - {"training"}
_TENSORS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_PLAIN = frozenset({bool, int, float, str, type(None), torch.dtype, torch.device})
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


def is_plain_call() -> bool:
    """Tell whether nothing around a call takes part in it."""
    return (
        torch._C._len_torch_dispatch_stack() == 1
        and torch._C._len_torch_function_stack() == 0
        and not torch._C._is_any_autocast_enabled()
        and not torch.is_grad_enabled()
        and not _has_any_global_hook()
    )


def identity(module: nn.Module, args: Any, kwargs: Any, tensors: list[Tensor]) -> tuple[Any, ...] | None:
    """Return what decides, besides tensors, what a call of a module does; None if that cannot be said.

    Args:
        module: the module.
        args: positional arguments.
        kwargs: keyword arguments.
        tensors: all tensors that the call can see are added to it.
    """
    if not _is_torchs(module) or isinstance(module, nn.Sequential):
        return None
    found: list[Any] = [
        torch.get_default_dtype(),
        torch.is_inference_mode_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
    ]
    parts = [("", module)] if not module._modules else list(module.named_modules())
    for name, part in parts:
        settings = _settings(part) if part is module or _is_torchs(part) else None
        if settings is None:
            return None
        found += [name, type(part), type(part).forward, *_methods(type(part)), settings]
        for registry in (part._parameters, part._buffers):
            tensors += [tensor for tensor in registry.values() if tensor is not None]
    try:
        found.append(frozen((args, kwargs), tensors))
    except IncomparableError:
        return None
    return (*found, *[tensor.requires_grad for tensor in tensors])


def _methods(kind: type[nn.Module]) -> list[Any]:
    """Return the methods of a class, which somebody may have replaced; those of nn.Module are the same for all."""
    bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
    return [method for base in bases for method in vars(base).values() if type(method) is types.FunctionType]


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules.")


def _is_torchs_function(what: Any) -> bool:
    """Tell whether something is a function of torch: what a user's own does may change, and it may hold anything alive."""
    return type(what) in _FUNCTIONS and str(what.__module__).partition(".")[0] == "torch"


def _settings(module: nn.Module) -> tuple[Any, ...] | None:
    found: list[Any] = []
    for name, value in vars(module).items():
        kind = type(value)
        if kind in _PLAIN:  # as most are
            found.append((name, kind, value))
            continue
        if name in _REGISTRIES:
            if name not in _TENSORS and value:  # hooks
                return None
            if name in ("_parameters", "_buffers"):
                found.append((name, *[key for key, tensor in value.items() if tensor is not None]))
            continue
        parts = value if kind is tuple else (value,)
        if not all(type(part) in _PLAIN or _is_torchs_function(part) for part in parts):
            return None
        found.append((name, *map(type, parts), *parts))
    return tuple(found)


def sharing(values: Sequence[Value]) -> tuple[int, ...]:
    """Return which of ``values`` are the same, and which share memory."""
    first: dict[int, int] = {}
    places = [*map(id, values), *(id(value.memory) for value in values)]
    return tuple(first.setdefault(place, i) for i, place in enumerate(places))


@dataclasses.dataclass(frozen=True)
class Result:
    """One result of a call: the operand at a place; or what is at a place among the values; or plain."""

    operand: int | None = None
    value: int | None = None
    plain: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Noted:
    """What a call of a module does, whatever its operands hold.

    Attributes:
        steps: the calls of operators within, each with the places of its operands among the values: those of the module's
            operands and all that the steps before made.
        outputs: its results.
        spec: their structure.
    """

    steps: list[tuple[Effect, tuple[int, ...]]]
    outputs: list[Result]
    spec: pytree.TreeSpec

    @classmethod
    def of(
        cls, tape: Sequence[Step], result: Any, tensors: list[Tensor], operands: list[Value], values: OfTensors
    ) -> Noted | None:
        """Note a call that has just been made; None if it cannot be replayed."""
        places = {id(value): place for place, value in reversed(list(enumerate(operands)))}
        steps: list[tuple[Effect, tuple[int, ...]]] = []
        count = len(operands)
        for step in tape:
            if step.effect is None or any(id(value) not in places for value in step.values):
                return None  # it changes a form, or reads a constant
            steps.append((step.effect, tuple(places[id(value)] for value in step.values)))
            for value in step.made:
                if value is not None:
                    places[id(value)] = count
                    count += 1
        leaves, spec = pytree.tree_flatten(result)
        given = {id(tensor): place for place, tensor in reversed(list(enumerate(tensors)))}
        outputs: list[Result] = []
        for leaf in leaves:
            found = values.get(leaf) if isinstance(leaf, Tensor) else None
            if id(leaf) in given:
                outputs.append(Result(operand=given[id(leaf)]))
            elif found is not None and places.get(id(found), -1) >= len(operands):
                outputs.append(Result(value=places.pop(id(found))))  # one that comes twice could not be told from another
            elif not isinstance(leaf, Tensor) and type(leaf) in _PLAIN:
                outputs.append(Result(plain=leaf))
            else:
                return None
        return cls(steps, outputs, spec)
