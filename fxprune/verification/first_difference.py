"""Finds the first node whose value differs in two graphs that should compute the same."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from fxprune.errors import FxpruneError, in_short
from fxprune.graph.interpreter import NodeByNode, NodeRunner, in_order
from fxprune.graph.metadata import KEPT_OF_VALUE
from fxprune.torch_internals.tensors import pytree
from fxprune.verification.differences import node_error
from fxprune.verification.inputs import Inputs
from fxprune.verification.subject import Subject


def first_difference(
    reference: nn.Module, candidate: nn.Module, inputs: Inputs, *, training: bool, double: bool, tolerance: float
) -> str:
    """Return a sentence on the first node of the candidate that fails, or whose relative error is above the tolerance.

    Nodes correspond by name. Nodes without counterpart, and nodes whose values cannot be compared, are passed over. The
    sentence is empty if a model is not a graph, or takes other inputs.
    """
    if not isinstance(reference, fx.GraphModule) or not isinstance(candidate, fx.GraphModule):
        return ""
    try:
        theirs, ours = (Inputs(tuple(in_order(gm, inputs)), {}) for gm in (reference, candidate))
    except TypeError:  # one of the graphs takes other inputs
        return ""
    wanted, values = {node.name for node in candidate.graph.nodes}, dict[str, Any]()

    def record(node: fx.Node, value: Any) -> None:
        if node.name in wanted:
            values[node.name] = pytree.tree_map_only(Tensor, Tensor.clone, value)

    Subject(NodeByNode(NodeRunner(reference, after=record)), double=double).run(theirs, training=training)
    forms, compared = dict[fx.Node, Any](), 0

    def compare(node: fx.Node, value: Any) -> None:
        nonlocal compared
        forms[node] = shapes(value)
        expected = values.pop(node.name, None)
        error = node_error(expected, value, KEPT_OF_VALUE.get(node))
        if error is None:
            return
        compared += 1
        if error > tolerance:
            raise _DifferenceError(
                f"{name_node(node)}: relative error {error:.1e}, shape {shapes(expected)} in the reference and "
                f"{forms[node]} in the candidate"
            )

    runner = NodeRunner(candidate, after=compare)
    try:
        Subject(NodeByNode(runner), double=double).run(ours, training=training)
    except _DifferenceError as found:
        return f"the first node that differs is {found}"
    except Exception as error:  # operators raise any type on operands that do not fit
        if (node := runner.at) is None:
            raise
        operands = [forms.get(n) for n in node.all_input_nodes]
        return f"it fails at node {name_node(node)} on {operands}: {in_short(error)}"
    return f"none of the {compared} nodes that could be compared differs by that much"


class _DifferenceError(FxpruneError):
    """Ends the run of the candidate at the node that differs."""


def name_node(node: fx.Node) -> str:
    """Return name and target of a node for messages."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{node.name!r} ({node.op} {target})"


def shapes(value: Any) -> Any:
    """Return ``value`` with the shape of each tensor in its place."""
    return pytree.tree_map(lambda leaf: tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf, value)
