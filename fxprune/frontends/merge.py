"""Makes one graph of two: of a model captured in train mode and in eval mode.

Both graphs are aligned node by node. Where an aligned pair differs in a flag or a number, the graph reads the live
``training`` flag of the module that made the node. Where one mode has nodes that the other has not, both versions go into a
:class:`fxprune.modules.ByMode`. What fits neither stays as in the mode of the capture and is reported.
"""

from __future__ import annotations

import dataclasses
import difflib
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from fxprune import functional
from fxprune.frontends.assemble import ensure_module
from fxprune.modules import ByMode, CapturedModule, clone
from fxprune.state import join

_BODY = ("call_function", "call_method", "call_module")
# Each is the identity in eval mode, and takes its mode as the third argument or by the keyword "training".
_DROPOUTS = frozenset(
    {
        F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
        torch.ops.aten.dropout.default, torch.ops.aten.alpha_dropout.default,
        torch.ops.aten.feature_dropout.default, torch.ops.aten.feature_alpha_dropout.default,
    }
)  # fmt: skip


class _CannotMergeError(Exception):
    """This difference between the modes has no form in one graph."""


@dataclasses.dataclass
class _Hunk:
    """Nodes that only one of the modes has, at one place: before the node ``at`` of the base graph."""

    base: list[fx.Node]
    other: list[fx.Node]
    at: fx.Node
    demands: list[tuple[fx.Node, fx.Node]] = dataclasses.field(default_factory=list)
    results: dict[tuple[fx.Node, fx.Node], fx.Node] = dataclasses.field(default_factory=dict)
    failed: bool = False


@dataclasses.dataclass
class _Difference:
    """An argument of the base node ``user``, number ``index`` when flattened, that differs by mode."""

    user: fx.Node
    index: int
    ours: Any
    theirs: Any


def merge_modes(
    gm: CapturedModule, model: nn.Module, other: fx.Graph, constants: dict[str, Any], *, training: bool
) -> list[str]:
    """Make ``gm`` follow ``train()`` and ``eval()`` where the graph of the other mode says that the model does.

    Args:
        gm: the graph of the mode of the capture, with example values on its nodes; changed in place, not recompiled.
        model: the model that both graphs are of.
        other: the graph of the other mode.
        constants: the constants that ``other`` reads.
        training: whether ``gm`` is of train mode.

    Returns:
        The paths of the modules with a dependence on the mode that could not be kept, each once.
    """
    return _Merge(gm, model, other, constants, training).run()


class _Merge:
    def __init__(
        self, gm: CapturedModule, model: nn.Module, other: fx.Graph, constants: dict[str, Any], training: bool
    ) -> None:
        self.gm, self.model, self.graph, self.constants, self.training = gm, model, gm.graph, constants, training
        self.twin: dict[fx.Node, fx.Node] = {}
        self.hunks: list[_Hunk] = []
        self.hunk_of: dict[fx.Node, _Hunk] = {}
        self.sizes: set[fx.Node] = set()
        self.lost: dict[str, None] = {}
        self._align(other)

    def run(self) -> list[str]:
        differences = [d for theirs, ours in list(self.twin.items()) for d in self._differences(ours, theirs)]
        for difference in differences:
            if isinstance(difference.ours, fx.Node) and isinstance(difference.theirs, fx.Node):
                self._demand(difference)
        for hunk in self.hunks:
            try:
                self._settle(hunk)
            except _CannotMergeError:
                hunk.failed = True
                self._lose((hunk.base or hunk.other or [hunk.at])[0])
        for difference in differences:
            try:
                self._substitute(difference)
            except _CannotMergeError:
                self._lose(difference.user)
        for hunk in self.hunks:
            if not hunk.failed:
                self._erase_unused(hunk.base)
        return list(self.lost)

    # -- alignment ---------------------------------------------------------------------------------------------------

    def _align(self, other: fx.Graph) -> None:
        ours, theirs = self.graph.find_nodes(op="placeholder"), other.find_nodes(op="placeholder")
        self.twin.update(zip(theirs, ours, strict=True))
        self._align_reads(other)
        a = [n for n in self.graph.nodes if n.op in _BODY]
        b = [n for n in other.nodes if n.op in _BODY]
        end = self.graph.output_node()
        matcher = difflib.SequenceMatcher(None, [_key(n) for n in a], [_key(n) for n in b], autojunk=False)
        for tag, a0, a1, b0, b1 in matcher.get_opcodes():
            if tag == "equal":
                self.twin.update(zip(b[b0:b1], a[a0:a1], strict=True))
                continue
            hunk = _Hunk(a[a0:a1], b[b0:b1], a[a1] if a1 < len(a) else end)
            self.hunks.append(hunk)
            self.hunk_of.update(dict.fromkeys([*hunk.base, *hunk.other], hunk))
        self.twin[other.output_node()] = end
        for hunk in self.hunks:
            self._share_sizes(hunk)

    def _share_sizes(self, hunk: _Hunk) -> None:
        """Take computations on sizes out of a hunk: they are the same in both modes, and other hunks may use them."""
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

    def _align_reads(self, other: fx.Graph) -> None:
        reads = {str(n.target): n for n in self.graph.find_nodes(op="get_attr")}
        for node in other.find_nodes(op="get_attr"):
            twin = self._read_like(reads, str(node.target))
            if twin is not None:
                self.twin[node] = twin

    def _read_like(self, reads: dict[str, fx.Node], target: str) -> fx.Node | None:
        constant = self.constants.get(target)
        candidates = [target] if target in reads else []
        if isinstance(constant, Tensor):  # constants are numbered in order of appearance, which the mode may change
            candidates = [*candidates, *reads]
        for name in candidates:
            if constant is None or _same_constant(_value(self.gm, name), constant):
                return reads[name]
        if constant is None and _value(self.gm, target) is not None:  # a tensor of the model read in one mode only
            reads[target] = self._new_read(target)
            return reads[target]
        if isinstance(constant, Tensor):
            name = f"{target}_by_mode"
            owner, _, last = name.rpartition(".")
            self.gm.get_submodule(owner).register_buffer(last, constant, persistent=False)
            reads[name] = self._new_read(name)
            return reads[name]
        return None

    def _new_read(self, target: str) -> fx.Node:
        first = next(n for n in self.graph.nodes if n.op != "placeholder")
        with self.graph.inserting_before(first):
            node = self.graph.create_node("get_attr", target)
        node.meta["val"] = _value(self.gm, target)
        return node

    # -- differences -------------------------------------------------------------------------------------------------

    def _differences(self, ours: fx.Node, theirs: fx.Node) -> Iterable[_Difference]:
        _spell_out_defaults(ours, theirs)
        _spell_out_defaults(theirs, ours)
        a, spec_a = _flatten(ours)
        b, spec_b = _flatten(theirs)
        if spec_a != spec_b:
            self._lose(ours)
            return
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            if isinstance(y, fx.Node) and y in self.twin:
                same = x is self.twin[y]
            else:
                same = type(x) is type(y) and not isinstance(x, fx.Node) and bool(x == y)
            if not same:
                yield _Difference(ours, index, x, y)

    def _demand(self, difference: _Difference) -> None:
        pair = (difference.ours, difference.theirs)
        involved = [self.hunk_of[n] for n in pair if n in self.hunk_of]
        hunk = max(involved, key=self.hunks.index) if involved else _Hunk([], [], difference.user)
        if not involved:
            self.hunks.append(hunk)
            self.hunk_of[difference.theirs] = hunk
        if pair not in hunk.demands:
            hunk.demands.append(pair)

    def _substitute(self, difference: _Difference) -> None:
        user, ours, theirs = difference.user, difference.ours, difference.theirs
        new: Any
        if isinstance(ours, fx.Node) and isinstance(theirs, fx.Node):
            hunk = next((h for h in self.hunks if (ours, theirs) in h.demands), None)
            if hunk is None or hunk.failed:
                return  # reported with the hunk
            new = hunk.results[(ours, theirs)]
        else:
            in_train, in_eval = (ours, theirs) if self.training else (theirs, ours)
            with self.graph.inserting_before(user):
                new = self._choose(user, in_train, in_eval)
        leaves, spec = _flatten(user)
        leaves[difference.index] = new
        user.args, user.kwargs = pytree.tree_unflatten(leaves, spec)

    def _choose(self, user: fx.Node, in_train: Any, in_eval: Any) -> fx.Node:
        kinds = {type(in_train), type(in_eval)}
        if kinds == {bool}:
            flag = self._flag(user)
            return flag if in_train else self.graph.call_function(functional.invert, (flag,))
        if kinds == {int}:
            return self.graph.call_function(functional.select_int, (self._flag(user), in_train, in_eval))
        if kinds <= {int, float}:
            chosen = (self._flag(user), float(in_train), float(in_eval))
            return self.graph.call_function(functional.select_float, chosen)
        raise _CannotMergeError

    def _flag(self, node: fx.Node) -> fx.Node:
        """Read, at the insertion point, the mode of the module that made ``node``."""
        path = node.meta.get("fxprune_module", "")
        ensure_module(self.gm, self.model, path)
        return self.graph.create_node("get_attr", join(path, "training"))

    def _lose(self, node: fx.Node) -> None:
        self.lost.setdefault(node.meta.get("fxprune_module", ""))

    # -- hunks -------------------------------------------------------------------------------------------------------

    def _settle(self, hunk: _Hunk) -> None:
        if not hunk.demands and not any(_has_effect(n) for n in [*hunk.base, *hunk.other]):
            return  # dead code of one mode
        if self._settle_dropout(hunk):
            return
        with self.graph.inserting_before(hunk.at):
            self._settle_by_mode(hunk)

    def _settle_dropout(self, hunk: _Hunk) -> bool:
        """Keep a dropout that the model skips in eval mode as one node with a live flag."""
        nodes = hunk.base if self.training else hunk.other
        if len(hunk.base) + len(hunk.other) != 1 or len(nodes) != 1 or nodes[0].target not in _DROPOUTS:
            return False
        dropout = nodes[0]
        source = dropout.args[0] if self.training else self.twin.get(dropout.args[0])  # type: ignore[arg-type]
        for ours, theirs in hunk.demands:
            skipped, applied = (self.twin.get(theirs), ours) if self.training else (ours, theirs)
            if skipped is not source or applied is not dropout:
                return False
        with self.graph.inserting_before(hunk.at):
            flag = self._flag(dropout)
            args, kwargs = [source, *dropout.args[1:]], dict(dropout.kwargs)
            if "training" in kwargs or len(args) < 3:
                kwargs["training"] = flag
            else:
                args[2] = flag
            live = self.graph.create_node("call_function", dropout.target, tuple(args), kwargs)
        live.meta.update(dropout.meta)
        hunk.results = dict.fromkeys(hunk.demands, live)
        return True

    def _settle_by_mode(self, hunk: _Hunk) -> None:
        inputs: dict[fx.Node, None] = {}
        ours = self._branch_inputs(hunk.base, [a for a, _ in hunk.demands], lambda n: n)
        theirs = self._branch_inputs(hunk.other, [b for _, b in hunk.demands], self.twin.get)
        inputs.update(dict.fromkeys([*ours.values(), *theirs.values()]))
        tensors = [n for n in inputs if isinstance(n.meta.get("val"), Tensor)]
        sizes = [n for n in inputs if n in self.sizes or isinstance(n.meta.get("val"), int | torch.SymInt)]
        if len(tensors) + len(sizes) != len(inputs) or not all(_is_tensor(a) for a, _ in hunk.demands):
            raise _CannotMergeError
        base = _branch(self.gm, hunk.base, [a for a, _ in hunk.demands], ours, tensors, sizes)
        other = _branch(self.model, hunk.other, [b for _, b in hunk.demands], theirs, tensors, sizes)
        made_by = (hunk.base or hunk.other or [hunk.at])[0].meta.get("fxprune_module", "")
        owner = ensure_module(self.gm, self.model, made_by)
        name = next(n for i in range(len(self.hunks) + 1) if not hasattr(owner, n := f"by_mode_{i}" if i else "by_mode"))
        by_mode = ByMode(base, other) if self.training else ByMode(other, base)
        owner.add_module(name, by_mode.train(owner.training))
        call = self.graph.call_module(join(made_by, name), (tensors, sizes))
        for index, pair in enumerate(hunk.demands):
            hunk.results[pair] = self.graph.call_function(operator.getitem, (call, index))
            hunk.results[pair].meta["val"] = pair[0].meta.get("val")

    def _branch_inputs(
        self, nodes: list[fx.Node], results: list[fx.Node], to_base: Callable[[fx.Node], fx.Node | None]
    ) -> dict[fx.Node, fx.Node]:
        """Map each node that a branch uses from outside to the node of the base graph that stands for it."""
        used = dict.fromkeys([n for node in nodes for n in node.all_input_nodes] + results)
        inputs: dict[fx.Node, fx.Node] = {}
        for node in used:
            if node in nodes:
                continue
            outside = to_base(node)
            if outside is None or outside in self.hunk_of:
                raise _CannotMergeError  # made in another hunk: it exists in one of the modes only
            inputs[node] = outside
        return inputs

    def _erase_unused(self, nodes: list[fx.Node]) -> None:
        for node in reversed(nodes):
            if not node.users:
                self.graph.erase_node(node)


def _branch(
    root: nn.Module,
    nodes: list[fx.Node],
    results: list[fx.Node],
    inputs: dict[fx.Node, fx.Node],
    tensors: list[fx.Node],
    sizes: list[fx.Node],
) -> CapturedModule:
    graph = fx.Graph()
    places: dict[fx.Node, fx.Node] = {}
    for name, kind, members in (("tensors", list[Tensor], tensors), ("sizes", list[int], sizes)):
        placeholder = graph.placeholder(name, type_expr=kind)
        for index, member in enumerate(members):
            places[member] = graph.call_function(operator.getitem, (placeholder, index))
    copies = {node: places[outside] for node, outside in inputs.items()}
    branch = CapturedModule(nn.Module(), fx.Graph(), "Branch")
    for node in nodes:
        target = str(node.target)
        if node.op == "call_module":
            module = root.get_submodule(target)
            if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
                raise _CannotMergeError  # its tensors would change their names
            target = target.replace(".", "_")
            branch.add_module(target, clone(module))
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.op == "call_module":
            copies[node].target = target
    graph.output([copies[node] for node in results])
    unused = [n for n in places.values() if not n.users]
    for node in unused:
        graph.erase_node(node)
    branch.graph = graph
    return branch


def _key(node: fx.Node) -> tuple[Any, ...]:
    return node.op, node.target, node.meta.get("fxprune_module")


def _flatten(node: fx.Node) -> tuple[list[Any], pytree.TreeSpec]:
    return pytree.tree_flatten((node.args, node.kwargs))


def _spell_out_defaults(node: fx.Node, like: fx.Node) -> None:
    """Give ``node`` the default arguments that ``like`` has and it leaves out; torch.export drops them."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    schema = node.target._schema.arguments
    missing = schema[len(node.args) : len(like.args)]
    node.args = (*node.args, *(argument.default_value for argument in missing))
    defaults = {argument.name: argument.default_value for argument in schema}
    node.kwargs = {**{k: defaults[k] for k in like.kwargs if k not in node.kwargs}, **node.kwargs}


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _has_effect(node: fx.Node) -> bool:
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return bool(schema.is_mutable)
    return node.is_impure() if node.op == "call_function" else False


def _value(root: nn.Module, target: str) -> Any:
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part, None)
    return value


def _same_constant(ours: Any, theirs: Any) -> bool:
    if ours is theirs:
        return True
    if isinstance(ours, fx.GraphModule) and isinstance(theirs, fx.GraphModule):
        return ours.code == theirs.code
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return ours.dtype == theirs.dtype and ours.device == theirs.device and torch.equal(ours, theirs)
    return False
