"""The plain numbers of a graph - sizes, products of sizes, scales - before and after its axes shrank."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.algebra.axes import Axis
from fxprune.analysis.remaining import Remaining
from fxprune.rules.labels import Label
from fxprune.torch_internals.tensors import pytree


class Numbers:
    """Follows the plain values of a graph, node by node.

    Args:
        graph: the graph.
        values: the value of every node by name as it was analysed, a label in place of each tensor.
        kept: the positions that are left.
        inside: the prefix of the graph's names in ``values``.
    """

    def __init__(self, graph: fx.Graph, values: dict[str, Any], kept: Remaining, inside: str = "") -> None:
        self.graph, self.kept = graph, kept
        self._values, self._inside = values, inside
        self._now: dict[fx.Node, Any] = {}
        self.changed: set[fx.Node] = set()  # the nodes whose plain value has changed
        self._fixed: dict[fx.Node, Any] = {}
        self._originals: dict[fx.Node, fx.Node] = {}

    def before(self, argument: Any) -> Any:
        """Return the value of an argument before, a label in place of each tensor."""
        return fx.map_arg(argument, lambda node: self._values.get(self._inside + node.name))

    def now(self, argument: Any) -> Any:
        """Return the value of an argument now, a label (of before) in place of each tensor."""
        return fx.map_arg(argument, lambda node: self._now[node])

    def reads_changed(self, node: fx.Node) -> bool:
        """Tell whether a node reads a plain value that has changed."""
        return not self.changed.isdisjoint(node.all_input_nodes)

    def follow(self, node: fx.Node) -> None:
        """Compute the value of a node now; the nodes that it reads come before it."""
        before = self._now[node] = self.before(node)
        if before is None or holds_tensors(before) or node.op not in ("call_function", "call_method"):
            return
        if not (self.reads_changed(node) or any(self.kept.shrinks_any(self.before(i)) for i in node.all_input_nodes)):
            return
        self._fixed[node] = self._is_fixed(node)
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._stand_in)
        call = node.target if callable(node.target) else getattr(args[0], node.target)
        try:
            now = call(*(args if callable(node.target) else args[1:]), **kwargs)
        except ArithmeticError:  # such as a division by a size that is zero now; the old number takes its place
            now = math.nan
        self.give(node, now)

    def give(self, node: fx.Node, value: Any) -> None:
        """Set the value of a node now."""
        self._now[node] = value
        if differ(self.before(node), value):
            self.changed.add(node)

    def _stand_in(self, node: fx.Node) -> Any:
        """Return the value of a node now, a meta tensor in place of each label."""

        def empty(leaf: Any) -> Any:
            return torch.empty(self.kept.shape(leaf), device="meta") if isinstance(leaf, Label) else leaf

        value = self._now[node]
        return empty(value) if isinstance(value, Label) or not holds_tensors(value) else pytree.tree_map(empty, value)

    def _is_fixed(self, node: fx.Node) -> Any:
        """Tell of a plain value whether it is the same for every batch; of a shape for each of its sizes."""
        source = node.all_input_nodes[0]
        label = self.before(source)
        if isinstance(label, Label):
            flags = tuple(map(_is_fixed_axis, label.axes))
            numbers = [a for a in (*node.args[1:], *node.kwargs.values()) if type(a) is int]
            return flags[numbers[0]] if numbers else flags
        flags = self._fixed.get(source, False)
        if node.target is operator.getitem and isinstance(flags, tuple):
            place = node.args[1]
            return flags[place] if isinstance(place, int | slice) else False
        return all(all(f) if isinstance(f, tuple) else f for f in (self._fixed.get(i, False) for i in node.all_input_nodes))

    # Arguments.

    def fitted(self, node: fx.Node, given: Any, wanted: Any, *, is_size: bool) -> Any:
        """Return an argument of ``node`` with the wanted value: the given argument where it has it, or is a size of -1."""
        if isinstance(wanted, list | tuple):
            if isinstance(given, fx.Node):  # a whole shape, such as x.view(y.shape)
                now = [size if is_size and n == -1 else n for n, size in zip(self._now[given], wanted, strict=True)]
                if now == list(wanted):
                    return given
                is_rest = [is_size and n == -1 for n in self._now[given]]
                return [-1 if is_rest[i] else self._element(node, given, i, size) for i, size in enumerate(wanted)]
            if not isinstance(given, list | tuple):  # a number in place of a list of length 1
                single = len(wanted) == 1 and type(given) is int
                return self.fitted(node, given, wanted[0], is_size=is_size) if single else wanted
            return type(given)(self.fitted(node, part, size, is_size=is_size) for part, size in zip(given, wanted, strict=True))
        if isinstance(given, fx.Node):
            return given if is_size and self._now[given] == -1 else self.rescaled(node, given, wanted)
        return given if is_size and given == -1 and wanted >= 0 else wanted

    def rescaled(self, node: fx.Node, given: fx.Node, wanted: Any) -> Any:
        """Return an argument that is ``wanted`` at this batch size, and scales with the batch as the given node does."""
        fixed = self._fixed.get(given, False)
        return self._scaled(node, given, self._now[given], wanted, all(fixed) if isinstance(fixed, tuple) else bool(fixed))

    def original(self, node: fx.Node, given: fx.Node) -> Any:
        """Return an argument with the value that the given node had before, whatever the sizes of the inputs are.

        A value that was computed from sizes is computed anew, from the sizes that there were.
        """
        before, fixed = self.before(given), self._fixed.get(given, False)
        if given not in self.changed:
            return given
        if all(fixed) if isinstance(fixed, tuple) else fixed:
            return before
        if given not in self._originals:
            sources = [self.before(source) for source in given.all_input_nodes]
            if not sources or not all(isinstance(value, bool | int | float) for value in sources):  # reads a size itself
                return self.rescaled(node, given, before)
            with self.graph.inserting_before(node):
                copied = self.graph.node_copy(given)
            copied.args, copied.kwargs = fx.map_arg((given.args, given.kwargs), lambda source: self.original(copied, source))
            self._originals[given], self._now[copied] = copied, before
        return self._originals[given]

    def _element(self, node: fx.Node, given: fx.Node, i: int, wanted: int) -> Any:
        fixed = self._fixed.get(given, False)
        if isinstance(fixed, tuple) and fixed[i] and self._now[given][i] != wanted:
            return wanted
        with self.graph.inserting_before(node):
            element = self.graph.call_function(operator.getitem, (given, i))
        return self._scaled(node, element, self._now[given][i], wanted, fixed=False)

    def _scaled(self, node: fx.Node, given: fx.Node, now: Any, wanted: Any, fixed: bool) -> Any:
        if now == wanted:
            return given
        if fixed or type(now) is not int or type(wanted) is not int or now <= 0:
            return wanted
        shared = math.gcd(now, wanted)
        with self.graph.inserting_before(node):
            scaled = given if wanted == shared else self.graph.call_function(operator.mul, (given, wanted // shared))
            return scaled if now == shared else self.graph.call_function(operator.floordiv, (scaled, now // shared))


def holds_tensors(value: Any) -> bool:
    """Tell whether a value has labels in it."""
    return any(isinstance(leaf, Label) for leaf in pytree.tree_leaves(value))


def differ(one: Any, other: Any) -> bool:
    """Tell whether two values differ in their plain leaves."""
    if one is other:
        return False
    ours, theirs = pytree.tree_leaves(one), pytree.tree_leaves(other)
    plain = [(a, b) for a, b in zip(ours, theirs, strict=False) if not isinstance(a, Label | Tensor)]
    return len(ours) != len(theirs) or any(a is not b and a != b for a, b in plain)


def _is_fixed_axis(axis: Axis) -> bool:
    # An axis with a part that came with the input has a reason from the start, even where it was merged with others.
    return not axis.is_whole and axis.why is None
