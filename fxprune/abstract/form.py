"""Forms: what there is to know about a tensor without its values."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from fxprune.torch_internals.tensors import FakeTensor, FakeTensorMode, fake_like, lock_memory, memory_of


class IncomparableError(Exception):
    """The program depends on what tensors without values do not have, or does what value numbering does not follow."""


@contextlib.contextmanager
def operator_errors(func: Any) -> Iterator[None]:
    """Raise as IncomparableError the errors of an operator that runs within the context, and of nothing else there."""
    try:
        yield
    except Exception as error:  # whatever an operator raises where values are missing or operands do not fit
        raise IncomparableError(f"{func} fails: {error}") from error


class Form:
    """What there is to know about a tensor without its values. There is one of each, so that ``is`` tells forms apart."""

    __slots__ = ("__weakref__", "device", "dtype", "size", "stride")
    _known: ClassVar[weakref.WeakValueDictionary[Any, Form]] = weakref.WeakValueDictionary()

    def __init__(self, size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.size, self.stride, self.dtype, self.device = size, stride, dtype, device

    @classmethod
    def of(cls, tensor: Tensor) -> Form:
        """Return the form of ``tensor``; raises IncomparableError if it is not an ordinary dense tensor."""
        unusual = tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg()
        if unusual or tensor.is_meta:
            raise IncomparableError(f"a tensor that is not in plain memory: {tensor.layout}, {tensor.device}")
        return cls.of_parts(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)

    @classmethod
    def of_parts(cls, *parts: Any) -> Form:
        """Return the form of these sizes, strides, type and device."""
        form = cls._known.get(parts)
        if form is None:
            form = cls._known[parts] = cls(*parts)
        return form

    def fake(self, wrapping: Wrapping) -> FakeTensor:
        """Return a fake tensor of this form; much faster than to convert one."""
        return wrapping.wrap(torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta"), self.device)

    def stand_in(self) -> Tensor:
        """Return a tensor of this form whose memory Python cannot get at."""
        try:
            tensor = torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)
        except RuntimeError as error:
            raise IncomparableError(f"no memory for a tensor of {self.size}") from error
        lock_memory(tensor)
        return tensor


class Wrapping:
    """Makes fake tensors of tensors on the meta device; all that are on one device have the same state."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self._states: dict[torch.device, dict[str, Any]] = {}  # the attributes of fake tensors

    def wrap(self, tensor: Tensor, device: torch.device) -> FakeTensor:
        """Return the fake tensor on a device that a tensor on the meta device makes."""
        state = self._states.get(device)
        if state is None:
            first = FakeTensor(self.mode, tensor, device)
            self._states[device] = dict(vars(first))
            return first
        return fake_like(state, tensor, device)


def alike(a: Form | None, b: Form) -> bool:
    """Tell whether tensors of these forms can hold the same values; how they lie in memory does not matter."""
    return a is not None and (a.size, a.dtype, a.device) == (b.size, b.dtype, b.device)


def repeats(things: Sequence[Any]) -> tuple[int, ...]:
    """Return for each of ``things`` the place where it comes first, if one comes twice; else nothing."""
    ids = [*map(id, things)]
    return () if len(set(ids)) == len(ids) else tuple(map(ids.index, ids))


def form_of_fake(fake: Tensor) -> Form:
    """Return the form of a fake tensor; raises IncomparableError if an operator made a tensor of another kind."""
    if not isinstance(fake, FakeTensor):
        raise IncomparableError("an operator made a tensor of its own")
    return Form.of(fake)


def storage(tensor: Tensor) -> int:
    """Return the address of the storage of ``tensor``, the same for all that share memory."""
    if tensor.layout is not torch.strided:
        raise IncomparableError(f"a tensor that has no storage: {tensor.layout}")
    return memory_of(tensor)


_SEQUENCES = (tuple, list, torch.Size, immutable_list)
_TENSORS = (Tensor, nn.Parameter)
_SINGLETONS = (torch.dtype, torch.layout, torch.device, torch.memory_format)


def frozen(value: Any, tensors: list[Any]) -> Any:
    """Return a hashable form of arguments, without the tensors, which are added to ``tensors``."""
    kind = type(value)
    if kind in _SEQUENCES:
        found: list[Any] = [kind]
        for part in value:  # with what most of them are at hand
            if type(part) is int:
                found.append((int, part))
            elif type(part) is Tensor:
                tensors.append(part)
                found.append(Tensor)
            else:
                found.append(frozen(part, tensors))
        return tuple(found)
    if kind in _TENSORS:
        tensors.append(value)
        return Tensor
    if kind in (bool, int, str):
        return kind, value
    if value is None or value is ... or kind in _SINGLETONS:
        return value
    if kind in (float, complex):
        return kind, repr(value)  # 0.0 == -0.0
    if kind in (dict, immutable_dict):
        return (kind, *[(k, frozen(v, tensors)) for k, v in value.items()])
    if kind is slice:
        return (kind, *[frozen(v, tensors) for v in (value.start, value.stop, value.step)])
    raise IncomparableError(f"an argument of type {kind.__name__}")


def thawed(value: Any, tensors: Iterator[Any]) -> Any:
    """Return the arguments that a frozen form is of, with the next of ``tensors`` at each place of one."""
    if value is Tensor:
        return next(tensors)
    if type(value) is not tuple:
        return value
    kind, *parts = value
    if kind in _SEQUENCES:
        return kind([thawed(part, tensors) for part in parts])
    if kind is slice:
        return slice(*[thawed(part, tensors) for part in parts])
    if kind in (dict, immutable_dict):
        return {key: thawed(part, tensors) for key, part in parts}
    return kind(*parts)
