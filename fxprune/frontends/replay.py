"""Calls of torch's own modules that come again on the same values: noted once, and replayed.

What such a module does is decided by its type, its plain attributes, its mode, its tensors and its arguments. Graph and model
call the same ones, as do the graphs of both modes for the most part.
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

from fxprune.frontends.standins import Form, IncomparableError, frozen
from fxprune.frontends.values import OfTensors, Step, Value

_REGISTRIES = frozenset(vars(nn.Module())) - {"training"}
_TENSORS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, types.FunctionType, types.BuiltinFunctionType)


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
    found: list[Any] = [torch.get_default_dtype(), torch.is_inference_mode_enabled()]
    parts = [("", module)] if not module._modules else list(module.named_modules())
    for name, part in parts:
        settings = _settings(part) if part is module or _is_torchs(part) else None
        if settings is None:
            return None
        found += [name, type(part), settings]
        for registry in (part._parameters, part._buffers):
            tensors += [tensor for tensor in registry.values() if tensor is not None]
    try:
        found.append(frozen((args, kwargs), tensors))
    except IncomparableError:
        return None
    return (*found, *[tensor.requires_grad for tensor in tensors])


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules.")


def _settings(module: nn.Module) -> tuple[Any, ...] | None:
    found: list[Any] = []
    for name, value in vars(module).items():
        if name in _REGISTRIES:
            if name not in _TENSORS and value:  # hooks
                return None
            if name in ("_parameters", "_buffers"):
                found.append((name, *[key for key, tensor in value.items() if tensor is not None]))
            continue
        parts = value if type(value) is tuple else (value,)
        if not all(type(part) in _PLAIN for part in parts):
            return None
        found.append((name, *map(type, parts), *parts))
    return tuple(found)


def sharing(values: Sequence[Value]) -> tuple[int, ...]:
    """Return which of ``values`` are the same, and which share memory."""
    first: dict[int, int] = {}
    places = [*map(id, values), *(id(value.memory) for value in values)]
    return tuple(first.setdefault(place, i) for i, place in enumerate(places))


@dataclasses.dataclass(frozen=True)
class _Result:
    """One result of a call: an operand; or new, of this form and number, in this memory; or plain.

    Memories are counted on from those of the operands; ``last`` is the last write to one that is new.
    """

    operand: int | None = None
    plain: Any = None
    form: Form | None = None
    number: int = 0
    written: int = 0
    memory: int = 0
    last: int = 0


@dataclasses.dataclass(eq=False)
class Noted:
    """What a call of a module did: its results, what it left in its operands, and how that is computed."""

    outputs: list[_Result]
    spec: pytree.TreeSpec
    changed: list[tuple[int, int, int]]  # operands with another number now, with the write that it is of
    writes: list[tuple[int, int]]  # operands whose memory was written to, with the last write
    operands: list[Value]
    made: list[Value]
    tape: list[Step]

    @classmethod
    def of(
        cls,
        tape: Sequence[Any],
        result: Any,
        tensors: list[Tensor],
        operands: list[Value],
        before: list[tuple[int, int, int, Form]],
        values: OfTensors,
    ) -> Noted | None:
        """Note a call that has just been made; None if it cannot be replayed."""
        leaves, spec = pytree.tree_flatten(result)
        place = {id(tensor): i for i, tensor in reversed(list(enumerate(tensors)))}
        memories = {id(value.memory): i for i, value in reversed(list(enumerate(operands)))}
        outputs: list[_Result] = []
        made: list[Value] = []
        new = len(operands)
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                if type(leaf) not in _PLAIN:
                    return None
                outputs.append(_Result(plain=leaf))
            elif id(leaf) in place:
                outputs.append(_Result(operand=place[id(leaf)]))
            elif (value := values.get(leaf)) is None or value in made:
                return None
            else:
                memory = memories.setdefault(id(value.memory), new)
                new += memory == new
                made.append(value)
                last = value.memory.written
                outputs.append(_Result(None, None, value.form, value.number, value.written, memory, last))
        both = list(enumerate(zip(before, map(Value.state, operands), strict=True)))
        if any(a[3] != b[3] for _, (a, b) in both):
            return None
        changed = [(i, b[0], b[1]) for i, (a, b) in both if a[:2] != b[:2]]
        writes = [(i, b[2]) for i, (a, b) in both if a[2] != b[2]]
        return cls(outputs, spec, changed, writes, operands, made, list(tape))

    def write(self, operands: list[Value]) -> None:
        """Leave in the operands of another call what this one left in its own."""
        for i, number, written in self.changed:
            operands[i].number, operands[i].written = number, written
        for i, written in self.writes:
            operands[i].memory.written = written


@dataclasses.dataclass(eq=False)
class Replayed:
    """A call that did to ``operands`` what a noted one did to its own."""

    noted: Noted
    operands: list[Value]
    made: list[Value]

    def run(self, env: dict[Value, Tensor]) -> None:
        """Compute it on the tensors that values have by now."""
        stand_for = dict(zip(self.noted.operands, self.operands, strict=True))
        inside = {value: env.get(own, own.real) for value, own in stand_for.items()}
        computed: dict[Value, Tensor] = {value: tensor for value, tensor in inside.items() if tensor is not None}
        for step in self.noted.tape:
            step.run(computed)
        env.update({own: computed[value] for value, own in zip(self.noted.made, self.made, strict=True)})
