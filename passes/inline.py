"""Inline: write out a node that calls a Python function of several operators, so that each of them can be rewritten."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.analysis.batch_sizes import shapes_of_batch
from fxprune.analysis.dependencies import Dependencies
from fxprune.errors import FxpruneError, ShrinkError
from fxprune.frontends.capture import capture_graph
from fxprune.functional import layers
from fxprune.graph.captured import compiled_later
from fxprune.graph.paths import value_at
from fxprune.passes.graph_pass import GraphPass
from fxprune.passes.lower import lower, stand_in
from fxprune.rules.labels import Label
from fxprune.torch_internals.switches import quiet
from fxprune.torch_internals.tensors import pytree


class _Call(nn.Module):
    """Makes the call of a node; a flag of the mode among its arguments is this module's mode."""

    def __init__(self, made: Callable[[Sequence[Tensor], bool], Any]) -> None:
        super().__init__()
        self.made = made

    def forward(self, *tensors: Tensor) -> Any:
        return self.made(tensors, self.training)


@dataclasses.dataclass(frozen=True)
class Inline(GraphPass):
    """Pass: write out the nodes ``names``. Ensures: no node of these names makes its old call.

    Raises:
        ShrinkError: a node cannot be written out; the graph must not be used any more.
    """

    deps: Dependencies
    names: Sequence[str]

    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Write the nodes out, in place."""
        shapes = None
        for batch in (3, 1):  # a graph may take no other batch size, or ask for values
            with contextlib.suppress(Exception):
                shapes = shapes_of_batch(gm, batch) if shapes is None else shapes
        known: dict[object, fx.GraphModule] = {}
        for name in self.names:
            if shapes is None or not self._inline(gm, name, shapes, known):
                raise ShrinkError(f"node {name!r} cannot be written out")
        return bool(self.names)

    def _inline(self, gm: fx.GraphModule, name: str, shapes: dict[str, Tensor], known: dict[object, fx.GraphModule]) -> bool:
        """Write out the node of a name; tell whether that could be done.

        ``shapes`` has a tensor like each node's value, of a batch size that differs from all other sizes. ``known`` has the
        graphs of the calls written out before; equal calls share a graph.
        """
        values = self.deps.values
        node = next((node for node in gm.graph.nodes if node.name == name), None)
        if node is None or node.op not in ("call_module", "call_function", "call_method"):
            return False
        if node.op == "call_module":
            return lower(gm, (), {name})
        reads = [read for read in node.all_input_nodes if isinstance(values[read.name], Label)]
        flags = [read for read in node.all_input_nodes if isinstance(values[read.name], bool)]
        if len(flags) > 1 or any(values[flag.name] is not gm.training for flag in flags):
            return False  # it is unknown which of several flags is the mode's
        with torch.inference_mode(False):
            examples = [torch.ones(shapes[read.name].shape, dtype=shapes[read.name].dtype) for read in reads]

        def made(tensors: Sequence[Tensor], training: bool) -> Any:
            given: dict[fx.Node, Any] = dict(zip(reads, tensors, strict=True)) | dict.fromkeys(flags, training)
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda read: given.get(read, values[read.name]))
            return node.target(*args, **kwargs) if callable(node.target) else getattr(args[0], node.target)(*args[1:], **kwargs)

        places = {read: (Label, i) for i, read in enumerate(reads)}  # which no plain argument is
        plain = fx.map_arg((node.args, node.kwargs), lambda read: places.get(read, values[read.name]))
        key = (node.op, node.target, str(plain), str([(tuple(t.shape), t.dtype) for t in examples]))
        if key not in known:
            try:
                with quiet(), compiled_later():
                    known[key] = capture_graph(_Call(made).train(gm.training), tuple(examples)).gm
            except FxpruneError:
                return False
        inner = known[key]
        inputs = dict(zip(inner.graph.find_nodes(op="placeholder"), reads, strict=True))
        if _fixes_batch(inner, {given: values[read.name].shape for given, read in inputs.items()}):
            return False
        _splice(gm, node, inner, inputs, flags)
        return True


def _fixes_batch(inner: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]]) -> bool:
    """Tell whether a graph takes inputs of no other batch size than that of its capture; ``shapes`` are of another."""
    checks = [node.args for node in inner.graph.find_nodes(op="call_function", target=layers.check_shape)]
    sizes: list[tuple[Any, int]] = [pair for given, shape, _ in checks for pair in zip(shape, shapes[given], strict=True)]
    return any(isinstance(size, int) and size not in (-1, now) for size, now in sizes)


def _splice(
    gm: fx.GraphModule, node: fx.Node, inner: fx.GraphModule, inputs: dict[fx.Node, fx.Node], flags: list[fx.Node]
) -> None:
    """Put the nodes of ``inner`` in a node's place."""
    checks = inner.graph.find_nodes(op="call_function", target=layers.check_shape)
    placed = inputs | dict.fromkeys(checks, node)  # not copied: shapes are about to change, and nothing reads a check
    if flags:
        placed |= dict.fromkeys(inner.graph.find_nodes(op="get_attr", target="training"), flags[0])
    with gm.graph.inserting_before(node):
        result: Any = gm.graph.graph_copy(inner.graph, placed)
    for old, new in placed.items():
        if old.op in ("get_attr", "call_module") and old.target != "training":
            new.target = _moved(gm, inner, str(old.target))
    leaves = pytree.tree_leaves(result)
    if len(leaves) == 1:
        stand_in(node, leaves[0])
        return
    for user in list(node.users):
        assert user.target is operator.getitem
        stand_in(user, result[user.args[1]])
    gm.graph.erase_node(node)


def _moved(gm: fx.GraphModule, inner: fx.GraphModule, target: str) -> str:
    """Give ``gm`` the module or tensor at ``inner.target`` under a free name, and return the name."""
    value = value_at(inner, target)
    base = "inlined_" + target.replace(".", "_")
    name = next(f"{base}_{k}" for k in itertools.count() if not hasattr(gm, f"{base}_{k}"))
    if isinstance(value, Tensor):
        gm.register_buffer(name, value)
    else:
        setattr(gm, name, value)
    return name
