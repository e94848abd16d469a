"""Walks over modules."""

from __future__ import annotations

from torch import Tensor, nn


def all_modules(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return a module and all inside it with their paths, each once: as ``named_modules`` does, in a fraction of the time."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    todo: list[tuple[str, nn.Module]] = [("", root)]
    while todo:
        path, module = todo.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found.append((path, module))
        start = f"{path}." if path else ""
        todo += [(start + name, child) for name, child in reversed(module._modules.items()) if child is not None]
    return found


def all_tensors(root: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a module and all inside it, then the buffers, by their names, each under its first alone."""
    modules = all_modules(root)
    found: dict[int, tuple[str, Tensor]] = {}
    for registry in ("_parameters", "_buffers"):
        for path, module in modules:
            for name, tensor in vars(module)[registry].items():
                if tensor is not None and id(tensor) not in found:
                    found[id(tensor)] = f"{path}.{name}" if path else name, tensor
    return dict(found.values())
