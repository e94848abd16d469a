"""Walks over modules, and over the nodes that a node is computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from fxprune.torch_internals.graphs import is_erased

Modules = list[tuple[str, nn.Module]]


def all_tensors(modules: Modules) -> dict[str, Tensor]:
    """Return the parameters of modules, then their buffers, by their names; a tied tensor has several."""
    return {
        join(path, name): tensor
        for registry in ("_parameters", "_buffers")
        for path, module in modules
        for name, tensor in vars(module)[registry].items()
        if tensor is not None
    }


def join(path: str, name: str) -> str:
    """Return the dotted name of ``name`` inside the module at ``path`` (empty for the root)."""
    return f"{path}.{name}" if path else name


def split(name: str) -> tuple[str, str]:
    """Return the module path and the last part of a dotted name."""
    path, _, last = name.rpartition(".")
    return path, last


def value_at(root: object, target: str) -> Any:
    """Return the value that a get_attr node of this ``target`` reads from ``root``; None if there is no such attribute."""
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part, None)
    return value


def parameter_names(root: nn.Module, parameter: nn.Parameter) -> tuple[str, ...]:
    """Return every dotted name under which ``parameter`` is registered."""
    return tuple(name for name, p in root.named_parameters(remove_duplicate=False) if p is parameter)


def holders(root: nn.Module) -> dict[Tensor | None, list[tuple[nn.Module, str]]]:
    """Return by parameter or buffer each (module, attribute) that holds it; empty attributes by None."""
    found: dict[Tensor | None, list[tuple[nn.Module, str]]] = {}
    for module in root.modules():
        for attribute, value in (*module._parameters.items(), *module._buffers.items()):
            found.setdefault(value, []).append((module, attribute))
    return found


def replace_modules(root: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put ``new[module]`` wherever a key of ``new`` is registered."""
    for module in list(root.modules()):
        for name, child in module._modules.items():
            if child is not None and child in new:
                module._modules[name] = new[child]


def sources(node: fx.Node, is_end: Callable[[fx.Node], bool]) -> Iterator[fx.Node]:
    """Yield a node and the nodes that it is computed from, each once, without those that are an end and what lies behind."""
    waiting, seen = [node], set[fx.Node]()
    while waiting:
        source = waiting.pop()
        if source not in seen and not is_end(source):
            seen.add(source)
            yield source
            waiting += source.all_input_nodes


def erase_unused(nodes: Sequence[fx.Node]) -> None:
    """Erase the nodes among ``nodes`` that have no users, from the last to the first; some may be erased already."""
    for node in reversed(nodes):
        if not node.users and not is_erased(node):
            node.graph.erase_node(node)
