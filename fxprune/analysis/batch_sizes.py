"""Finds the sizes in a graph that grow with the batch."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.abstract.fakes import Fakes
from fxprune.graph.interpreter import NodeRunner
from fxprune.torch_internals.operators import OpOverload, TorchDispatchMode
from fxprune.torch_internals.switches import alone
from fxprune.torch_internals.tensors import pytree


class _OnFakes(TorchDispatchMode):
    """Calls every operator on fake tensors."""

    def __init__(self, fakes: Fakes) -> None:
        super().__init__()
        self.fakes = fakes

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.fakes.call(func, args, kwargs or {})


@alone()
def shapes_of_batch(gm: fx.GraphModule, batch: int) -> dict[str, Any]:
    """Return the value of every node, with fake tensors, for inputs whose first dimension is ``batch`` times the example's."""
    fakes, found = Fakes(), dict[fx.Node, Any]()

    def larger(leaf: Any) -> Any:
        fake = fakes.like(leaf)
        if not isinstance(fake, Tensor):
            return fake
        return torch.empty([batch * n if d == 0 else n for d, n in enumerate(fake.shape)], dtype=fake.dtype)

    with torch.no_grad(), fakes.mode:
        inputs = [pytree.tree_map(larger, n.meta["val"]) for n in gm.graph.find_nodes(op="placeholder")]
        with _OnFakes(fakes):
            NodeRunner(gm, after=found.__setitem__).run(*inputs)
    return {node.name: value for node, value in found.items()}


class Batches:
    """Tells which sizes grow with the batch. The first question runs the graph, which has example values on its inputs."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm

    @cached_property
    def _shapes(self) -> list[dict[str, Any]]:
        try:
            return [shapes_of_batch(self._gm, batch) for batch in (1, 2)]
        except Exception:  # the model's own code, on a size that it does not take
            return []

    def grows(self, node: str, dim: int) -> bool:
        """Tell whether a dimension of a node's value is larger for twice the batch; no, if the graph takes one batch size."""
        sizes = [value.shape[dim] for shapes in self._shapes if isinstance(value := shapes.get(node), Tensor)]
        return len(set(sizes)) > 1
