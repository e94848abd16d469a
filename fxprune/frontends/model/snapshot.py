"""Undoes the changes that a model's code makes to the model during a capture."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.graph.captured import CapturedModule
from fxprune.graph.paths import all_tensors, join

_REGISTRIES = frozenset(vars(nn.Module()))
_IMMUTABLE = frozenset({bool, int, float, str, type(None), tuple})
_NUMBERS = (int, float, bool, str)
_CONTAINERS = (dict, list, set)  # isinstance is faster with a tuple than with a union


class Changes:
    """The dotted names of the attributes that the model's code changed; complete when the context ends."""

    def __init__(self) -> None:
        self.rebound_tensors: list[str] = []
        self.rebound_numbers: list[str] = []


class Snapshot:
    """The attributes of one module, with the contents of its dicts, lists and sets and the values of its plain tensors."""

    def __init__(self, path: str, module: nn.Module) -> None:
        self.path, self.module = path, module
        self.attributes = dict(module.__dict__)
        self.contents: dict[str, Any] = {}
        self.empty: list[Any] = []  # the empty dicts, lists and sets: most registries
        self.tensors: list[tuple[Tensor, Tensor]] = []  # each with a copy
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
        """Note the current mode of the module, and empty its dicts of tensors."""
        self.attributes["training"] = self.module.__dict__["training"]
        for name, content in self.contents.items():
            if name not in _REGISTRIES and isinstance(content, dict) and all(isinstance(v, Tensor) for v in content.values()):
                self.attributes[name].clear()

    def restore(self, changes: Changes) -> None:
        """Give the module its attributes back, and note which of them the code changed."""
        plain = self.module.__dict__
        for registry in ("_buffers", "_parameters"):
            before, now = self.contents.get(registry), plain.get(registry, {})  # the code may delete a registry
            if before is None or _same_items(now, before):
                continue
            changes.rebound_tensors += [join(self.path, n) for n, t in before.items() if t is not None and now.get(n) is not t]
        if not _same_items(plain, self.attributes):
            self._restore_attributes(plain, changes)
        for name, content in self.contents.items():
            held = self.attributes[name]
            if isinstance(held, dict) and _same_items(held, content):
                continue
            held.clear()
            held.extend(content) if isinstance(held, list) else held.update(content)
        for held in filter(None, self.empty):
            held.clear()
        for tensor, value in self.tensors:
            if not torch.equal(tensor, value):
                tensor.detach().copy_(value)

    def _restore_attributes(self, plain: dict[str, Any], changes: Changes) -> None:
        for name, value in self.attributes.items():
            now = plain.get(name)
            if now is value:
                continue
            if isinstance(value, Tensor):
                changes.rebound_tensors.append(join(self.path, name))
            elif name != "training" and type(value) in _NUMBERS and (type(now) is not type(value) or now != value):
                changes.rebound_numbers.append(join(self.path, name))
        plain.clear()
        plain.update(self.attributes)


def _same_items(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether two dicts hold the same objects under the same names in the same order: as after nearly every run."""
    alike = len(one) == len(other) and all(map(operator.is_, one, other))
    return alike and all(map(operator.is_, one.values(), other.values()))


class ModelSnapshot:
    """The state of a model, except its mode: the model's code runs within :meth:`untouched`, and nothing else changes it."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.modules = model, list(model.named_modules())
        self.tensors = all_tensors(self.modules)  # parameters, then buffers, by name
        self._snapshots: list[Snapshot] | None = None

    @contextlib.contextmanager
    def untouched(self, changes: Changes | None = None) -> Iterator[Changes]:
        """Give every module its attributes back after the context, and note in ``changes`` which of them the code changed.

        Within the context, plain dicts of tensors start empty: they are caches of what ``forward`` computed before, and a
        cached tensor would enter the graph as a constant. The values of parameters and buffers are not restored.
        """
        changes = Changes() if changes is None else changes
        if self._snapshots is None:
            for _, module in self.modules:
                if isinstance(module, CapturedModule):
                    module.compile_put_off()  # compiled within the context, its code would be undone with the attributes
            self._snapshots = [Snapshot(path, module) for path, module in self.modules]
        for snapshot in self._snapshots:
            snapshot.begin()
        try:
            yield changes
        finally:
            for snapshot in self._snapshots:
                snapshot.restore(changes)
