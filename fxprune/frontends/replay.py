"""Calls of torch's own modules that come again on operands of the same forms: noted once, and replayed.

What such a module does is decided by its type, its plain attributes, its mode, its tensors and its arguments. Layers of a
network are alike for the most part; and graph and model call the same ones, as do the graphs of both modes.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.module import _has_any_global_hook
from torch.utils import _pytree as pytree

from fxprune.frontends.values import OfTensors, Step, Value
from fxprune.propagation import Effect, IncomparableError, frozen, repeats

_REGISTRIES = frozenset(vars(nn.Module())) - {"training"}
_TENSORS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_PLAIN = frozenset({bool, int, float, str, type(None), torch.dtype, torch.device})
_PLAIN_OR_TUPLE = _PLAIN | {tuple}
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
_METHODS = (types.MethodDescriptorType, types.WrapperDescriptorType)
_ROOTS = ("torch", "_operator", "fxprune")  # of functions that do no more to tensors than their operators do


def is_plain_call() -> bool:
    """Tell whether nothing around a call takes part in it."""
    return (
        torch._C._len_torch_dispatch_stack() == 1
        and torch._C._len_torch_function_stack() == 0
        and not torch._C._is_any_autocast_enabled()
        and not torch.is_grad_enabled()
        and not _has_any_global_hook()
    )


def identity(module: nn.Module, args: Any, kwargs: Any, tensors: list[Any]) -> tuple[Any, ...] | None:
    """Return what decides, besides tensors, what a call of a module does; None if that cannot be said.

    Args:
        module: the module.
        args: positional arguments.
        kwargs: keyword arguments.
        tensors: all tensors that the call can see are added to it.
    """
    if not _is_torchs(module) or isinstance(module, nn.Sequential):
        return None
    found: list[Any] = []
    parts = [("", module)] if not module._modules else list(module.named_modules())
    for name, part in parts:
        settings = _settings(part) if part is module or _is_torchs(part) else None
        if settings is None:
            return None
        found += [name, type(part), _Methods.of(type(part)), *settings]
        for registry in (part._parameters, part._buffers):
            for key, tensor in registry.items():
                if tensor is not None:
                    found.append(key)
                    tensors.append(tensor)
            found.append(None)
    return _identity(found, args, kwargs, tensors)


def identity_of_function(function: Any, args: Any, kwargs: Any, tensors: list[Any]) -> tuple[Any, ...] | None:
    """Return what decides, besides tensors, what a call of a function does, if it is one of torch's; None otherwise."""
    if not (type(function) in _METHODS or type(function) is OpOverload or _is_torchs_function(function, _ROOTS)):
        return None
    return _identity([function], args, kwargs, tensors)


def _identity(found: list[Any], args: Any, kwargs: Any, tensors: list[Any]) -> tuple[Any, ...] | None:
    try:
        found += frozen(args, tensors), frozen(dict(kwargs), tensors)
    except IncomparableError:
        return None
    return (
        torch.get_default_dtype(),
        torch.is_inference_mode_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        *found,
        *[tensor.requires_grad for tensor in tensors],
    )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _Methods:
    """What a class and its bases hold, methods above all, which somebody may replace; what nn.Module holds is left out."""

    held: list[list[Any]]
    places: list[list[int]]

    _known: ClassVar[dict[type[nn.Module], _Methods]] = {}

    @classmethod
    def of(cls, kind: type[nn.Module]) -> _Methods:
        """Return the same as before if all is as it was then."""
        bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
        places = [[*map(id, vars(base).values())] for base in bases]
        known = cls._known.get(kind)
        if known is None or known.places != places:
            known = cls._known[kind] = cls([[*vars(base).values()] for base in bases], places)
        return known


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules.")


def _is_torchs_function(what: Any, roots: tuple[str, ...] = ("torch",)) -> bool:
    """Tell whether something is a function of torch: what a user's own does may change, and it may hold anything alive."""
    return type(what) in _FUNCTIONS and str(what.__module__).partition(".")[0] in roots


@functools.lru_cache(1 << 10)
def _names(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which attributes are registries that have to be empty, hooks for one, and which are a module's own."""
    empty = tuple(name for name in names if name in _REGISTRIES and name not in _TENSORS)
    return empty, tuple(name for name in names if name not in _REGISTRIES)


def _settings(module: nn.Module) -> tuple[Any, ...] | None:
    attributes = vars(module)
    empty, own = _names(tuple(attributes))
    if any(map(attributes.__getitem__, empty)):
        return None
    values = tuple(map(attributes.__getitem__, own))
    parts = [part for value in values if type(value) is tuple for part in value]
    kinds, of_parts = tuple(map(type, values)), tuple(map(type, parts))
    if not (_PLAIN_OR_TUPLE.issuperset(kinds) and _PLAIN.issuperset(of_parts)):
        others = [value for value in values if type(value) is not tuple]
        if not all(type(value) in _PLAIN or _is_torchs_function(value) for value in (*others, *parts)):
            return None
    return own, kinds, values, of_parts


def sharing(values: Sequence[Value]) -> tuple[int, ...]:
    """Return which of ``values`` are the same, and which share memory."""
    return repeats([*values, *[value.memory for value in values]])


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

    @functools.cached_property
    def is_flat(self) -> bool:
        """Whether it gives one result or a plain tuple."""
        return self.spec.is_leaf() or (self.spec.type is tuple and all(part.is_leaf() for part in self.spec.children()))

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
