"""Repair: rewrite the sizes and places in a graph, so that it computes on the positions that are left.

Shapes of views, bounds of slices, sizes of splits, shifts, group counts and index tables are constants of the code, or are
computed from sizes that it reads. What comes out right by itself stays as it is; a size that scales with the batch is
rescaled; a number that was computed from a size and is no size itself keeps the value that it had.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.operators import runs_own_code
from fxprune.analysis.remaining import Remaining
from fxprune.analysis.steps import Step
from fxprune.errors import ShrinkError, in_short
from fxprune.functional import layers
from fxprune.functional.leaf_cards import card_of, is_standard, update_sizes
from fxprune.graph.parts import ByMode, region_of, within
from fxprune.passes.graph_pass import GraphPass
from fxprune.passes.repair.numbers import Numbers, differ, holds_tensors
from fxprune.passes.repair.picks import pick_unevenly, renumber, rewrite_item
from fxprune.passes.repair.rerun import Rerun
from fxprune.rules.call import Call
from fxprune.rules.registry import op_card
from fxprune.torch_internals.graphs import has_code, is_erased
from fxprune.torch_internals.operators import OpOverload, arguments_of

_aten = torch.ops.aten
_VIEWS, _RESHAPE = (_aten.view.default, _aten._reshape_alias.default, _aten._reshape_alias), _aten.reshape.default

# The names that torch's Python functions have for arguments of the operators.
_ALIASES = {
    "split_size": ("split_size_or_sections", "split_sizes"),
    "split_sizes": ("split_size_or_sections", "split_size"),
    "chunks": ("sections",),
    "sections": ("indices_or_sections",),
    "indices": ("indices_or_sections",),
    "size": ("shape",),
    "shape": ("size",),
}

# The arguments in which -1 stands for the rest, or for the size that is there.
_SIZES = frozenset(["size", "shape", "sizes"])

# The arguments of methods that may stand one by one, as in x.view(2, 3).
_SPREAD = frozenset(["size", "shape", "repeats", "dims"])


Steps = dict[str, list[Step]]


def shrinking_steps(gm: fx.GraphModule, deps: Dependencies, kept: Remaining) -> Steps:
    """Return the calls of each node that has to do with a tensor that loses positions, by the node's name."""
    steps: Steps = {}
    found = set()
    for name, node in _own_code(gm):
        inside = name.removesuffix(node.name)
        if any(kept.shrinks_any(deps.values.get(inside + read.name)) for read in node.all_input_nodes):
            found.add(name)
    for step in deps.steps:
        if step.call is not None:
            steps.setdefault(step.node, []).append(step)
            if step.node not in found and (any(map(kept.shrinks, step.results)) or any(map(kept.shrinks, step.operands))):
                found.add(step.node)
    return {name: steps[name] for name in steps if name in found}


def _own_code(gm: fx.GraphModule) -> list[tuple[str, fx.Node]]:
    """Return by name the nodes that call functions of the user's own, nodes of branches included."""
    graphs, modules = [("", gm)], dict(gm.named_modules(remove_duplicate=False))
    for node in gm.graph.find_nodes(op="call_module"):
        if isinstance(module := modules[str(node.target)], ByMode):
            graphs += module.branches(node.name)
    return [(inside + node.name, node) for inside, graph in graphs for node in graph.graph.nodes if runs_own_code(node)]


def may_be_stuck(gm: fx.GraphModule, steps: Steps) -> bool:
    """Tell whether one of the nodes that shrink may be one that cannot be rewritten."""
    return any(len(calls) > 1 for calls in steps.values()) or any(name in steps for name, _ in _own_code(gm))


@dataclasses.dataclass(frozen=True)
class Repair(GraphPass):
    """Pass: rewrite the nodes of a graph whose parameters were sliced already. Ensures: it runs, and computes what it did.

    The analysis is from before; ``steps`` are from :func:`shrinking_steps`.

    Raises:
        ShrinkError: a node cannot be rewritten; names it.
    """

    deps: Dependencies
    kept: Remaining
    steps: Steps

    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Rewrite the nodes, in place."""
        before = _contents(gm)
        stuck = _Repair(gm, self.deps.values, self.steps, self.kept).run()
        if stuck:
            raise ShrinkError("; ".join(stuck.values()), nodes=stuck)
        return _contents(gm) != before


# Where each of the products that attention can be made of takes the queries, (..., heads, length, width).
_QUERIES = {
    "aten.scaled_dot_product_attention.default": 0,
    "aten.bmm.default": 0,
    "aten.baddbmm.default": 1,
    "aten.matmul.default": 0,
}


class _Repair:
    def __init__(self, gm: fx.GraphModule, values: dict[str, Any], steps: Steps, kept: Remaining, inside: str = "") -> None:
        self.gm, self.kept, self.inside = gm, kept, inside
        self.modules = dict(gm.named_modules(remove_duplicate=False))
        self.numbers = Numbers(gm.graph, values, kept, inside)
        self.rerun = Rerun(gm, self.numbers)
        self.values, self.steps = values, steps
        self.stuck: dict[str, str] = {}

    def run(self, arguments: Sequence[Any] | None = None) -> dict[str, str]:
        """Rewrite all nodes, and return the reasons of the nodes that cannot be rewritten, by name.

        The arguments are the values that a branch, which is a graph inside the graph, is given now.
        """
        given = iter(arguments or ())
        for node in list(self.gm.graph.nodes):
            steps = self.steps.get(self.inside + node.name)
            module = self.modules[str(node.target)] if node.op == "call_module" else None
            if isinstance(module, ByMode):
                self._rewrite_branches(node, module)
            elif steps is not None and (region := region_of(self.gm, node)) is not None:
                self._rewrite_region(node, *region, steps)
            elif steps is not None:
                self._rewrite_or_give_up(node, steps)
            elif self.numbers.reads_changed(node) and (
                node.op == "output" or node.is_impure() or holds_tensors(self.numbers.before(node))
            ):
                self._restore(node, frozenset())
            if not is_erased(node):
                self.numbers.follow(node)
            if node.op == "placeholder" and arguments is not None:
                self.numbers.give(node, next(given))
        return self.stuck

    def _rewrite_branches(self, node: fx.Node, module: ByMode) -> None:
        arguments = [self.numbers.now(a) for a in (*node.args, *node.kwargs.values())]
        for inside, branch in module.branches(node.name):
            before = _contents(branch)
            self.stuck |= _Repair(branch, self.values, self.steps, self.kept, inside).run(arguments)
            if _contents(branch) != before or not has_code(branch):
                branch.recompile()

    def _rewrite_region(self, node: fx.Node, region: fx.GraphModule, given: Sequence[Any], calls: Sequence[Step]) -> None:
        inside, steps, before = within(self.inside, node), Steps(), _contents(region)
        for step in calls:
            steps.setdefault(step.within, []).append(step)
        shrinking = {name: calls for name, calls in steps.items() if any(map(self._shrinks, calls))}
        self.stuck |= _Repair(region, self.values, shrinking, self.kept, inside).run([self.numbers.now(a) for a in given])
        for inner in region.graph.nodes:
            if self.kept.shrinks_any(self.values.get(inside + inner.name)):
                inner.meta.pop("val", None)
        if _contents(region) != before:
            region.recompile()

    def _shrinks(self, step: Step) -> bool:
        return any(map(self.kept.shrinks, (*step.results, *step.operands)))

    def _rewrite_or_give_up(self, node: fx.Node, steps: Sequence[Step]) -> None:
        what = f"node {node.name!r} ({node.op} {node.target})"
        try:
            self._rewrite(node, steps)
        except Exception as error:  # of a call as no card foresees it
            self.stuck[self.inside + node.name] = f"{what} cannot be rewritten: {in_short(error)}"

    def _rewrite(self, node: fx.Node, steps: Sequence[Step]) -> None:
        if node.target is operator.getitem:
            rewrite_item(self.gm, node, self.numbers)
            return
        if node.target is layers.multi_head_attention:
            self._rewrite_attention(node, steps)
            return
        is_own = runs_own_code(node) or (node.op == "call_module" and not is_standard(type(self.modules[str(node.target)])))
        if node.op == "call_module" or (len(steps) == 1 and not is_own):
            for step in steps:
                self._rewrite_call(node, step)
        else:
            self._restore(node, frozenset())
        if (is_own or len(steps) > 1) and not self.rerun.comes_out_right(node, steps):
            operators = ", ".join(sorted({step.op for step in steps}))
            what, need = ("several operators", "need") if len(steps) > 1 else ("an operator", "needs")
            runs = f"{what} ({operators}), which {need} other sizes than its arguments can say"
            self.stuck[self.inside + node.name] = f"node {node.name!r} ({node.op} {node.target}) runs {runs}"

    def _rewrite_call(self, node: fx.Node, step: Step) -> None:
        call = step.call
        assert call is not None
        if pick_unevenly(self.gm, node, call, self.numbers):
            return
        wanted = op_card(call.op).arguments_left(call, step.results, self.kept)
        self._restore(node, frozenset(wanted), call)
        for name, value in wanted.items():
            self._write(node, call, name, value)
        if node.target in _VIEWS:
            # Whether a view is possible depends on the memory layout, which a kernel may choose by the sizes.
            node.target, node.args = _RESHAPE, node.args[:2]
            node.kwargs = {name: given for name, given in node.kwargs.items() if name != "stride"}
        renumber(self.gm, node, call, self.numbers)

    def _rewrite_attention(self, node: fx.Node, steps: Sequence[Step]) -> None:
        """Give the function the number of heads that are left, and the scale that whole heads had."""
        query = next(step.operands[_QUERIES[step.op]] for step in steps if step.op in _QUERIES)
        heads, _, width = query.axes[-3:]
        before = node.args[4]
        assert isinstance(before, int)
        node.update_arg(4, before * self.kept.size(heads) // heads.size)
        if self.kept.shrinks_axis(width) and node.kwargs.get("scale") is None:
            node.update_kwarg("scale", 1.0 / math.sqrt(width.size))

    # Arguments.

    def _write(self, node: fx.Node, call: Call, name: str, value: Any) -> None:
        """Let a node call its operator with another argument."""
        if node.op == "call_module":
            if differ(value, call.arguments[name]):
                self._write_attribute(self.modules[str(node.target)], name, value)
            return
        fitted, place = functools.partial(self.numbers.fitted, is_size=name in _SIZES), _place(call, name)
        key = next((key for key in (name, *_ALIASES.get(name, ())) if key in node.kwargs), None)
        if key is not None:
            node.update_kwarg(key, fitted(node, node.kwargs[key], value))
        elif place is None or place >= len(node.args):
            if differ(value, call.arguments[name]):
                node.update_kwarg(name, value)
        elif isinstance(value, list) and isinstance(call.arguments[name], int):  # several sizes in place of one
            node.update_arg(place, value)
        elif isinstance(value, list) and name in _SPREAD and self._is_spread(node, place):
            sizes = [fitted(node, given, size) for given, size in zip(node.args[place:], value, strict=True)]
            node.args = (*node.args[:place], *sizes)
        else:
            node.update_arg(place, fitted(node, node.args[place], value))
        if isinstance(value, list) and isinstance(call.arguments[name], int):
            _split_by_sizes(node, call)

    def _is_spread(self, node: fx.Node, place: int | None) -> bool:
        """Tell whether sizes stand one by one from a place on, as in ``x.view(2, 3)`` or ``torch.zeros(2, 3)``."""
        sizes = [self.numbers.before(argument) for argument in node.args[place:]] if place is not None else []
        return bool(sizes) and isinstance(sizes[0], int) and (node.op == "call_method" or all(type(n) is int for n in sizes))

    def _write_attribute(self, module: nn.Module, name: str, value: Any) -> None:
        attribute = card_of(type(module)).arguments.get(name)
        if attribute is None:  # worked out by the module
            return
        present = getattr(module, attribute)
        setattr(module, attribute, type(present)(value) if isinstance(present, tuple | list) else value)
        update_sizes(module)  # channels follow from groups

    def _restore(self, node: fx.Node, sizes: frozenset[str], call: Call | None = None) -> None:
        """Let numbers that are no sizes keep the value that they had."""
        if not self.numbers.reads_changed(node):
            return

        def restored(argument: fx.Node) -> Any:
            before = self.numbers.before(argument)
            if argument not in self.numbers.changed or holds_tensors(before):
                return argument
            if isinstance(before, bool | int | float):
                return self.numbers.original(node, argument)
            if isinstance(before, tuple | list) and all(type(size) is int for size in before):
                return self._restored_shape(node, argument, before)
            return argument

        places: set[int | None] = {_place(call, name) for name in sizes} if call is not None else set()
        if sizes & _SPREAD:
            places |= {i for place in places if self._is_spread(node, place) for i in range(place or 0, len(node.args))}
        node.args = tuple(a if i in places else fx.map_arg(a, restored) for i, a in enumerate(node.args))
        taken = {alias for name in sizes for alias in (name, *_ALIASES.get(name, ()))}
        node.kwargs = {k: v if k in taken else fx.map_arg(v, restored) for k, v in node.kwargs.items()}

    def _restored_shape(self, node: fx.Node, argument: fx.Node, before: Sequence[int]) -> Any:
        """Return sizes that a node read from a tensor before that tensor shrank."""
        sizes = self.numbers.fitted(node, argument, list(before), is_size=False)  # the node itself where it has them all
        if node.op != "output" or not isinstance(before, torch.Size):
            return tuple(sizes) if type(before) is tuple else sizes
        with self.gm.graph.inserting_before(node):  # a caller may use methods that a tuple does not have
            return self.gm.graph.call_function(torch.Size, (sizes,))


def _contents(gm: fx.GraphModule) -> list[Any]:
    return [(node, node.op, node.target, node.args, node.kwargs) for node in gm.graph.nodes]


def _place(call: Call, name: str) -> int | None:
    """Return where an argument stands among the positional ones; None if it goes by name alone."""
    for place, argument in enumerate(arguments_of(call.op)):
        if argument.name == name:
            return None if argument.kwarg_only else place
    return None


def _split_by_sizes(node: fx.Node, call: Call) -> None:
    """Split by sizes in place of one size, or of a number of chunks."""
    if str(getattr(node.target, "__name__", node.target)).partition(".")[0] in ("hsplit", "vsplit", "dsplit"):
        node.update_kwarg("dim", call.dim())
    if node.op == "call_method":
        node.target, name = "split", "split_size"
    elif isinstance(node.target, OpOverload):
        node.target, name = _aten.split_with_sizes.default, "split_sizes"
    else:
        node.target, name = torch.split, "split_size_or_sections"
        if "input" in node.kwargs:  # which ``torch.chunk`` calls it
            node.kwargs = {"tensor": node.kwargs["input"], **{k: v for k, v in node.kwargs.items() if k != "input"}}
    names = ("chunks", "sections", "split_size", "indices_or_sections")
    node.kwargs = {name if k in names else k: v for k, v in node.kwargs.items()}
