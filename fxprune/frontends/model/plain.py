"""Plain Python state: the containers, objects, arrays and tensors that attributes hold, however deep, with what is in them."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import enum
import operator
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

NUMBERS = (bool, int, float, complex, str)
_WITHOUT_STATE = frozenset({type(None), *NUMBERS, bytes, torch.dtype, torch.device, torch.Size})
# Modules have snapshots of their own, and code is no state.
_NOT_LOOKED_INTO = (
    nn.Module, nn.Parameter, type, enum.Enum, types.ModuleType, types.FunctionType, types.MethodType,
    fx.Graph, fx.Node,
)  # fmt: skip


def _write_dict(held: Any, content: Any) -> None:
    kind: Any = collections.OrderedDict if isinstance(held, collections.OrderedDict) else dict  # a subclass may be read-only
    kind.clear(held)
    kind.update(held, content)


def _write_list(held: Any, content: Any) -> None:
    list.__setitem__(held, slice(None), content)


def _write_deque(held: Any, content: Any) -> None:
    collections.deque.clear(held)
    collections.deque.extend(held, content)


def _write_set(held: Any, content: Any) -> None:
    set.clear(held)
    set.update(held, content)


def _write_array(held: Any, content: Any) -> None:
    held[...] = content


def _write_tensor(held: Any, content: Any) -> None:
    held.detach().copy_(content)


def _same_array(one: Any, other: Any) -> bool:
    return one.shape == other.shape and bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fc"))


def same_items(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    """Tell whether two dicts hold the same objects under the same names in the same order: as after nearly every run."""
    alike = len(one) == len(other) and all(map(operator.is_, one, other))
    return alike and all(map(operator.is_, one.values(), other.values()))


def _same_elements(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How the content of objects of one kind is copied, compared and written back."""

    copy: Callable[[Any], Any]
    same: Callable[[Any, Any], bool]
    write: Callable[[Any, Any], None]
    of: Callable[[Any], Any] = lambda held: held  # what holds the content


def _copied_dict(held: Any) -> dict[Any, Any]:
    return dict(collections.OrderedDict.items(held) if isinstance(held, collections.OrderedDict) else dict.items(held))


_KINDS: dict[Any, _Kind] = {
    dict: _Kind(_copied_dict, same_items, _write_dict),
    list: _Kind(list.copy, _same_elements, _write_list),
    collections.deque: _Kind(list, _same_elements, _write_deque),
    set: _Kind(set.copy, operator.eq, _write_set),
    np.ndarray: _Kind(np.copy, _same_array, _write_array),
    Tensor: _Kind(lambda held: held.detach().clone(), torch.equal, _write_tensor),
}
_OBJECT = _Kind(dict.copy, same_items, _write_dict, vars)
# Classes of Python itself whose objects hold what their owner puts there; others lead to the state of the process.
_OWNED = (types.SimpleNamespace, argparse.Namespace, collections.UserDict, collections.UserList)
_LARGE = 1 << 20


def _kind(value: Any, inside_object: bool) -> _Kind | None:
    for base, kind in _KINDS.items():
        if isinstance(value, base):
            # An object may lead to data sets and other models.
            is_kept = not isinstance(value, Tensor | np.ndarray) or not inside_object or value.nbytes <= _LARGE
            return kind if is_kept and not (isinstance(value, Tensor) and value.is_meta) else None
    package = type(value).__module__.partition(".")[0]
    is_owned = isinstance(value, _OWNED) or not (package in sys.stdlib_module_names or package in ("torch", "numpy", "fxprune"))
    return _OBJECT if is_owned and isinstance(getattr(value, "__dict__", None), dict) else None


class PlainState:
    """The content of everything that some values hold, each object once, by the name of the first value that leads to it."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        self._seen = {id(tensor) for tensor in known}  # parameters and buffers, which others keep
        self._held: list[tuple[str, Any, _Kind, Any]] = []

    def add(self, name: str, value: Any) -> None:
        """Keep the content of ``value`` and of all that it holds."""
        waiting = [(value, False)]
        while waiting:
            held, inside_object = waiting.pop()
            if type(held) in _WITHOUT_STATE or isinstance(held, _NOT_LOOKED_INTO) or id(held) in self._seen:
                continue
            if isinstance(held, tuple | frozenset):
                waiting += [(part, inside_object) for part in held]
            elif (kind := _kind(held, inside_object)) is not None:
                self._seen.add(id(held))
                content = kind.copy(kind.of(held))
                self._held.append((name, held, kind, content))
                if not isinstance(content, Tensor | np.ndarray):
                    parts = content.values() if isinstance(content, dict) else content
                    waiting += [(part, inside_object or kind is _OBJECT) for part in parts]

    def lengths(self) -> dict[str, int]:
        """Return by name the number of all items that lists, dicts, sets and objects hold now."""
        lengths: dict[str, int] = {}
        for name, held, kind, content in self._held:
            if not isinstance(content, Tensor | np.ndarray):
                lengths[name] = lengths.get(name, 0) + len(kind.of(held))
        return lengths

    def restore(self, numbers: list[str], others: list[str]) -> None:
        """Write back what has changed; add the names of changed numbers to ``numbers``, of all else to ``others``."""
        for name, held, kind, content in self._held:
            now = kind.of(held)
            if kind.same(now, content):
                continue
            if not isinstance(held, Tensor):  # what is written to a tensor is written by the graph as well
                _note_changes(name, now, content, numbers, others)
            kind.write(now, content)


def _note_changes(name: str, now: Any, before: Any, numbers: list[str], others: list[str]) -> None:
    if isinstance(before, dict):
        pairs = [(now[key], value) for key, value in before.items() if key in now]
    else:
        pairs = list(zip(now, before, strict=False)) if isinstance(before, list) else []
    differ = [(a, b) for a, b in pairs if a is not b and not is_same_number(a, b)]
    if any(isinstance(a, NUMBERS) and isinstance(b, NUMBERS) for a, b in differ):
        numbers.append(name)
    elif differ or len(now) != len(before) or not pairs:
        others.append(name)


def is_same_number(one: Any, other: Any) -> bool:
    """Tell whether two objects are the same number or text."""
    return isinstance(one, NUMBERS) and type(one) is type(other) and one == other
