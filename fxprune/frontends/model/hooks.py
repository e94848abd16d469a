"""Hooks of the model: hooks of ``torch.nn.utils.prune`` become masks, any other hook is refused."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from torch import Tensor
from torch.nn.utils import prune as torch_prune

from fxprune.errors import HookError
from fxprune.frontends.model.plain import PlainState
from fxprune.frontends.model.snapshot import Changes, Snapshot
from fxprune.graph.masks import MASK, ORIG, rename
from fxprune.graph.paths import Modules, join
from fxprune.torch_internals.pruning_methods import parameter_of

_KINDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A parameter that ``torch.nn.utils.prune`` masks in the model."""

    name: str
    mask: Tensor
    method: torch_prune.BasePruningMethod


def check_hooks(modules: Modules) -> None:
    """Raise HookError, which names each module and hook, if modules run hooks that a graph would drop."""
    found = [
        f"{path or '(the model itself)'} ({type(module).__name__}): {kind.strip('_')[:-1].replace('_', ' ')} "
        f"{getattr(hook, '__qualname__', type(hook).__qualname__)}"
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
