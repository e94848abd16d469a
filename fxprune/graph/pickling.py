"""Graphs in a form that pickles: their nodes as plain values, with operators and functions by name."""

from __future__ import annotations

import dataclasses
import importlib
import operator
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node, map_aggregate

from fxprune.graph.metadata import DESCRIBED, NODE_KEYS
from fxprune.torch_internals.operators import HigherOrderOperator, OpOverload, OpOverloadPacket
from fxprune.torch_internals.tensors import hint, pytree

_PICKLED = {key.name for key in NODE_KEYS if key.pickled}

# By module of version 0.1.0, which pickled graphs and plans name, the modules that hold its contents now.
_MOVED = {
    "fxprune.dumps": ["fxprune.graph.pickling"],
    "fxprune.kept_statistics": ["fxprune.functional.over_kept"],
    "fxprune.modules": ["fxprune.graph.parts", "fxprune.graph.captured"],
    "fxprune.planned": ["fxprune.planning.plan"],
}


class _Moved(types.ModuleType):
    """Stands for a module of version 0.1.0, in which ``pickle`` looks classes and functions up."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        for module in map(importlib.import_module, _MOVED[self.__name__]):
            if name in vars(module):
                return vars(module)[name]
        raise AttributeError(f"{self.__name__}, which was moved to {_MOVED[self.__name__]}, holds no {name!r}")


def take_moved_names() -> None:
    """Let graphs and plans load that version 0.1.0 pickled, under the module names of that version."""
    for name in _MOVED:
        sys.modules.setdefault(name, _Moved(name))


class _Reference(int):
    """The index of a node in a dumped graph."""


@dataclasses.dataclass(frozen=True)
class Description:
    """A tensor without its values."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(tensor: Tensor) -> Description:
        """Describe a tensor in ordinary memory."""
        sizes, strides = ([int(hint(n)) for n in numbers] for numbers in (tensor.shape, tensor.stride()))
        return Description(tuple(sizes), tuple(strides), tensor.dtype, tensor.device)


def _described(leaf: Any) -> Any:
    return Description.of(leaf) if isinstance(leaf, Tensor) and leaf.layout is torch.strided else hint(leaf)


class Operator:
    """Pickles an operator of the dispatcher by its name; the operator itself does not pickle."""

    def __init__(self, op: OpOverload | OpOverloadPacket | HigherOrderOperator) -> None:
        higher_order = isinstance(op, HigherOrderOperator)
        self.path = f"higher_order.{op.name()}" if higher_order else str(op)

    def find(self) -> Any:
        """Return the operator."""
        return operator.attrgetter(self.path)(torch.ops)


class Function:
    """Pickles a function by its name in its module, where ``__qualname__`` is another, as that of ``F.max_pool2d`` is."""

    def __init__(self, function: Any) -> None:
        self.module, self.name = function.__module__, function.__name__

    def find(self) -> Any:
        """Return the function."""
        return getattr(importlib.import_module(self.module), self.name)


def picklable(target: Any) -> Any:
    """Return the target of a node, as an :class:`Operator` or :class:`Function` if it does not pickle itself."""
    if isinstance(target, OpOverload | OpOverloadPacket | HigherOrderOperator):
        return Operator(target)
    if "<locals>" in getattr(target, "__qualname__", ""):
        module = sys.modules.get(getattr(target, "__module__", None) or "")
        if getattr(module, target.__name__, None) is target:
            return Function(target)
    return target


def found(target: Any) -> Any:
    """Return the target that :func:`picklable` was called with."""
    return target.find() if isinstance(target, Operator | Function) else target


def dump(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """Return the nodes of a graph as values that pickle."""
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
            {key: value for key, value in node.meta.items() if key in _PICKLED} | _example(node),
        )
        for node in graph.nodes
    ]


def _example(node: Node) -> dict[str, Any]:
    """Return the example value of an input as values that pickle."""
    if node.op != "placeholder" or "val" not in node.meta:
        return {}
    found = pytree.tree_map(_described, node.meta["val"])
    plain = all(isinstance(leaf, Description | int | float | complex | str | None) for leaf in pytree.tree_leaves(found))
    return {DESCRIBED.name: found} if plain else {}


def load(dumped: list[tuple[Any, ...]], codegen: Any) -> fx.Graph:
    """Return the graph that :func:`dump` was called with."""
    graph, nodes = fx.Graph(), list[Node]()

    def to_node(value: Any) -> Any:
        return nodes[value] if isinstance(value, _Reference) else value

    for op, target, args, kwargs, name, type_expr, meta in dumped:
        target = found(target)
        node = graph.create_node(op, target, map_aggregate(args, to_node), map_aggregate(kwargs, to_node), name, type_expr)
        # The namespace changes a name that shadows a builtin; the dumped name is legal.
        node.name = name
        node.meta.update(meta)
        nodes.append(node)
    graph.set_codegen(codegen)
    return graph
