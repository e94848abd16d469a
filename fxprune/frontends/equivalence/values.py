"""What value numbering knows about tensors: what they hold, by number, and whose memory they share."""

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
    """What tensors that share memory have in common: the number of the last write to it, 0 for none."""

    written: int = 0
    storage: torch.UntypedStorage | None = None  # keeps its address taken


@dataclasses.dataclass(eq=False, slots=True)
class Value:
    """A tensor: its number when it was made, its memory then, and, unless it is computed, the tensor itself."""

    number: int
    form: Form
    memory: Memory
    written: int
    real: Tensor | None = None
    address: int = 0  # of a stand-in's storage, which only an assignment to ``.data`` changes


class OfTensors:
    """The values of tensors that are alive.

    What ``torch.utils.weak.WeakTensorKeyDictionary`` is, too, but a look-up there makes a reference, and there are many.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], Value]] = {}

    def __setitem__(self, tensor: Tensor, value: Value) -> None:
        key, entries = id(tensor), self._entries
        entries[key] = weakref.ref(tensor, lambda _: entries.pop(key, None)), value

    def get(self, tensor: Tensor) -> Value | None:
        """Return the value of a tensor, if it has one."""
        entry = self._entries.get(id(tensor))
        return None if entry is None else entry[1]

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> list[tuple[Tensor, Value]]:
        """Return all that are alive, which keeps them so."""
        found = []
        for reference, value in list(self._entries.values()):
            tensor = reference()
            if tensor is not None:
                keep_python_object(tensor)
                found.append((tensor, value))
        return found

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()


@dataclasses.dataclass(eq=False)
class OperatorCall:
    """A call of an operator: what it does, the values of its operands, and which values are new among its results."""

    func: Any
    frozen: Any
    values: list[Value]
    made: list[Value | None]

    def run(self, env: dict[Value, Tensor]) -> None:
        """Compute it on the tensors that values have by now."""
        args, kwargs = thawed(self.frozen, iter([env.get(value, value.real) for value in self.values]))
        leaves = pytree.tree_leaves(self.func(*args, **kwargs))
        env.update({v: leaf for v, leaf in zip(self.made, leaves, strict=True) if v is not None})
