"""Modules in whose place a capture sees others: wrappers, which only call the module inside, and TorchScript."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fxprune.frontends.model.hooks import cannot_keep, other_hooks
from fxprune.graph.paths import replace_modules
from fxprune.graph.scripted import Scripted
from fxprune.torch_internals.wrappers import compiled_inside

_REGISTRIES = frozenset(vars(nn.Module()))
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def _inside(module: nn.Module) -> nn.Module | None:
    """Return the module inside a wrapper; None if a module is no wrapper, or one with a ``forward`` of its own."""
    is_parallel = any(isinstance(module, kind) and type(module).forward is kind.forward for kind in _PARALLEL)
    return module._modules["module"] if is_parallel else compiled_inside(module)


def without_wrapper(model: nn.Module) -> nn.Module:
    """Return the module inside the wrappers around a whole model, which put a prefix before all names.

    Raises:
        HookError: a wrapper has hooks.
    """
    while (inside := _inside(model)) is not None:
        if hooks := other_hooks([("", model)]):
            raise cannot_keep(hooks)
        model = inside
    return model


class _Passing(nn.Module):
    """Stands for a wrapper: has its registries, so that all names stay, and passes calls on to the module inside."""

    def __init__(self, wrapper: nn.Module, inside: nn.Module) -> None:
        super().__init__()
        vars(self).update({name: value for name, value in vars(wrapper).items() if name in _REGISTRIES})
        self.training = wrapper.training
        (self._called,) = (name for name, child in wrapper._modules.items() if child is inside)
        self._has_attributes = compiled_inside(wrapper) is not None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._modules[self._called](*args, **kwargs)  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if not vars(self).get("_has_attributes"):
                raise
        return getattr(self._modules[self._called], name)


@contextlib.contextmanager
def without_wrappers(model: nn.Module) -> Iterator[None]:
    """Put stand-ins in place of the wrappers inside a model, within the context, which pass calls on and do nothing else.

    Those in place of TorchScript run it as a layer.
    """
    stand_ins: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if (inside := _inside(module)) is not None:
            stand_ins[module] = _Passing(module, inside)
        if not isinstance(module, torch.jit.ScriptModule):
            stand_ins |= {child: Scripted(child) for child in module.children() if isinstance(child, torch.jit.ScriptModule)}
    try:
        replace_modules(model, stand_ins)
        yield
    finally:
        replace_modules(model, {stand_in: module for module, stand_in in stand_ins.items()})
