"""Undoes the changes that a model's code makes to the model during a capture."""

from __future__ import annotations

import collections
import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx, nn

from fxprune.frontends.form_guards import FormReads
from fxprune.frontends.model.plain import NUMBERS, PlainState, is_same_number, same_items
from fxprune.graph.captured import CapturedModule
from fxprune.graph.paths import Modules, all_tensors, join
from fxprune.torch_internals.tensors import overwrite

_REGISTRIES = frozenset(vars(nn.Module()))
_IMMUTABLE = frozenset({bool, int, float, str, type(None)})
_CONTAINERS = (dict, list, set)  # isinstance is faster with a tuple than with a union
_DICTS = (dict, collections.OrderedDict)


class Changes:
    """The dotted names of the attributes that the model's code changed, and what it asked for, when the context ends."""

    def __init__(self) -> None:
        self.rebound_tensors: list[str] = []
        self.rebound_numbers: list[str] = []  # from one number to another, also within dicts and lists
        self.others: list[str] = []  # such as from None to a tensor, or a list that has grown
        self.inputs: list[str] = []  # names of inputs with other items or attributes than before
        self.forms = FormReads()


class Snapshot:
    """The attributes and registries of one module; ``plain`` keeps what its other attributes hold."""

    def __init__(self, path: str, module: nn.Module, plain: PlainState) -> None:
        self.path, self.module = path, module
        self.attributes = dict(module.__dict__)
        self.contents: dict[str, Any] = {}  # of registries
        self.empty: list[Any] = []  # the empty ones: most registries
        for name, value in self.attributes.items():
            if type(value) in _IMMUTABLE:
                continue
            if name not in _REGISTRIES:
                if not isinstance(module, fx.GraphModule):  # whose generated code changes no attributes
                    plain.add(join(path, name), value)
            elif isinstance(value, _CONTAINERS):
                if value:
                    self.contents[name] = value.copy()
                else:
                    self.empty.append(value)

    def begin(self, caches: dict[int, Any]) -> None:
        """Note the current mode of the module; put an empty dict in place of each of its ``caches``."""
        self.attributes["training"] = self.module.__dict__["training"]
        if caches:
            self.module.__dict__.update({name: caches[id(v)] for name, v in self.attributes.items() if id(v) in caches})

    def restore(self, changes: Changes) -> None:
        """Give the module its attributes back, and note which of them the code changed."""
        plain = self.module.__dict__
        for registry in ("_buffers", "_parameters"):
            before, now = self.contents.get(registry), plain.get(registry, {})  # the code may delete a registry
            if before is None or same_items(now, before):
                continue
            changed = [name for name, tensor in before.items() if now.get(name) is not tensor]
            for name in changed:
                (changes.others if before[name] is None else changes.rebound_tensors).append(join(self.path, name))
        if not same_items(plain, self.attributes):
            self._restore_attributes(plain, changes)
        for name, content in self.contents.items():
            held = self.attributes[name]
            if isinstance(held, dict) and same_items(held, content):
                continue
            held.clear()
            held.update(content)
        for held in filter(None, self.empty):
            held.clear()

    def _restore_attributes(self, plain: dict[str, Any], changes: Changes) -> None:
        changes.others += [join(self.path, name) for name in plain if name not in self.attributes]
        for name, value in self.attributes.items():
            now = plain.get(name)
            if now is value or name == "training" or is_same_number(now, value):
                continue
            if isinstance(value, Tensor):
                changes.rebound_tensors.append(join(self.path, name))
            elif isinstance(value, NUMBERS):
                changes.rebound_numbers.append(join(self.path, name))
            else:
                changes.others.append(join(self.path, name))
        plain.clear()
        plain.update(self.attributes)


class ClassSnapshot:
    """The attributes of a class of modules, which all its instances share; ``plain`` keeps what they hold."""

    def __init__(self, kind: type, plain: PlainState) -> None:
        self.kind, self.attributes = kind, _own(kind)
        for name, value in self.attributes.items():
            plain.add(f"{kind.__name__}.{name}", value)

    def restore(self, changes: Changes) -> None:
        """Give the class its attributes back, and note which of them the code changed."""
        now = _own(self.kind)
        if same_items(now, self.attributes):
            return
        for name in [name for name in now if name not in self.attributes]:
            changes.others.append(f"{self.kind.__name__}.{name}")
            delattr(self.kind, name)
        for name, value in self.attributes.items():
            if now.get(name) is not value:
                noted = changes.rebound_numbers if isinstance(value, NUMBERS) else changes.others
                noted.append(f"{self.kind.__name__}.{name}")
                setattr(self.kind, name, value)


def _own(kind: type) -> dict[str, Any]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("__")}


def _classes(modules: Modules) -> list[type]:
    """Return the classes of modules that are not torch's, nor made for one graph."""
    kinds = {base: None for kind in {type(module) for _, module in modules} for base in kind.__mro__[:-1]}
    return [kind for kind in kinds if kind.__module__.partition(".")[0] != "torch" and not issubclass(kind, fx.GraphModule)]


class ModelSnapshot:
    """The state of a model, except its mode: the model's code runs within :meth:`untouched`, and nothing else changes it."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.modules = model, list(model.named_modules())
        self.tensors = all_tensors(self.modules)  # parameters, then buffers, by name
        self.plain = PlainState(self.tensors.values())
        self._snapshots: list[Snapshot | ClassSnapshot] = []
        self._hides_caches = False

    def caches(self) -> list[dict[Any, Any]]:
        """Return the plain dicts of tensors that modules have: caches of what ``forward`` computed before, or constants."""
        dicts = [v for _, m in self.modules for k, v in vars(m).items() if type(v) in _DICTS and v and k not in _REGISTRIES]
        return [found for found in dicts if all(isinstance(v, Tensor) for v in found.values())]

    def without_caches(self) -> ModelSnapshot:
        """Return the snapshot with an empty dict in place of each of :meth:`caches` while the model's code runs."""
        hiding = copy.copy(self)
        hiding._hides_caches = True
        return hiding

    @contextlib.contextmanager
    def with_assigned(self, call: Callable[[], Any]) -> Iterator[list[str]]:
        """Give attributes that hold tensors the tensors that ``call`` of the model's code assigns to them, within the context.

        All else stays as it was before the call. Yields the names.
        """
        places = [(path, held, dict(held)) for path, m in self.modules for held in (vars(m), m._buffers)]
        buffers = {
            tensor: tensor.detach().clone() for _, m in self.modules for tensor in m._buffers.values() if tensor is not None
        }
        with self.untouched():
            try:
                call()
                new = [
                    (path, held, k, held.get(k)) for path, held, was in places for k, t in was.items() if isinstance(t, Tensor)
                ]
            finally:
                for tensor, values in buffers.items():
                    overwrite(tensor, values)
        new = [(path, held, k, tensor) for path, held, k, tensor in new if isinstance(tensor, Tensor) and tensor is not held[k]]
        before = [(held, k, held[k]) for _, held, k, _ in new]
        try:
            for _, held, k, tensor in new:
                held[k] = tensor
            yield [join(path, k) for path, _, k, _ in new]
        finally:
            for held, k, tensor in before:
                held[k] = tensor

    @contextlib.contextmanager
    def untouched(self, changes: Changes | None = None) -> Iterator[Changes]:
        """Give every module its attributes back after the context, and note in ``changes`` which of them the code changed.

        The values of parameters and buffers are not restored.
        """
        changes = Changes() if changes is None else changes
        if not self._snapshots:
            for _, module in self.modules:
                if isinstance(module, CapturedModule):
                    module.compile_put_off()  # compiled within the context, its code would be undone with the attributes
            self._snapshots += [Snapshot(path, module, self.plain) for path, module in self.modules]
            self._snapshots += [ClassSnapshot(kind, self.plain) for kind in _classes(self.modules)]
        empty = {id(found): type(found)() for found in self.caches()} if self._hides_caches else {}
        try:
            for snapshot in self._snapshots:
                if isinstance(snapshot, Snapshot):
                    snapshot.begin(empty)
            yield changes
        finally:
            for snapshot in self._snapshots:
                snapshot.restore(changes)
            self.plain.restore(changes.rebound_numbers, changes.others)
