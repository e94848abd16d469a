"""Puts a captured graph on a module tree of its own, with the model's tensors under the model's names."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from fxprune.modules import CapturedModule, Container, clone, compiled_later
from fxprune.state import ensure_container, split, value_at


def assemble(model: nn.Module, graph: fx.Graph, constants: dict[str, Any]) -> CapturedModule:
    """Return a GraphModule of ``graph`` that shares the tensors of ``model`` but none of its modules.

    Every parameter and buffer of the model is there under each of its names, whether the graph reads it or not, so the
    state_dict keeps its keys. Modules that the graph calls are cloned; the others become containers.

    Args:
        model: the model; left as it was.
        graph: the graph; becomes the result's own.
        constants: what else the graph reads, by the name it reads it under.
    """
    with compiled_later():
        gm = CapturedModule(nn.Module(), fx.Graph(), type(model).__name__)
    gm.training = model.training
    called = {id(model.get_submodule(str(node.target))) for node in graph.find_nodes(op="call_module")}
    _copy_tree(model, gm, called, {})
    for node in graph.find_nodes(op="get_attr"):
        _provide(gm, model, str(node.target), constants)
    gm.graph = graph
    return gm


def _copy_tree(source: nn.Module, target: nn.Module, called: set[int], done: dict[int, nn.Module]) -> None:
    """Fill ``target`` with the tensors of ``source`` and its submodules; a module met twice stays one."""
    for name, parameter in source._parameters.items():
        target.register_parameter(name, parameter)
    for name, buffer in source._buffers.items():
        target.register_buffer(name, buffer, persistent=name not in source._non_persistent_buffers_set)
    for name, child in source._modules.items():
        if child is None or not (_holds_state(child) or _calls(child, called)):
            continue
        if id(child) not in done:
            if id(child) in called:
                done[id(child)] = clone(child)
            else:
                done[id(child)] = container = Container()
                container.training = child.training
                _copy_tree(child, container, called, done)
        target.add_module(name, done[id(child)])


def _holds_state(module: nn.Module) -> bool:
    return any(m._parameters or m._buffers for m in module.modules())


def _calls(module: nn.Module, called: set[int]) -> bool:
    return any(id(m) in called for m in module.modules())


def ensure_module(gm: fx.GraphModule, model: nn.Module, path: str) -> nn.Module:
    """Return the module of ``gm`` at ``path``, making it with the mode of the model's module there if it is missing."""
    for end in [i for i, c in enumerate(path) if c == "."] + [len(path)]:
        part = path[:end]
        try:
            gm.get_submodule(part)
        except AttributeError:
            ensure_container(gm, part).training = _mode(model, part)
    return gm.get_submodule(path)


def _mode(model: nn.Module, path: str) -> bool:
    try:
        return model.get_submodule(path).training
    except AttributeError:
        return model.training


def _provide(gm: fx.GraphModule, model: nn.Module, target: str, constants: dict[str, Any]) -> None:
    """Make sure that ``target`` can be read from ``gm``."""
    path, name = split(target)
    owner = ensure_module(gm, model, path)
    if hasattr(owner, name):
        return
    value = constants[target] if target in constants else value_at(model, target)
    if isinstance(value, nn.Module):
        owner.add_module(name, value)
    elif isinstance(value, Tensor):
        # Moves with the graph, and stays out of the state_dict as in the model.
        owner.register_buffer(name, value.detach(), persistent=False)
    else:
        setattr(owner, name, value)
