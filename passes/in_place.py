"""In place: let sums and products overwrite their first operand again where the model's code wrote ``x += y``.

A captured graph has ``x + y`` there: analysis, masks and corrections are simpler without writes. In the network that is
shipped the difference is a copy of every residual sum, which is a few percent of the time of a small network.
"""

from __future__ import annotations

import dataclasses
import operator

from torch import fx

from fxprune.graph.metadata import IN_PLACE
from fxprune.passes.graph_pass import GraphPass

_IN_PLACE = {
    operator.add: operator.iadd,
    operator.sub: operator.isub,
    operator.mul: operator.imul,
    operator.truediv: operator.itruediv,
}


@dataclasses.dataclass(frozen=True)
class WriteInPlace(GraphPass):
    """Pass: let the nodes of ``x += y`` write into x where nothing else can read it.

    That is certain where x is the result of a layer with parameters, whose memory is new at each call, and has no other use.
    A view, such as a reshape's result, would not do: with other sizes it may share memory where it did not before.
    """

    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Rewrite the nodes, in place."""
        found = [node for node in gm.graph.nodes if IN_PLACE.get(node) and _is_ours(gm, node)]
        for node in found:
            node.target = _IN_PLACE[node.target]
        return bool(found)


def _is_ours(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether the node's first operand is a layer's new result that only this node reads."""
    if node.op != "call_function" or node.target not in _IN_PLACE:
        return False
    first, second = node.args
    if not isinstance(first, fx.Node) or first.op != "call_module" or len(first.users) > 1 or first is second:
        return False
    layer = gm.get_submodule(str(first.target))
    return not list(layer.children()) and bool(layer._parameters)
