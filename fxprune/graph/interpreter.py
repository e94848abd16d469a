"""Runs a graph node by node."""

from __future__ import annotations

import inspect
import operator
from typing import Any

from torch import fx
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree


def in_order(gm: fx.GraphModule, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Any]:
    """Return one value for each input node of the graph; ``inputs`` are positional and keyword inputs of its forward."""
    args, kwargs = inputs
    bound = inspect.signature(gm.forward).bind(*args, **kwargs)
    if not is_flattened(gm):
        bound.apply_defaults()
    values = [*bound.args, *bound.kwargs.values()]
    return pytree.tree_leaves(values) if is_flattened(gm) else values


def is_flattened(gm: fx.GraphModule) -> bool:
    """Tell whether the inputs of the graph are the leaves of those of its forward, as ``torch.export`` makes it."""
    return isinstance(gm.graph._codegen, _PyTreeCodeGen)


class NodeRunner(fx.Interpreter):
    """Runs a graph node by node, with less around each node than torch's own, which keeps notes for tracers inside."""

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return getattr(self, n.op)(n.target, args, kwargs)

    def fetch_attr(self, target: str) -> Any:
        """Return what the graph's module has under a dotted name."""
        if (module := self.submodules.get(target)) is not None:
            return module
        path, _, name = target.rpartition(".")
        try:
            if (owner := self.submodules.get(path)) is not None:
                return getattr(owner, name)
            return operator.attrgetter(target)(self.module)  # a module under its second name is not among them
        except AttributeError:
            return super().fetch_attr(target)  # which names the part that is missing
