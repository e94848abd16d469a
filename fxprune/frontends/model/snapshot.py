"""Keeps a model as it was while its code runs during a capture."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.graph.captured import CapturedModule
from fxprune.graph.paths import Modules, all_modules, all_tensors

_REGISTRIES = frozenset(vars(nn.Module()))
_IMMUTABLE = frozenset({bool, int, float, str, type(None), tuple})
_CONTAINERS = (dict, list, set)  # a union would be made anew for each of the many questions


class Changes:
    """What the model's code tried to change: the dotted names of attributes, filled when the context ends."""

    def __init__(self) -> None:
        self.rebound_tensors: list[str] = []
        self.rebound_numbers: list[str] = []


class _Snapshot:
    def __init__(self, path: str, module: nn.Module) -> None:
        self.path, self.module = path, module
        self.attributes = dict(module.__dict__)
        self.contents: dict[str, Any] = {}
        self.empty: list[Any] = []  # as most registries are
        self.tensors: list[tuple[Tensor, Tensor]] = []
        for name, value in self.attributes.items():
            if type(value) in _IMMUTABLE:
                continue
            if isinstance(value, _CONTAINERS):
                if value:
                    self.contents[name] = value.copy()
                else:
                    self.empty.append(value)
            elif isinstance(value, Tensor) and not value.is_meta:
                self.tensors.append((value, value.clone()))

    def begin(self) -> None:
        """Take the module in the mode that it is in, with empty caches."""
        self.attributes["training"] = self.module.__dict__["training"]
        for name, content in self.contents.items():
            if name not in _REGISTRIES and _is_tensor_cache(content):
                self.attributes[name].clear()

    def restore(self, changes: Changes) -> None:
        """Give the module its attributes back, and note which the code changed."""
        plain = self.module.__dict__
        is_same = _are_same(plain, self.attributes)
        names: list[str] = []
        for registry in ("_buffers", "_parameters"):
            before: Any = self.contents.get(registry, {})
            held: Any = plain.get(registry, {})  # the code may have deleted the registry itself
            names += [n for n in before if before[n] is not None and held.get(n) is not before[n]]
        if not is_same:
            names += [n for n, v in self.attributes.items() if isinstance(v, Tensor) and plain.get(n) is not v]
            numbers = {n: v for n, v in self.attributes.items() if n != "training" and type(v) in (int, float, bool, str)}
            changed = [n for n, v in numbers.items() if type(plain.get(n)) is not type(v) or plain[n] != v]
            changes.rebound_numbers += [f"{self.path}.{n}" if self.path else n for n in changed]
            plain.clear()
            plain.update(self.attributes)
        changes.rebound_tensors += [f"{self.path}.{n}" if self.path else n for n in names]
        for name, content in self.contents.items():
            held = self.attributes[name]
            held.clear()
            held.extend(content) if isinstance(held, list) else held.update(content)
        if any(self.empty):
            for held in self.empty:
                held.clear()
        for tensor, value in self.tensors:
            if not torch.equal(tensor, value):
                tensor.detach().copy_(value)


def _are_same(attributes: dict[str, Any], others: dict[str, Any]) -> bool:
    """Tell whether two dicts hold the same objects under the same names, in the same order."""
    if len(attributes) != len(others) or not all(map(operator.is_, attributes, others)):
        return False
    return all(map(operator.is_, attributes.values(), others.values()))


class ModelSnapshot:
    """A model as it is now, but for its mode: its code may run within :meth:`untouched`, and nothing else changes it.

    Args:
        model: the model.
        modules: all its modules, if they are known.

    Attributes:
        modules: all its modules by their paths.
        tensors: its parameters, then its buffers, by their names.
    """

    def __init__(self, model: nn.Module, modules: Modules | None = None) -> None:
        self.model, self.modules = model, all_modules(model) if modules is None else modules
        self.tensors = all_tensors(self.modules)
        self._snapshots: list[_Snapshot] | None = None

    @contextlib.contextmanager
    def untouched(self, changes: Changes | None = None) -> Iterator[Changes]:
        """Give every module its attributes back after the context, however the model's code changed them.

        Within the context, plain dicts of tensors start empty: they are caches of what ``forward`` computed before, and a
        cached tensor would enter the graph as a constant. Values of parameters and buffers are not covered.

        Args:
            changes: where to note what the code tried to change; a new one unless given.
        """
        changes = Changes() if changes is None else changes
        if self._snapshots is None:
            for _, module in self.modules:
                if isinstance(module, CapturedModule):
                    module.compile_put_off()  # what is made within would be taken away, but for what its class holds
            self._snapshots = [_Snapshot(path, module) for path, module in self.modules]
        for snapshot in self._snapshots:
            snapshot.begin()
        try:
            yield changes
        finally:
            for snapshot in self._snapshots:
                snapshot.restore(changes)


def _is_tensor_cache(content: object) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(v, Tensor) for v in content.values())
