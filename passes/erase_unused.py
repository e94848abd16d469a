"""Erase: take out unused nodes, and the buffers that only they read, such as replaced index tables."""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import fx

from fxprune.graph.paths import split
from fxprune.graph.side_effects import may_write
from fxprune.passes.graph_pass import GraphPass


@dataclasses.dataclass(frozen=True)
class EraseUnused(GraphPass):
    """Pass: erase the nodes without users or effects, and of the buffers ``read`` the ones that no node reads any more.

    Ensures: every node is used or has an effect.
    """

    read: frozenset[str] = frozenset()

    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Erase, in place."""
        unused = gm.graph.eliminate_dead_code(partial(_stays, gm))
        for name in self.read - reads(gm):
            owner, last = split(name)
            module = gm.get_submodule(owner)
            if last in module._buffers:
                delattr(module, last)
                unused = True
        return unused

    def ensures(self, gm: fx.GraphModule) -> None:
        """Raise AssertionError if a node is of no use."""
        for node in gm.graph.nodes:
            assert _stays(gm, node), f"node {node.name!r} is of no use"


def reads(gm: fx.GraphModule) -> frozenset[str]:
    """Return the targets that the graph reads by get_attr."""
    return frozenset(str(node.target) for node in gm.graph.find_nodes(op="get_attr", sort=False))


def _stays(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node's value is used, or it has an effect without, as ``x.relu_()`` on a line of its own."""
    return bool(node.users) or node.is_impure() or may_write(node, gm)
