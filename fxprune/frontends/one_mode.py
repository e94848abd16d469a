"""What a graph does in one of the modes, as a list of calls: two graphs with the same list do the same there."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxprune import functional
from fxprune.modules import ByMode
from fxprune.state import value_at
from fxprune.tree import all_modules

# A counter moves on by a plain number.
ADDITIONS = frozenset({"add_", operator.iadd, torch.ops.aten.add_.Tensor, torch.ops.aten.add_.Scalar})
_CHOICES = (functional.invert, functional.select_int, functional.select_float)


class _Value(str):
    """What a node gives, by the call that makes it or the name that it is read under."""

    __slots__ = ()


class _Size(_Value):
    """A number, or several, that depends on shapes only: computing it does nothing."""

    __slots__ = ()


Calls = list[tuple[Any, ...]]


def calls_in_mode(gm: fx.GraphModule, training: bool) -> Calls:
    """List what a graph calls, in order, when all its modules are in train mode, or all in eval mode."""
    listing = _Listing(gm, training)
    listing.calls.append(("output", listing.follow(gm)))
    return listing.calls


def same_calls(ours: Any, theirs: Any) -> bool:
    """Tell whether two lists of calls are the same, with the types of all that is in them."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, tuple | list):
        return len(ours) == len(theirs) and all(map(same_calls, ours, theirs))
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(map(same_calls, ours.values(), theirs.values()))
    return bool(ours == theirs)


class _Listing:
    def __init__(self, gm: fx.GraphModule, training: bool) -> None:
        self.gm, self.training = gm, training
        self.calls: Calls = []

    def follow(self, gm: fx.GraphModule, inputs: Sequence[Any] | None = None) -> Any:
        """List the calls of a graph, this one or one inside, and return what it gives."""
        values: dict[fx.Node, Any] = {}
        given = iter(inputs or ())
        by_mode = {name: module for name, module in all_modules(gm) if isinstance(module, ByMode)}
        for node in gm.graph.nodes:
            if node.op == "placeholder":
                values[node] = _Value(node.target) if inputs is None else next(given)
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "output":
                return args[0]
            if node.op == "get_attr":
                values[node] = self._read(gm, str(node.target))
            elif node.op == "call_module" and node.target in by_mode:
                module = by_mode[node.target]
                values[node] = self.follow(module.in_train if self.training else module.in_eval, args)
            else:
                values[node] = self._call(node, args, kwargs)
        return None

    def _read(self, gm: fx.GraphModule, target: str) -> Any:
        if target.rpartition(".")[2] == "training":
            return self.training
        return _Value(f"self.{target}" if gm is self.gm else f"{id(gm)}.{target}")

    def _call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        target = node.target
        if target in _CHOICES and type(args[0]) is bool:
            return target(*args)
        if target is operator.getitem and isinstance(args[0], list):
            return args[0][args[1]]
        if _is_size(node, args):
            return _Size(f"{target}{args}{kwargs}")
        if target is functional.add_if_ and type(args[2]) is bool:
            if args[2]:
                self.calls.append(("add", *args[:2]))
            return None
        if target in ADDITIONS and len(args) == 2 and not kwargs and self._is_tensor_of_graph(node.args[0]):
            self.calls.append(("add", *args))
            return args[0]  # which was written to in place
        self.calls.append((node.op, target, args, kwargs))
        return _Value(f"%{len(self.calls)}")

    def _is_tensor_of_graph(self, node: Any) -> bool:
        read = isinstance(node, fx.Node) and node.op == "get_attr" and node.graph is self.gm.graph
        return read and isinstance(value_at(self.gm, str(node.target)), torch.Tensor)


def _is_size(node: fx.Node, args: Any) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim")
    if node.target is getattr:
        return args[1] in ("ndim", "shape")
    if getattr(node.target, "__module__", None) != operator.mul.__module__:
        return node.target is torch.ops.aten.sym_size.int
    return any(isinstance(a, _Size) for a in args) and all(isinstance(a, _Size | int) for a in args)
