"""Walks over modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

Modules = list[tuple[str, nn.Module]]


def all_modules(root: nn.Module) -> Modules:
    """Return a module and all inside it with their paths, each once: as ``named_modules`` does, in a fraction of the time."""
    found = {root: ""}
    _visit(root, "", found)
    return [(path, module) for module, path in found.items()]


def _visit(module: nn.Module, start: str, found: dict[nn.Module, str]) -> None:
    # No closure: one that calls itself is a cycle, which would hold all that was found until the collector comes.
    for name, child in module._modules.items():
        if child is not None and child not in found:
            found[child] = start + name
            if child._modules:  # most have none
                _visit(child, f"{start}{name}.", found)


def all_tensors(modules: Modules) -> dict[str, Tensor]:
    """Return the parameters of modules, then the buffers, by their names, each under its first alone."""
    found: dict[Tensor, str] = {}
    for registry in ("_parameters", "_buffers"):
        for path, module in modules:
            for name, tensor in vars(module)[registry].items():
                if tensor is not None:
                    found.setdefault(tensor, f"{path}.{name}" if path else name)
    return {name: tensor for tensor, name in found.items()}


def join(path: str, name: str) -> str:
    """Return the dotted name of ``name`` inside the module at ``path`` (empty for the root)."""
    return f"{path}.{name}" if path else name


def split(name: str) -> tuple[str, str]:
    """Return the module path and the last part of a dotted name."""
    path, _, last = name.rpartition(".")
    return path, last


def value_at(root: nn.Module, target: str) -> Any:
    """Return what a get_attr node of that ``target`` reads from ``root``, or None if there is nothing."""
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part, None)
    return value


def modules_by_path(root: nn.Module) -> dict[str, nn.Module]:
    """Return every module below ``root`` by each of its dotted paths, parents first; ``root`` itself has the empty one."""
    found: dict[str, nn.Module] = {}
    waiting = [("", root)]
    while waiting:
        path, module = waiting.pop()
        found[path] = module
        if module._modules:
            start = path and f"{path}."
            waiting += [(start + name, child) for name, child in reversed(module._modules.items()) if child is not None]
    return found


def parameters_by_name(root: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter by each of its dotted names, in the order of ``named_parameters``."""
    return {
        f"{path}.{name}" if path else name: parameter
        for path, module in modules_by_path(root).items()
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def parameter_names(root: nn.Module, parameter: nn.Parameter) -> tuple[str, ...]:
    """Return every dotted name under which ``parameter`` is registered."""
    return tuple(name for name, p in parameters_by_name(root).items() if p is parameter)


def owners(root: nn.Module, parameter: nn.Parameter) -> Iterator[tuple[nn.Module, str]]:
    """Yield each (module, attribute) that holds ``parameter``; a module registered twice comes once."""
    for _, module in all_modules(root):
        for attribute, value in module._parameters.items():
            if value is parameter:
                yield module, attribute


def holders(root: nn.Module) -> dict[Tensor | None, list[tuple[nn.Module, str]]]:
    """Return each (module, attribute) that holds a parameter or buffer, by the tensor; those that hold none by None."""
    found: dict[Tensor | None, list[tuple[nn.Module, str]]] = {}
    for _, module in all_modules(root):
        for attribute, value in (*module._parameters.items(), *module._buffers.items()):
            found.setdefault(value, []).append((module, attribute))
    return found


def replace_modules(root: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put another module wherever one of the keys of ``new`` is registered."""
    for _, module in all_modules(root):
        for name, child in module._modules.items():
            if child is not None and child in new:
                module._modules[name] = new[child]
