"""Puts a captured graph on a module tree of its own, with the model's tensors under the model's names."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, fx, nn

from fxprune.errors import CaptureError
from fxprune.graph.captured import CapturedModule, compiled_later
from fxprune.graph.parts import Container, StatefulContainer, clone, has_extra_state
from fxprune.graph.paths import join, split, value_at


def assemble(model: nn.Module, graph: fx.Graph, constants: dict[str, Any]) -> CapturedModule:
    """Return a GraphModule of ``graph`` that shares the tensors of ``model`` but none of its modules.

    Every parameter and buffer of the model is there under each of its names, whether the graph reads it or not, so the
    state_dict keeps its keys. Modules that the graph calls are cloned; the others become containers. ``constants`` are the
    values that the graph reads and the model does not hold, by the targets of their get_attr nodes.
    """
    with compiled_later():
        gm = CapturedModule(nn.Module(), fx.Graph(), type(model).__name__)
    registered = [*model._parameters, *model._buffers, *model._modules]
    if taken := [name for name in registered if hasattr(CapturedModule, name)]:
        raise CaptureError(
            f"the model has an attribute called {taken[0]!r}, a name that torch.fx.GraphModule has for itself; give it another"
        )
    gm.training = model.training
    by_path = dict(model.named_modules(remove_duplicate=False))
    called = {by_path[str(node.target)] for node in graph.find_nodes(op="call_module")}
    _copy_tree(model, gm, called, {})
    for node in graph.find_nodes(op="get_attr"):
        _provide(gm, model, str(node.target), constants)
    with compiled_later():
        gm.graph = graph
    return gm


def _copy_tree(source: nn.Module, target: nn.Module, called: set[nn.Module], done: dict[nn.Module, nn.Module]) -> None:
    """Fill ``target`` with the tensors of ``source`` and with copies of its submodules that hold tensors or are called.

    A module with two names is copied once.
    """
    for name, parameter in source._parameters.items():
        target.register_parameter(name, parameter)
    for name, buffer in source._buffers.items():
        target.register_buffer(name, buffer, persistent=name not in source._non_persistent_buffers_set)
    for name, child in source._modules.items():
        if child is None:
            continue
        if child not in done:
            if child in called:
                done[child] = clone(child)
            else:
                extra = copy.deepcopy(child.get_extra_state()) if has_extra_state(child) else None
                done[child] = container = StatefulContainer(extra) if has_extra_state(child) else Container()
                container.training = child.training
                _copy_tree(child, container, called, done)
        copied = done[child]
        if not (child in called or copied._parameters or copied._buffers or copied._modules or has_extra_state(child)):
            continue
        if isinstance(target, Container):
            target._modules[name] = copied
        else:  # a graph module: refuses names that are attributes of its class
            target.add_module(name, copied)


def ensure_module(gm: fx.GraphModule, model: nn.Module, path: str) -> nn.Module:
    """Return the module of ``gm`` at ``path``; a missing one is made, in the mode of the model's module at that path."""
    module: nn.Module = gm
    reached = ""
    for name in path.split(".") if path else ():
        reached = join(reached, name)
        if (child := module._modules.get(name)) is None:
            child, original = Container(), value_at(model, reached)
            child.training = original.training if isinstance(original, nn.Module) else model.training
            module.add_module(name, child)
        module = child
    return module


def _provide(gm: fx.GraphModule, model: nn.Module, target: str, constants: dict[str, Any]) -> None:
    """Register the value of a get_attr node on ``gm``, unless it is there."""
    path, name = split(target)
    owner = ensure_module(gm, model, path)
    if hasattr(owner, name):
        return
    value = constants[target] if target in constants else value_at(model, target)
    if isinstance(value, nn.Module):
        owner.add_module(name, value)
    elif isinstance(value, Tensor):
        # A buffer moves to other devices with the graph; a non-persistent one stays out of the state_dict, as in the model.
        owner.register_buffer(name, value.detach(), persistent=False)
    else:
        setattr(owner, name, value)
