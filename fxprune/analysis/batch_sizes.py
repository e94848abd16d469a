"""Which sizes in a graph are those of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.abstract.fakes import Fakes
from fxprune.graph.interpreter import NodeRunner
from fxprune.torch_internals.operators import OpOverload, TorchDispatchMode
from fxprune.torch_internals.switches import alone
from fxprune.torch_internals.tensors import pytree


class _Standing(TorchDispatchMode):
    """Gives fake tensors for what operators make of tensors."""

    def __init__(self, fakes: Fakes) -> None:
        super().__init__()
        self.fakes = fakes

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.fakes.call(func, args, kwargs or {})


@alone()
def shapes_of_batch(gm: fx.GraphModule, batch: int) -> dict[str, Any]:
    """Return what every node gives, as fake tensors, for inputs whose first dimension is ``batch`` times the example's."""
    fakes, found = Fakes(), dict[fx.Node, Any]()

    def larger(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return getattr(getattr(leaf, "node", None), "hint", leaf)
        shape = [int(getattr(getattr(n, "node", None), "hint", n)) for n in leaf.shape]
        return torch.empty([batch * n if d == 0 else n for d, n in enumerate(shape)], dtype=leaf.dtype)

    with torch.no_grad(), fakes.mode:
        inputs = [pytree.tree_map(larger, n.meta["val"]) for n in gm.graph.find_nodes(op="placeholder")]
        with _Standing(fakes):
            NodeRunner(gm, after=found.__setitem__).run(*inputs)
    return {node.name: value for node, value in found.items()}


class Batches:
    """Tells which sizes of a graph's values grow with the batch; runs the graph, on fake tensors, when it is first asked.

    Args:
        gm: the graph, with example values on its inputs.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._shapes: list[dict[str, Any]] | None = None

    def grows(self, node: str, dim: int) -> bool:
        """Tell whether a dimension of what a node gives is larger for twice the batch; no, for a graph that takes no other."""
        if self._shapes is None:
            try:
                self._shapes = [shapes_of_batch(self._gm, batch) for batch in (1, 2)]
            except Exception:  # the model's own code, on a size that it does not take
                self._shapes = []
        sizes = [value.shape[dim] for shapes in self._shapes if isinstance(value := shapes.get(node), Tensor)]
        return len(set(sizes)) > 1
