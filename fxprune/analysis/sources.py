"""The tensors that an analysis starts from: parameters, buffers and constants of the model's code.

Two tensors are the same parameter if they are one object, or have the same memory, shape, strides and dtype (tied weights).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from fxprune.abstract.form import Form
from fxprune.algebra.axes import Axis, Reason
from fxprune.algebra.units import Units
from fxprune.graph.masks import all_masked
from fxprune.graph.paths import all_tensors
from fxprune.rules.labels import Label, Zero
from fxprune.torch_internals.operators import no_modes
from fxprune.torch_internals.tensors import memory_of

# Up to this many elements the analysis follows the values of index tables and flags. A larger table keeps the axis that it
# indexes whole.
MAX_CONSTANT = 1 << 20

_SINGLE = Reason("has a single position", by_model=True)


@dataclass(eq=False)
class Tracked:
    """A parameter or buffer of the graph."""

    names: list[str]  # several for a tied parameter
    is_parameter: bool
    label: Label
    used: bool = False  # whether any call reads it

    @property
    def name(self) -> str:
        """Its first name."""
        return self.names[0]


class _Layout(NamedTuple):
    """The place of a tensor in its storage."""

    offset: int
    form: Form

    @staticmethod
    def of(tensor: Tensor) -> _Layout:
        is_strided = tensor.layout is torch.strided
        form = Form(tensor.shape, tensor.stride() if is_strided else (), tensor.dtype, tensor.device)
        return _Layout(int(tensor.storage_offset()) if is_strided else 0, form)

    @property
    def bytes(self) -> range:
        """The bytes from the first to the last element."""
        last = self.offset + sum((n - 1) * step for n, step in zip(self.form.size, self.form.stride, strict=False))
        itemsize = self.form.dtype.itemsize
        return range(self.offset * itemsize, (last + 1) * itemsize)


class Sources:
    """Finds the parameter or buffer that a tensor is, and makes the axes of each."""

    def __init__(self, units: Units) -> None:
        self.units = units
        self.tracked: list[Tracked] = []
        self._by_identity: dict[int, Tracked] = {}
        self._by_storage: dict[int, dict[_Layout, Tracked]] = {}

    def add(self, name: str, tensor: Tensor, producer: int) -> Tracked | None:
        """Take in a parameter or buffer; return it if it is new, None if this is another name of a known parameter."""
        memory, layout = memory_of(tensor), _Layout.of(tensor)
        beside = self._by_storage.setdefault(memory, {})
        tracked = self._by_identity.get(id(tensor)) or beside.get(layout)
        if is_new := tracked is None:
            is_parameter = isinstance(tensor, nn.Parameter)
            axes = tuple([self.units.unread(n) if n > 1 else Axis.whole(n, _SINGLE) for n in tensor.shape])
            zeros = (Zero.ZERO if is_parameter else Zero.FINITE,) * tensor.dim()
            tracked = Tracked([], is_parameter, Label(axes, zeros, exact_values(tensor), producer))
            for other in _overlapping(layout, beside):
                for one, two in ((tracked, other), (other, tracked)):
                    self._keep_whole(one, Reason(f"shares its memory with {(two.names or [name])[0]!r} in another layout"))
            beside[layout] = tracked
            self.tracked.append(tracked)
        tracked.names.append(name)
        self._by_identity[id(tensor)] = tracked
        return tracked if is_new else None

    def find(self, tensor: Tensor) -> Tracked | None:
        """Return the parameter or buffer that a tensor is."""
        known = self._by_identity.get(id(tensor))
        return known or self._by_storage.get(memory_of(tensor), {}).get(_Layout.of(tensor))

    def label(self, tensor: Tensor, here: Reason) -> Label:
        """Return the label of a real tensor. Any other tensor than a parameter or buffer is whole."""
        tracked = self.find(tensor)
        if tracked is not None:
            tracked.used = True
            return tracked.label
        for other in _overlapping(_Layout.of(tensor), self._by_storage.get(memory_of(tensor), {})):
            self._keep_whole(other, replace(here, text=f"part of {other.name!r} is read past the graph"))
        whole = Label.whole(tensor.shape, replace(here, text="a constant of the model's code"))
        return replace(whole, constant=exact_values(tensor))

    def forget_values(self, tensor: Tensor) -> None:
        """Forget the constant and the zeros of every parameter or buffer in the memory of a tensor that is written to."""
        for tracked in self._by_storage.get(memory_of(tensor), {}).values():
            tracked.label = forgotten(tracked.label)

    def _keep_whole(self, tracked: Tracked, why: Reason) -> None:
        for axis in tracked.label.axes:
            self.units.keep_whole(axis, why)


def _overlapping(mine: _Layout, beside: Mapping[_Layout, Tracked]) -> list[Tracked]:
    """Return which of the tensors in one storage have bytes in common with a tensor of this layout."""
    if not beside:
        return []
    start, stop = mine.bytes.start, mine.bytes.stop
    return [tracked for layout, tracked in beside.items() if layout.bytes.start < stop and start < layout.bytes.stop]


def forgotten(label: Label) -> Label:
    """Return the label of a tensor after a write to its memory: without zeros and constant."""
    return replace(label, zeros=tuple(min(zero, Zero.FINITE) for zero in label.zeros), constant=None)


def named_tensors(gm: fx.GraphModule) -> list[tuple[str, Tensor]]:
    """Return all parameters, then all buffers, under all of their names; a masked ``weight_orig`` first as ``weight``."""
    tensors = all_tensors(list(gm.named_modules(remove_duplicate=False)))
    return [*((name, masked.orig) for masked in all_masked(gm) for name in masked.names), *tensors.items()]


def exact_values(tensor: Tensor) -> Tensor | None:
    """Return the values of a real tensor of integers or flags, such as an index table; None for any other tensor."""
    if type(tensor) is not Tensor or tensor.is_meta or tensor.is_floating_point() or tensor.is_complex():
        return None
    with no_modes():
        return tensor.detach().cpu() if tensor.numel() <= MAX_CONSTANT else None
