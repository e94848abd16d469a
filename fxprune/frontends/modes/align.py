"""Aligns two graphs of one model, of train and of eval mode, node by node.

The base graph is of the mode of the capture, the other graph of the other mode. The alignment pairs each node with its twin,
collects nodes without twins in hunks, and lists the arguments in which twins differ::

    base (eval)                    other (train)
    y = linear(x, w, b)            y = linear(x, w, b)             twins
                                   n = randn_like(y); z = y + n    a hunk
    out = dropout(y, 0.5, False)   out = dropout(z, 0.5, True)     twins with two differences: y or z, False or True
"""

from __future__ import annotations

import dataclasses
import difflib
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.graph.metadata import MODULE
from fxprune.graph.paths import split, value_at
from fxprune.torch_internals.operators import OpOverload, arguments_of
from fxprune.torch_internals.tensors import pytree

_BODY = ("call_function", "call_method", "call_module")


@dataclasses.dataclass(eq=False)
class Hunk:
    """Nodes of either graph without twins that belong together, before the node ``at`` of the base graph."""

    base: list[fx.Node]
    other: list[fx.Node]
    at: fx.Node


@dataclasses.dataclass(frozen=True)
class Difference:
    """An argument of the base node ``user``, ``ours`` there and ``theirs`` on its twin: leaf ``place`` of all arguments."""

    user: fx.Node
    place: int
    ours: Any
    theirs: Any

    @property
    def is_value(self) -> bool:
        """Whether both are nodes: values that the graphs compute."""
        return isinstance(self.ours, fx.Node) and isinstance(self.theirs, fx.Node)

    @property
    def is_number(self) -> bool:
        """Whether both are bools, or both other numbers, so that a flag can choose between them."""
        kinds = {type(self.ours), type(self.theirs)}
        return kinds == {bool} or kinds <= {int, float}


class Alignment:
    """The twins, hunks and differences of two graphs.

    Args:
        gm: the module of the base graph. Sizes and reads that only the other graph has are added to the base graph.
        other: the other graph.
        constants: the constants that ``other`` reads, by target.
    """

    def __init__(self, gm: fx.GraphModule, other: fx.Graph, constants: dict[str, Any]) -> None:
        self.gm, self.graph, self.constants = gm, gm.graph, constants
        self.twin: dict[fx.Node, fx.Node] = {}  # node of the other graph -> node of the base graph
        self.reads: dict[fx.Node, list[fx.Node]] = {}  # get_attr node of the base graph -> its twins
        self.hunk_of: dict[fx.Node, Hunk] = {}
        self.hunks: list[Hunk] = []
        self.sizes: set[fx.Node] = set()  # base nodes without example values that compute sizes
        self._differing: dict[fx.Node, list[Difference] | None] = {}  # by base node; None where the structure differs
        self._changed: dict[fx.Node, fx.Node] | None = None  # twins to compare again; None for all
        end = self.graph.output_node()
        self.twin[other.output_node()] = end
        self.twin.update(zip(other.find_nodes(op="placeholder"), self.graph.find_nodes(op="placeholder"), strict=True))
        self._align_reads(other)
        self._align_body([n for n in self.graph.nodes if n.op in _BODY], [n for n in other.nodes if n.op in _BODY], end)
        for hunk in self.hunks:
            self._share_sizes(hunk)
        while self._part_unlike() or self._join_hunks():
            pass

    def differences(self) -> list[Difference]:
        """Return the arguments in which twins differ, in the order of the base graph."""
        self._compare_changed()
        return [d for _, found in sorted(self._differing.items()) for d in found or ()]

    def odd(self) -> list[fx.Node]:
        """Return the base nodes whose arguments have another structure than those of their twins, in order."""
        self._compare_changed()
        return sorted(node for node, found in self._differing.items() if found is None)

    # -- twins -------------------------------------------------------------------------------------------------------

    def _align_body(self, a: list[fx.Node], b: list[fx.Node], end: fx.Node) -> None:
        matcher = difflib.SequenceMatcher(None, [self._key(n) for n in a], [self._key(n) for n in b], autojunk=False)
        for tag, a0, a1, b0, b1 in matcher.get_opcodes():
            if tag == "equal":
                self.twin.update(zip(b[b0:b1], a[a0:a1], strict=True))
            else:
                self._add(Hunk(a[a0:a1], b[b0:b1], a[a1] if a1 < len(a) else end), len(self.hunks))

    def _key(self, node: fx.Node) -> tuple[Any, ...]:
        """Return the key that twins share: target and module; for a node without users also the tensor that it changes."""
        first = node.args[0] if node.args and not node.users else None
        read = self.twin.get(first, first) if isinstance(first, fx.Node) and first.op == "get_attr" else None
        return node.op, node.target, MODULE.get(node), read

    def _add(self, hunk: Hunk, index: int) -> None:
        self.hunks.insert(index, hunk)
        self.hunk_of.update(dict.fromkeys([*hunk.base, *hunk.other], hunk))

    def _align_reads(self, other: fx.Graph) -> None:
        reads = {str(n.target): n for n in self.graph.find_nodes(op="get_attr")}
        for node in other.find_nodes(op="get_attr"):
            twin = self._read_like(reads, str(node.target))
            if twin is not None:
                self.twin[node] = twin
                self.reads.setdefault(twin, []).append(node)

    def _read_like(self, reads: dict[str, fx.Node], target: str) -> fx.Node | None:
        """Return the base node that reads the same value as ``target`` of the other graph; a missing read is added."""
        constant = self.constants.get(target)
        if constant is None:  # a tensor of the model
            if target not in reads and value_at(self.gm, target) is not None:
                reads[target] = self._new_read(target)
            return reads.get(target)
        # The name of a constant is its number in the trace, which depends on the mode; so constants are compared by value.
        for name in [target, *reads] if target in reads else reads:
            if _same_constant(value_at(self.gm, name), constant):
                return reads[name]
        if not isinstance(constant, Tensor):
            return None
        name = f"{target}_by_mode"
        owner, last = split(name)
        self.gm.get_submodule(owner).register_buffer(last, constant, persistent=False)
        reads[name] = self._new_read(name)
        return reads[name]

    def _new_read(self, target: str) -> fx.Node:
        first = next(n for n in self.graph.nodes if n.op != "placeholder")
        with self.graph.inserting_before(first):
            node = self.graph.create_node("get_attr", target)
        node.meta["val"] = value_at(self.gm, target)
        return node

    # -- sizes -------------------------------------------------------------------------------------------------------

    def _share_sizes(self, hunk: Hunk) -> None:
        """Move computations of sizes from a hunk to the base graph: both modes can share them, and other hunks may use them."""
        for node in [n for n in hunk.base if self._is_size(n, lambda n: n not in self.hunk_of)]:
            hunk.base.remove(node)
            del self.hunk_of[node]
            self.sizes.add(node)
        for node in [n for n in hunk.other if self._is_size(n, lambda n: n in self.twin)]:
            hunk.other.remove(node)
            del self.hunk_of[node]
            with self.graph.inserting_before((hunk.base or [hunk.at])[0]):
                self.twin[node] = copy = self.graph.node_copy(node, self.twin.__getitem__)
            self.sizes.add(copy)

    def _is_size(self, node: fx.Node, is_common: Callable[[fx.Node], bool]) -> bool:
        of_tensor = (
            node.target is torch.ops.aten.sym_size.int
            or (node.op == "call_method" and (node.target == "dim" or (node.target == "size" and len(node.args) == 2)))
            or (node.target is getattr and node.args[1] == "ndim")
        )
        of_sizes = (
            node.op == "call_function"
            and getattr(node.target, "__module__", None) == operator.mul.__module__
            and all(n in self.sizes or self.twin.get(n) in self.sizes for n in node.all_input_nodes)
        )
        return (of_tensor or of_sizes) and all(is_common(n) for n in node.all_input_nodes)

    # -- pairs that are no twins after all ---------------------------------------------------------------------------

    def _part_unlike(self) -> bool:
        """Make a hunk of each pair whose arguments no flag can choose between; return whether there is any."""
        unlike = [*self.odd(), *(d.user for d in self.differences() if not d.is_value and not d.is_number)]
        unlike = [node for node in unlike if node.op in _BODY]
        others = {ours: theirs for theirs, ours in self.twin.items()} if unlike else {}
        for ours in dict.fromkeys(unlike):
            self._part(others[ours])
            self._add(Hunk([ours], [others[ours]], ours.next), sum(hunk.at <= ours for hunk in self.hunks))
        return bool(unlike)

    # -- hunks that belong together ----------------------------------------------------------------------------------

    def _join_hunks(self) -> bool:
        """Join two hunks where one uses a value of the other; return whether there are any."""
        uses = [(hunk, n) for hunk in self.hunks for node in [*hunk.base, *hunk.other] for n in node.all_input_nodes]
        together = [(hunk, self.hunk_of[n]) for hunk, n in uses if self.hunk_of.get(n, hunk) is not hunk]
        for d in self.differences():
            made = [self.hunk_of[n] for n in (d.ours, d.theirs) if isinstance(n, fx.Node) and n in self.hunk_of]
            if len(made) == 2 and made[0] is not made[1]:
                together.append((made[0], made[1]))
        if not together:
            return False
        first, last = sorted(map(self.hunks.index, together[0]))
        self._join(first, last)
        return True

    def _join(self, first: int, last: int) -> None:
        """Put the hunks number ``first`` to ``last`` and all nodes between them into one hunk."""
        joined = self.hunks[first : last + 1]
        base, other = ([n for h in joined for n in h.base], [n for h in joined for n in h.other])
        start, end = joined[0].at, joined[-1].at
        between = {
            ours: theirs
            for theirs, ours in self.twin.items()
            if start <= ours < end and ours.op in _BODY and ours not in self.sizes
        }
        for theirs in between.values():
            self._part(theirs)
        del self.hunks[first : last + 1]
        self._add(Hunk(sorted([*base, *between]), sorted([*other, *between.values()]), end), first)

    # -- differences -------------------------------------------------------------------------------------------------

    def _part(self, theirs: fx.Node) -> None:
        """Take its twin from a node of the other graph; the users of the node are compared again."""
        assert self._changed is not None  # twins are parted only after a comparison
        self._differing.pop(self.twin.pop(theirs), None)
        self._changed.pop(theirs, None)
        self._changed.update((user, self.twin[user]) for user in theirs.users if user in self.twin)

    def _compare_changed(self) -> None:
        for theirs, ours in (self.twin if self._changed is None else self._changed).items():
            self._differing.pop(ours, None)
            found = self._compare(ours, theirs)
            if found != []:
                self._differing[ours] = found
        self._changed = {}

    def _compare(self, ours: fx.Node, theirs: fx.Node) -> list[Difference] | None:
        """Return the arguments in which two nodes differ; None if the arguments have different structures."""
        if self._is_same(ours.args, theirs.args) and self._is_same(ours.kwargs, theirs.kwargs):
            return []
        _spell_out_defaults(ours, theirs)
        _spell_out_defaults(theirs, ours)
        (leaves, spec), (their_leaves, their_spec) = flatten(ours), flatten(theirs)
        if spec != their_spec:
            return None
        pairs = enumerate(zip(leaves, their_leaves, strict=True))
        return [Difference(ours, place, x, y) for place, (x, y) in pairs if not self._is_same(x, y)]

    def _is_same(self, x: Any, y: Any) -> bool:
        """Tell whether an argument of the base graph is the argument ``y`` of the other graph, with all its parts."""
        if isinstance(y, fx.Node):
            return isinstance(x, fx.Node) and self.twin.get(y) is x
        if type(x) is not type(y) or not isinstance(x, tuple | list | dict):
            return type(x) is type(y) and bool(x == y)
        if isinstance(x, dict):
            return list(x) == list(y) and all(map(self._is_same, x.values(), y.values()))
        return len(x) == len(y) and all(map(self._is_same, x, y))


def flatten(node: fx.Node) -> tuple[list[Any], pytree.TreeSpec]:
    """Return the leaves and the structure of a node's arguments."""
    return pytree.tree_flatten((node.args, node.kwargs))


def _spell_out_defaults(node: fx.Node, like: fx.Node) -> None:
    """Give ``node`` the default arguments that it leaves out, as torch.export does, and ``like`` has."""
    if not isinstance(node.target, OpOverload):
        return
    schema = arguments_of(node.target)
    missing = schema[len(node.args) : len(like.args)]
    node.args = (*node.args, *(argument.default_value for argument in missing))
    defaults = {argument.name: argument.default_value for argument in schema}
    node.kwargs = {**{k: defaults[k] for k in like.kwargs if k not in node.kwargs}, **node.kwargs}


def _same_constant(ours: Any, theirs: Any) -> bool:
    if ours is theirs:
        return True
    if isinstance(ours, fx.GraphModule) and isinstance(theirs, fx.GraphModule):
        return ours.code == theirs.code
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return ours.dtype == theirs.dtype and ours.device == theirs.device and torch.equal(ours, theirs)
    return False
