"""Walks over modules."""

from __future__ import annotations

from torch import Tensor, nn

Modules = list[tuple[str, nn.Module]]


def all_modules(root: nn.Module) -> Modules:
    """Return a module and all inside it with their paths, each once: as ``named_modules`` does, in a fraction of the time."""
    found: dict[int, tuple[str, nn.Module]] = {id(root): ("", root)}
    _visit(root, "", found)
    return list(found.values())


def _visit(module: nn.Module, start: str, found: dict[int, tuple[str, nn.Module]]) -> None:
    # No closure: one that calls itself is a cycle, which would hold all that was found until the collector comes.
    for name, child in module._modules.items():
        if child is not None and id(child) not in found:
            path = start + name
            found[id(child)] = path, child
            if child._modules:  # most have none
                _visit(child, f"{path}.", found)


def all_tensors(modules: Modules) -> dict[str, Tensor]:
    """Return the parameters of modules, then the buffers, by their names, each under its first alone."""
    found: dict[int, tuple[str, Tensor]] = {}
    for registry in ("_parameters", "_buffers"):
        for path, module in modules:
            for name, tensor in vars(module)[registry].items():
                if tensor is not None and id(tensor) not in found:
                    found[id(tensor)] = f"{path}.{name}" if path else name, tensor
    return dict(found.values())
