"""Which nodes of a graph may change a tensor that they did not make."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from fxprune.graph.paths import value_at
from fxprune.torch_internals.operators import HigherOrderOperator, OpOverload, is_mutable


def may_write(node: fx.Node, root: nn.Module) -> bool:
    """Tell whether ``node`` may change an argument or a buffer of the module that it calls; when in doubt, yes.

    ``root`` is the module that the node's target lives in.
    """
    if node.op == "call_method":
        name = str(node.target)
        return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return bool(vars(module).get("inplace")) or any(True for _ in module.buffers()) or renormalises(module)
    if node.op != "call_function" or not callable(node.target):
        return False
    if isinstance(node.target, HigherOrderOperator):
        bodies = [body_of(root, n) for n in node.all_input_nodes if n.op == "get_attr"]
        found = [body for body in bodies if body is not None]
        return not found or any(may_write(inner, body) for body in found for inner in body.graph.nodes)
    return _function_may_write(node.target, node)


def body_of(root: nn.Module, node: fx.Node) -> fx.GraphModule | None:
    """Return the graph that ``node`` reads, such as the body of a ``no_grad`` region; None if it reads no graph."""
    value = value_at(root, str(node.target))
    return value if isinstance(value, fx.GraphModule) else None


def _function_may_write(function: Callable[..., Any], node: fx.Node) -> bool:
    if isinstance(function, OpOverload):
        return is_mutable(function)
    module, name = getattr(function, "__module__", "") or "", getattr(function, "__name__", "")
    if function is getattr or module in ("math", "builtins"):
        return function is setattr
    if module == operator.mul.__module__:
        return name in ("setitem", "delitem") or (name.startswith("i") and name[1:].strip("_") in vars(operator))
    if "out" in node.kwargs or name.endswith("_") or node.kwargs.get("inplace") is True:
        return True
    if _flag_by_position(function, node):
        return True
    # The functions of torch and fxprune change no other argument; of any other function nothing is known.
    return not (module.startswith(("torch", "_operator", "fxprune.")) or type(function).__name__.startswith("builtin"))


def _flag_by_position(function: Callable[..., Any], node: fx.Node) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False
    return "inplace" in parameters and True in node.args[parameters.index("inplace") : parameters.index("inplace") + 1]


def renormalises(module: nn.Module) -> bool:
    """Tell whether ``module`` rescales its own weight when it is called."""
    return isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None


def writes_to_parameters(model: nn.Module) -> bool:
    """Tell whether running a model, a graph or any other, may change a parameter in place."""
    if not isinstance(model, fx.GraphModule):
        return any(map(renormalises, model.modules()))
    parameters = set(dict(model.named_parameters(remove_duplicate=False)))
    called = {str(node.target) for node in model.graph.find_nodes(op="call_module")}
    inside = any(writes_to_parameters(model.get_submodule(path)) for path in called)
    return inside or writer_of(parameters, model.graph, model) is not None


def writer_of(names: set[str], graph: fx.Graph, root: nn.Module) -> fx.Node | None:
    """Return a node, other than a call of a module, that may write to one of these tensors of ``root``; None without one."""
    writing = (node for node in graph.nodes if node.op != "call_module" and may_write(node, root))
    return next((node for node in writing if any(_starts_from(n, names) for n in node.all_input_nodes)), None)


def _starts_from(node: fx.Node, parameters: set[str]) -> bool:
    """Follow first arguments, by which views and ``.data`` lead back to the tensor whose memory they share."""
    while node.op in ("call_function", "call_method") and node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.op == "get_attr" and node.target in parameters
