"""Walks over modules."""

from __future__ import annotations

from torch import nn


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
