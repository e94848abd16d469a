"""The values of nodes on the example inputs, for an analysis that cannot compute them on fake tensors."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.abstract.fakes import Fakes, has_hints
from fxprune.graph.interpreter import NodeByNode, NodeRunner, in_order
from fxprune.graph.metadata import EXAMPLE
from fxprune.torch_internals.operators import OpOverload, TorchDispatchMode, no_modes
from fxprune.torch_internals.tensors import hint, pytree


class Examples:
    """Finds the value of a node on the example inputs: as captured or, where its sizes depend on values, by a run of the graph.

    The graph runs once, if at all, with its real weights. It does not change.
    """

    def __init__(self, gm: fx.GraphModule, fakes: Fakes) -> None:
        self._gm, self._fakes = gm, fakes

    def of(self, name: str, node: fx.Node) -> Any:
        """Return the value of the node called ``name`` with fake tensors; raise KeyError if it cannot be known."""
        if "val" in node.meta and all(map(_is_known, pytree.tree_leaves(node.meta["val"]))):
            return pytree.tree_map(self._fakes.like, node.meta["val"])
        return self._computed[name][0]

    def of_call(self, name: str, node: fx.Node, func: OpOverload, place: int) -> Any:
        """Return what the operator ``func`` gives when a node calls it for the ``place``-th time, counted from 0; likewise."""
        if node.target is func and "val" in node.meta and _is_known(node.meta["val"]):
            return self._fakes.like(node.meta["val"])
        values = [value for called, value in self._computed[name][1] if called is func]
        if place >= len(values):
            raise KeyError(name)
        return values[place]

    @cached_property
    def _computed(self) -> dict[str, tuple[Any, list[tuple[OpOverload, Any]]]]:
        """The value of each node by name, and what the operators that it calls give whose sizes depend on values."""
        gm, found = self._gm, dict[str, tuple[Any, list[tuple[OpOverload, Any]]]]()
        calls = _Calls(self._fakes)
        tensors = (*gm.parameters(), *gm.buffers())
        example = EXAMPLE.get(gm)
        if example is None or any(tensor.is_meta for tensor in tensors):
            return found

        def note(node: fx.Node, value: Any) -> None:
            found[node.name] = pytree.tree_map(self._fakes.like, value), calls.taken()

        devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
        with no_modes(), torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
            inputs = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, example)
            buffers = {f"gm.{name}": buffer.clone() for name, buffer in gm.named_buffers()}
            try:
                with calls:
                    torch.func.functional_call(NodeByNode(NodeRunner(gm, after=note)), buffers, tuple(in_order(gm, inputs)))
            except Exception:  # the user's own code; what ran before is known
                return found
        return found


class _Calls(TorchDispatchMode):
    """Notes what operators give whose sizes depend on values."""

    def __init__(self, fakes: Fakes) -> None:
        super().__init__()
        self._fakes = fakes
        self._made: list[tuple[OpOverload, Any]] = []

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if is_dynamic(func):
            self._made.append((func, pytree.tree_map(self._fakes.like, result)))
        return result

    def taken(self) -> list[tuple[OpOverload, Any]]:
        """Return what was noted since the last time."""
        made, self._made = self._made, []
        return made


def is_dynamic(func: OpOverload) -> bool:
    """Tell whether the sizes of an operator's results may depend on values: those of other libraries need not say so."""
    return torch.Tag.dynamic_output_shape in func.tags or func.namespace != "aten"


def _is_known(leaf: Any) -> bool:
    return has_hints(leaf) if isinstance(leaf, Tensor) else leaf is None or hint(leaf) is not None
