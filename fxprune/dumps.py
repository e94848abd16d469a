"""Graphs in a form that pickles: their nodes as plain values, with operators and functions by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx.node import Node

_KEPT_META = (
    "stack_trace", "is_wrapped", "fxprune_module", "fxprune_call", "fxprune_path", "fxprune_moved", "fxprune_original",
)  # fmt: skip


class _Reference(int):
    """The index of a node in a dumped graph."""


class Operator:
    """Pickles an operator of the dispatcher, which itself does not pickle, by its name."""

    def __init__(self, operator: OpOverload | OpOverloadPacket | HigherOrderOperator) -> None:
        higher_order = isinstance(operator, HigherOrderOperator)
        self.path = f"higher_order.{operator.name()}" if higher_order else str(operator)

    def find(self) -> Any:
        """Return the operator."""
        found: Any = torch.ops
        for part in self.path.split("."):
            found = getattr(found, part)
        return found


class Function:
    """Pickles a function by the name that its module knows it under, where it says another itself, as ``F.max_pool2d`` does."""

    def __init__(self, function: Any) -> None:
        self.module, self.name = function.__module__, function.__name__

    def find(self) -> Any:
        """Return the function."""
        return getattr(importlib.import_module(self.module), self.name)


def picklable(target: Any) -> Any:
    """Return the target of a node in a form that pickles; it has ``find`` then if it is another."""
    if isinstance(target, OpOverload | OpOverloadPacket | HigherOrderOperator):
        return Operator(target)
    if "<locals>" in getattr(target, "__qualname__", ""):
        module = sys.modules.get(getattr(target, "__module__", None) or "")
        if getattr(module, target.__name__, None) is target:
            return Function(target)
    return target


def found(target: Any) -> Any:
    """Return the target of a node that :func:`picklable` was given."""
    return target.find() if isinstance(target, Operator | Function) else target


def dump(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """Return the nodes of a graph in a form that pickles."""
    index = {node: _Reference(i) for i, node in enumerate(graph.nodes)}
    # map_arg accepts any result, but its annotation knows only graph arguments.
    to_index: Callable[[Node], Any] = index.__getitem__
    return [
        (
            node.op,
            picklable(node.target),
            fx.map_arg(node.args, to_index),
            fx.map_arg(node.kwargs, to_index),
            node.name,
            node.type,
            {k: node.meta[k] for k in _KEPT_META if k in node.meta},
        )
        for node in graph.nodes
    ]


def load(dumped: list[tuple[Any, ...]], codegen: Any) -> fx.Graph:
    """Return the graph that :func:`dump` was given."""
    graph, nodes = fx.Graph(), list[Node]()

    def to_node(value: Any) -> Any:
        return nodes[value] if isinstance(value, _Reference) else value

    for op, target, args, kwargs, name, type_expr, meta in dumped:
        target = found(target)
        node = graph.create_node(op, target, map_aggregate(args, to_node), map_aggregate(kwargs, to_node), name, type_expr)
        # The namespace may have changed a name that shadows a builtin; the dumped one was legal.
        node.name = name
        node.meta.update(meta)
        nodes.append(node)
    graph.set_codegen(codegen)
    return graph


def map_aggregate(value: Any, fn: Callable[[Any], Any]) -> Any:
    """Map over the aggregates that torch.fx allows in arguments (pytree would not enter a slice)."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_aggregate(v, fn) for v in value))
    if isinstance(value, tuple | list):
        return type(value)(map_aggregate(v, fn) for v in value)
    if isinstance(value, dict):
        return type(value)((k, map_aggregate(v, fn)) for k, v in value.items())
    if isinstance(value, slice):
        return slice(map_aggregate(value.start, fn), map_aggregate(value.stop, fn), map_aggregate(value.step, fn))
    return fn(value)
