"""Hooks of the model: those of ``torch.nn.utils.prune`` are understood, any other is refused."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from fxprune.errors import HookError
from fxprune.graph.masks import MASK, ORIG, rename
from fxprune.graph.paths import Modules, join
from fxprune.torch_internals.pruning_methods import parameter_of

_KINDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A parameter that the model holds pruned by ``torch.nn.utils.prune``: its name, mask and method."""

    name: str
    mask: Tensor
    method: torch_prune.BasePruningMethod


def check_hooks(modules: Modules) -> None:
    """Refuse a model whose modules run hooks that a graph would drop.

    Raises:
        HookError: names each module and hook.
    """
    found = [
        f"{path or '(the model itself)'} ({type(module).__name__}): {kind.strip('_')[:-1].replace('_', ' ')} {_name(hook)}"
        for path, module in modules
        for kind in _KINDS
        for hook in getattr(module, kind).values()
        if not isinstance(hook, torch_prune.BasePruningMethod)
    ]
    if found:
        listed = "\n  ".join(found)
        raise HookError(
            f"the model has hooks, which a graph cannot keep:\n  {listed}\nRemove them (handle.remove()) before capture, or "
            "move their code into a module's forward"
        )


def _name(hook: object) -> str:
    return getattr(hook, "__qualname__", type(hook).__qualname__)


@contextlib.contextmanager
def without_prune_hooks(modules: Modules) -> Iterator[list[Pruned]]:
    """Within the context the model is dense: hooks of ``torch.nn.utils.prune`` are off and parameters have their own names.

    Yields what was found. Afterwards the model is as before.
    """
    found: list[Pruned] = []
    saved: list[tuple[nn.Module, dict[str, object]]] = []
    try:
        for path, module in modules:
            hooks = {k: h for k, h in module._forward_pre_hooks.items() if isinstance(h, torch_prune.BasePruningMethod)}
            if not hooks:
                continue
            saved.append((module, _snapshot(module)))
            for key, hook in hooks.items():
                name = parameter_of(hook)
                found.append(Pruned(join(path, name), module.get_buffer(name + MASK), hook))
                del module._forward_pre_hooks[key]
                _undress(module, name)
        yield found
    finally:
        for module, before in saved:
            for name, value in before.items():
                held = module.__dict__.get(name)
                if isinstance(value, list) and isinstance(held, list):
                    held[:] = value
                    before[name] = held
            module.__dict__.clear()
            module.__dict__.update(before)


def _snapshot(module: nn.Module) -> dict[str, object]:
    return {k: v.copy() if k.startswith("_") and isinstance(v, dict | list) else v for k, v in module.__dict__.items()}


def _undress(module: nn.Module, name: str) -> None:
    module.__dict__.pop(name, None)
    rename(module, name + ORIG, name)
    del module._buffers[name + MASK]
    # Recurrent modules keep a second list of their weights, which follows assignments.
    setattr(module, name, module._parameters[name])
