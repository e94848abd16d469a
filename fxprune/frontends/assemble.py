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
    called = {id(model.get_submodule(target)) for target in {str(n.target) for n in graph.find_nodes(op="call_module")}}
    wanted: dict[int, bool] = {}
    _is_wanted(model, called, wanted)
    _copy_tree(model, gm, called, wanted, {})
    for node in graph.find_nodes(op="get_attr"):
        _provide(gm, model, str(node.target), constants)
    with compiled_later():
        gm.graph = graph
    return gm


def _copy_tree(
    source: nn.Module, target: nn.Module, called: set[int], wanted: dict[int, bool], done: dict[int, nn.Module]
) -> None:
    """Fill ``target`` with the tensors of ``source`` and its submodules; a module met twice stays one."""
    for name, parameter in source._parameters.items():
        target.register_parameter(name, parameter)
    for name, buffer in source._buffers.items():
        target.register_buffer(name, buffer, persistent=name not in source._non_persistent_buffers_set)
    for name, child in source._modules.items():
        if child is None or not wanted[id(child)]:
            continue
        if id(child) not in done:
            if id(child) in called:
                done[id(child)] = clone(child)
            else:
                done[id(child)] = container = Container()
                container.training = child.training
                _copy_tree(child, container, called, wanted, done)
        target.add_module(name, done[id(child)])


def _is_wanted(module: nn.Module, called: set[int], known: dict[int, bool]) -> bool:
    """Tell whether a module is called or holds tensors, or has one inside that does; all of them are ``known`` afterwards."""
    if id(module) not in known:
        inside = [_is_wanted(child, called, known) for child in module._modules.values() if child is not None]
        known[id(module)] = id(module) in called or bool(module._parameters or module._buffers) or any(inside)
    return known[id(module)]


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
