"""Hooks of the model.

Hooks of ``torch.nn.utils.prune`` become masks; those that compute a weight become code of the module; any other hook may go
only if the model computes the same without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fxprune.errors import HookError
from fxprune.frontends.model.plain import PlainState
from fxprune.frontends.model.snapshot import Changes, Snapshot
from fxprune.graph.masks import MASK, ORIG, rename
from fxprune.graph.paths import Modules, join
from fxprune.torch_internals.pruning_methods import parameter_of

_FORWARD = ("_forward_hooks", "_forward_pre_hooks")
_BACKWARD = ("_backward_hooks", "_backward_pre_hooks")


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A parameter that ``torch.nn.utils.prune`` masks in the model."""

    name: str
    mask: Tensor
    method: torch_prune.BasePruningMethod


@dataclasses.dataclass(frozen=True)
class Hook:
    """A hook of a module, by the registry that holds it and its key there."""

    path: str
    module: nn.Module
    registry: str
    key: int
    function: Callable[..., Any]

    def __str__(self) -> str:
        """Name the hook, where its code is, and the line that removes it."""
        function = getattr(self.function, "__func__", self.function)
        code = getattr(function, "__code__", None)
        where = f" at {code.co_filename}:{code.co_firstlineno}" if code is not None else ""
        owner = f"model.get_submodule({self.path!r})" if self.path else "model"
        name = getattr(function, "__qualname__", type(function).__qualname__)
        return (
            f"{self.path or '(the model itself)'} ({type(self.module).__name__}): "
            f"{self.registry.strip('_')[:-1].replace('_', ' ')} {name}{where}; remove it by "
            f"`del {owner}.{self.registry}[{self.key}]`"
        )


_COMPUTING = (WeightNorm, SpectralNorm)


def other_hooks(modules: Modules) -> list[Hook]:
    """Return the hooks of modules that this package does not know.

    Raises:
        HookError: some of them change gradients, which a graph would not.
    """
    found = [
        Hook(path, module, registry, key, function)
        for path, module in modules
        for registry in (*_FORWARD, *_BACKWARD)
        for key, function in getattr(module, registry).items()
        if not isinstance(function, (torch_prune.BasePruningMethod, *_COMPUTING))
    ]
    if any(hook.registry in _BACKWARD for hook in found):
        raise cannot_keep([hook for hook in found if hook.registry in _BACKWARD])
    return found


def cannot_keep(hooks: list[Hook]) -> HookError:
    """Return the error for hooks that take part in what the model computes."""
    listed = "\n  ".join(map(str, hooks))
    return HookError(
        f"the model has hooks, which a graph cannot keep:\n  {listed}\nRemove them before capture, or move their code into a "
        "module's forward"
    )


class Computing:
    """Base of the classes that modules have for a while, which compute a parameter where it is read, not in a hook."""


@contextlib.contextmanager
def without_hooks(modules: Modules, hooks: list[Hook]) -> Iterator[list[Hook]]:
    """Take hooks off the model within the context; weights that ``torch.nn.utils`` norms are computed where they are read.

    Yields the hooks that compute weights.
    """
    computing = [
        Hook(path, module, "_forward_pre_hooks", key, function)
        for path, module in modules
        for key, function in module._forward_pre_hooks.items()
        if isinstance(function, _COMPUTING)
    ]
    before = [(hook.module, type(hook.module), dict(vars(hook.module))) for hook in (*hooks, *computing)]
    registries = [(registry := getattr(hook.module, hook.registry), dict(registry)) for hook in (*hooks, *computing)]
    try:
        for hook in (*hooks, *computing):
            del getattr(hook.module, hook.registry)[hook.key]
        for hook in computing:
            vars(hook.module).pop(hook.function.name, None)  # type: ignore[attr-defined]
            kind = type(hook.module)
            bases = (kind,) if issubclass(kind, Computing) else (Computing, kind)
            hook.module.__class__ = type(kind.__name__, bases, {hook.function.name: _computed(hook.function)})  # type: ignore[attr-defined]
        yield computing
    finally:
        for module, kind, attributes in before[::-1]:
            module.__class__ = kind
            vars(module).update(attributes)
        for registry, content in registries:
            registry.clear()
            registry.update(content)


def _computed(norm: Any) -> property:
    if isinstance(norm, WeightNorm):
        return property(norm.compute_weight)
    return property(lambda module: norm.compute_weight(module, do_power_iteration=module.training))


@contextlib.contextmanager
def without_prune_hooks(modules: Modules) -> Iterator[list[Pruned]]:
    """Make the model dense within the context: without hooks of ``torch.nn.utils.prune``, ``weight_orig`` is ``weight`` again.

    Yields the pruned parameters.
    """
    found: list[Pruned] = []
    snapshots, plain = list[Snapshot](), PlainState()
    try:
        for path, module in modules:
            hooks = {k: h for k, h in module._forward_pre_hooks.items() if isinstance(h, torch_prune.BasePruningMethod)}
            if not hooks:
                continue
            snapshots.append(Snapshot(path, module, plain))
            for key, hook in hooks.items():
                name = parameter_of(hook)
                found.append(Pruned(join(path, name), module.get_buffer(name + MASK), hook))
                del module._forward_pre_hooks[key], module._buffers[name + MASK]
                vars(module).pop(name, None)
                rename(module, name + ORIG, name)
                # The assignment also updates the list of weights that recurrent modules keep.
                setattr(module, name, module._parameters[name])
        yield found
    finally:
        for snapshot in snapshots:
            snapshot.restore(Changes())
        plain.restore([], [])
