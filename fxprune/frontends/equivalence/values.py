"""The records of value numbering: numbers of tensors, shared memory, calls of operators."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import torch
from torch import Tensor

from fxprune.abstract.form import Form, thawed
from fxprune.torch_internals.tensors import keep_python_object, pytree


@dataclasses.dataclass(eq=False, slots=True)
class Memory:
    """Memory that tensors share, with the number of the last write to it, 0 before any."""

    written: int = 0
    storage: torch.UntypedStorage | None = None  # keeps its address taken


@dataclasses.dataclass(eq=False, slots=True)
class Value:
    """The record of one tensor."""

    number: int  # when the tensor was made
    form: Form
    memory: Memory
    written: int  # the last write to the memory when the tensor was made
    real: Tensor | None = None  # the real tensor of a parameter, buffer, input or constant
    address: int = 0  # of a stand-in's storage, which only an assignment to ``.data`` changes


class OfTensors:
    """The values of tensors, by tensor; a value goes when its tensor is freed.

    ``torch.utils.weak.WeakTensorKeyDictionary`` does the same, but makes a weak reference for each look-up: a capture takes
    twice as long with it.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], Value]] = {}

    def __setitem__(self, tensor: Tensor, value: Value) -> None:
        key, entries = id(tensor), self._entries
        entries[key] = weakref.ref(tensor, lambda _: entries.pop(key, None)), value

    def get(self, tensor: Tensor) -> Value | None:
        """Return the value of a tensor, None for an unknown tensor."""
        entry = self._entries.get(id(tensor))
        return None if entry is None else entry[1]

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> list[tuple[Tensor, Value]]:
        """Return the tensors that are alive, with their values."""
        found = []
        for reference, value in list(self._entries.values()):
            tensor = reference()
            if tensor is not None:
                keep_python_object(tensor)
                found.append((tensor, value))
        return found


@dataclasses.dataclass(eq=False)
class OperatorCall:
    """A call of an operator: its frozen arguments, the values of its operands, and of its results those that are new."""

    func: Any
    frozen: Any
    values: list[Value]
    made: list[Value | None]

    def run(self, env: dict[Value, Tensor]) -> None:
        """Compute the call on the tensors in ``env``, and add its results."""
        args, kwargs = thawed(self.frozen, iter([env.get(value, value.real) for value in self.values]))
        leaves = pytree.tree_leaves(self.func(*args, **kwargs))
        env.update({v: leaf for v, leaf in zip(self.made, leaves, strict=True) if v is not None})
