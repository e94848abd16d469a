"""Merges the graphs of a model in train mode and in eval mode into one graph.

Both graphs are aligned node by node. Where twins differ in a flag or a number, the merged graph reads the live ``training``
flag of the module that made the node. Where one graph has nodes that the other does not have, both versions go into a
:class:`fxprune.graph.parts.ByMode`; a counter or a dropout stays one node that takes the flag. Any other difference stays as in
the mode of the capture and is reported.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxprune.frontends.assemble import ensure_module
from fxprune.frontends.modes.align import Alignment, Difference, Hunk, flatten
from fxprune.frontends.modes.reads import ModeReads
from fxprune.functional import layers
from fxprune.graph.captured import CapturedModule, compiled_later
from fxprune.graph.metadata import MODULE
from fxprune.graph.parts import ByMode, clone
from fxprune.graph.paths import erase_unused, join, value_at
from fxprune.graph.side_effects import body_of, may_write
from fxprune.torch_internals.tensors import pytree

# Each is the identity in eval mode, and takes the mode as third argument or as keyword "training".
_DROPOUTS = frozenset(
    {
        F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
        torch.ops.aten.dropout.default, torch.ops.aten.alpha_dropout.default,
        torch.ops.aten.feature_dropout.default, torch.ops.aten.feature_alpha_dropout.default,
    }
)  # fmt: skip
# Additions in place, by which a model counts its calls.
_ADDITIONS = frozenset({"add_", operator.iadd, torch.ops.aten.add_.Tensor, torch.ops.aten.add_.Scalar})


class _CannotMergeError(Exception):
    """One graph cannot hold this difference between the modes."""


def merge_modes(
    gm: CapturedModule, model: nn.Module, other: fx.Graph, constants: dict[str, Any], reads: ModeReads
) -> list[str]:
    """Make ``gm``, of the mode of the capture, follow ``train()`` and ``eval()`` as the graph ``other`` of the other mode says.

    Args:
        gm: the graph to change, with example values on its nodes; not recompiled.
        model: the model of both graphs.
        other: the graph of the other mode.
        constants: the constants that ``other`` reads.
        reads: the reads of modes while ``gm`` was captured.

    Returns:
        The paths of the modules whose dependence on the mode the graph does not keep, without repetition.
    """
    return _Merge(gm, model, Alignment(gm, other, constants), reads).run()


@dataclasses.dataclass(eq=False)
class _Choice:
    """The values of one hunk that the mode chooses between."""

    hunk: Hunk
    users: list[fx.Node] = dataclasses.field(default_factory=list)
    # (value of the base graph, value of the other graph at the same place) -> the node that chooses between them, once made
    results: dict[tuple[fx.Node, fx.Node], fx.Node | None] = dataclasses.field(default_factory=dict)
    failed: bool = False


class _Merge:
    def __init__(self, gm: CapturedModule, model: nn.Module, alignment: Alignment, reads: ModeReads) -> None:
        self.gm, self.model, self.graph, self.training = gm, model, gm.graph, model.training
        self.reads = reads
        self.aligned = alignment
        self.lost: dict[str, None] = {}
        self.flags: dict[str, fx.Node] = {}  # the last read of each flag for a counter

    def run(self) -> list[str]:
        differences = self.aligned.differences()
        for node in self.aligned.odd():
            self._lose(node)
        choices = {hunk: _Choice(hunk) for hunk in self.aligned.hunks}
        chosen = {d: self._choice(d, choices) for d in differences if d.is_value}
        for choice in dict.fromkeys([*choices.values(), *chosen.values()]):
            try:
                self._settle(choice)
            except _CannotMergeError:
                choice.failed = True
                self._lose((choice.hunk.base or choice.hunk.other or [choice.hunk.at])[0])
        for difference in differences:
            try:
                self._substitute(difference, chosen.get(difference))
            except _CannotMergeError:
                self._lose(difference.user)
        for choice in choices.values():
            if not choice.failed:
                erase_unused(choice.hunk.base)
        return list(self.lost)

    def _choice(self, difference: Difference, choices: dict[Hunk, _Choice]) -> _Choice:
        made = [n for n in (difference.ours, difference.theirs) if n in self.aligned.hunk_of]
        # Two values that both graphs have can be swapped: the choice has a hunk without nodes, at the user.
        choice = choices[self.aligned.hunk_of[made[0]]] if made else _Choice(Hunk([], [], difference.user))
        choice.users.append(difference.user)
        choice.results.setdefault((difference.ours, difference.theirs))
        return choice

    def _substitute(self, difference: Difference, choice: _Choice | None) -> None:
        user, ours, theirs = difference.user, difference.ours, difference.theirs
        if choice is not None and choice.failed:
            return  # reported with the choice
        leaves, spec = flatten(user)
        if choice is not None:
            leaves[difference.place] = choice.results[ours, theirs]
        else:
            in_train, in_eval = (ours, theirs) if self.training else (theirs, ours)
            with self.graph.inserting_before(user):
                leaves[difference.place] = self._choose(user, in_train, in_eval)
        user.args, user.kwargs = pytree.tree_unflatten(leaves, spec)

    def _choose(self, user: fx.Node, in_train: Any, in_eval: Any) -> fx.Node:
        kinds = {type(in_train), type(in_eval)}
        if kinds == {bool}:
            flag = self._flag(user)
            return flag if in_train else self.graph.call_function(layers.invert, (flag,))
        if kinds == {int}:
            return self.graph.call_function(layers.select_int, (self._flag(user), in_train, in_eval))
        if kinds <= {int, float}:
            chosen = (self._flag(user), float(in_train), float(in_eval))
            return self.graph.call_function(layers.select_float, chosen)
        raise _CannotMergeError

    def _flag(self, node: fx.Node) -> fx.Node:
        """Read, at the insertion point, the mode of the module that made ``node``."""
        path = self._owner(node)
        if path is None:
            raise _CannotMergeError
        target = join(path, "training")
        if (flag := self.flags.get(target)) is not None and node.graph is self.graph and flag < node:
            return flag
        ensure_module(self.gm, self.model, path)
        return self.graph.create_node("get_attr", target)

    def _owner(self, node: fx.Node) -> str | None:
        """Return the path of the module whose mode ``node`` depends on; None if several may be it."""
        return self.reads.owner_for(MODULE.get(node) or "")

    def _lose(self, node: fx.Node) -> None:
        self.lost.setdefault(MODULE.get(node) or "")

    def _settle(self, choice: _Choice) -> None:
        hunk = choice.hunk
        if not choice.results and not self._may_write(hunk):
            return  # unused nodes of one mode
        if not (self._settle_counters(choice) or self._settle_dropout(choice)):
            self._settle_by_mode(choice)

    def _settle_counters(self, choice: _Choice) -> bool:
        """Turn each counter that counts in one mode only into one node that counts by a live flag."""
        hunk, twin = choice.hunk, self.aligned.twin
        counters: dict[fx.Node, fx.Node] = {}
        for node in (*hunk.base, *hunk.other):
            if (counter := self._counter(node)) is None:
                return False
            counters[node] = counter
        if not counters:
            return False
        for ours, theirs in choice.results:  # the result of an addition in place is the counter itself
            if (same := counters.get(ours, ours)) is not counters.get(theirs, twin.get(theirs)):
                return False
            choice.results[ours, theirs] = same
        for node, counter in counters.items():
            if not counter < hunk.at or self._is_only_read_by(node, counter):
                hunk.at.prepend(counter)
            with self.graph.inserting_before(hunk.at):
                condition = flag = self._flag(node)
                if (node.graph is self.graph) is not self.training:
                    condition = self.graph.call_function(layers.invert, (flag,))
                counting = self.graph.call_function(layers.add_if_, (counter, node.args[1], condition))
            counting.meta.update((k, v) for k, v in node.meta.items() if k != "val")
            self.flags[str(flag.target)] = flag
        return True

    def _is_only_read_by(self, node: fx.Node, read: fx.Node) -> bool:
        """Tell whether ``node``, of the other graph, is the only user of ``read`` and its twins."""
        users = [user for theirs in self.aligned.reads.get(read, ()) for user in theirs.users]
        return users == [node] and not read.users

    def _counter(self, node: fx.Node) -> fx.Node | None:
        """Return the base node that reads the counter if ``node`` is ``counter += 1``, or with another number."""
        if node.target not in _ADDITIONS or node.kwargs or len(node.args) != 2:
            return None
        counter, number = node.args
        if type(number) not in (int, float) or not isinstance(counter, fx.Node):
            return None
        counter = counter if counter.graph is self.graph else self.aligned.twin.get(counter)
        if counter is None or counter.op != "get_attr" or self._owner(node) is None:
            return None
        value = value_at(self.gm, str(counter.target))
        return counter if isinstance(value, Tensor) and value.dim() == 0 else None

    def _settle_dropout(self, choice: _Choice) -> bool:
        """Turn a dropout that the model skips in eval mode into one node that takes a live flag."""
        hunk, twin = choice.hunk, self.aligned.twin
        nodes = hunk.base if self.training else hunk.other
        if len(hunk.base) + len(hunk.other) != 1 or len(nodes) != 1 or nodes[0].target not in _DROPOUTS:
            return False
        dropout = nodes[0]
        source = dropout.args[0] if self.training else twin.get(dropout.args[0])  # type: ignore[arg-type]
        for ours, theirs in choice.results:
            skipped, applied = (twin.get(theirs), ours) if self.training else (ours, theirs)
            if skipped is not source or applied is not dropout:
                return False
        args, kwargs = [source, *dropout.args[1:]], dict(dropout.kwargs)
        trained = kwargs.get("training", args[2] if len(args) > 2 else True)
        if trained is not True:
            return False
        with self.graph.inserting_before(hunk.at):
            flag = self._flag(dropout)
            if len(args) > 2:
                args[2] = flag
            else:
                kwargs["training"] = flag
            live = self.graph.create_node("call_function", dropout.target, tuple(args), kwargs)
        live.meta.update(dropout.meta)
        choice.results = dict.fromkeys(choice.results, live)
        return True

    def _settle_by_mode(self, choice: _Choice) -> None:
        hunk = choice.hunk
        results, their_results = [a for a, _ in choice.results], [b for _, b in choice.results]
        ours = self._branch_inputs(hunk.base, results, lambda n: n)
        theirs = self._branch_inputs(hunk.other, their_results, self.aligned.twin.get)
        inputs = list(dict.fromkeys([*ours.values(), *theirs.values()]))
        tensors = [n for n in inputs if _is_tensor(n)]
        sizes = [n for n in inputs if n in self.aligned.sizes or isinstance(n.meta.get("val"), int | torch.SymInt)]
        if len(tensors) + len(sizes) != len(inputs) or not all(map(_is_tensor, results)):
            raise _CannotMergeError
        at = self._place(choice, inputs)
        base = self._branch(self.gm, hunk.base, results, ours, tensors, sizes)
        other = self._branch(self.model, hunk.other, their_results, theirs, tensors, sizes)
        made_by = self._owner((hunk.base or hunk.other or [at])[0])
        if made_by is None:
            raise _CannotMergeError
        owner = ensure_module(self.gm, self.model, made_by)
        name = next(n for i in itertools.count() if not hasattr(owner, n := f"by_mode_{i}" if i else "by_mode"))
        by_mode = ByMode(base, other) if self.training else ByMode(other, base)
        owner.add_module(name, by_mode.train(owner.training))
        with self.graph.inserting_before(at):
            call = self.graph.call_module(join(made_by, name), (tensors, sizes))
            for index, pair in enumerate(choice.results):
                choice.results[pair] = part = self.graph.call_function(operator.getitem, (call, index))
                part.meta["val"] = pair[0].meta.get("val")

    def _may_write(self, hunk: Hunk) -> bool:
        return any(may_write(n, self.gm) for n in hunk.base) or any(may_write(n, self.model) for n in hunk.other)

    def _body(self, node: fx.Node) -> fx.GraphModule | None:
        """Return the body of a region that ``node``, of either graph, reads; None if it reads no region."""
        if node.op != "get_attr":
            return None
        constant = self.aligned.constants.get(str(node.target)) if node.graph is not self.graph else None
        return constant if isinstance(constant, fx.GraphModule) else body_of(self.gm, node)

    def _place(self, choice: _Choice, inputs: list[fx.Node]) -> fx.Node:
        """Return the node to insert the choice before: after the hunk and all inputs, and before all users."""
        hunk, late = choice.hunk, [n for n in inputs if not n < choice.hunk.at]
        if not late:
            return hunk.at
        if any(user <= max(late) for user in choice.users) or self._may_write(hunk):
            raise _CannotMergeError
        return max(late).next

    def _branch_inputs(
        self, nodes: list[fx.Node], results: list[fx.Node], to_base: Callable[[fx.Node], fx.Node | None]
    ) -> dict[fx.Node, fx.Node]:
        """Map each node outside the branch that it uses to the same node of the base graph."""
        inputs: dict[fx.Node, fx.Node] = {}
        for node in dict.fromkeys([n for made in nodes for n in made.all_input_nodes] + results):
            if node in nodes or self._body(node) is not None:
                continue
            outside = to_base(node)
            if outside is None or outside in self.aligned.hunk_of:
                raise _CannotMergeError  # only one of the modes has the value
            inputs[node] = outside
        return inputs

    def _branch(
        self,
        root: nn.Module,
        nodes: list[fx.Node],
        results: list[fx.Node],
        inputs: dict[fx.Node, fx.Node],
        tensors: list[fx.Node],
        sizes: list[fx.Node],
    ) -> CapturedModule:
        """Return a graph module of ``nodes``, of the graph on ``root``, as :class:`~fxprune.graph.parts.ByMode` calls it."""
        graph = fx.Graph()
        places: dict[fx.Node, fx.Node] = {}
        for name, kind, members in (("tensors", list[Tensor], tensors), ("sizes", list[int], sizes)):
            placeholder = graph.placeholder(name, type_expr=kind)
            for index, member in enumerate(members):
                places[member] = graph.call_function(operator.getitem, (placeholder, index))
        copies = {node: places[outside] for node, outside in inputs.items()}
        with compiled_later():
            branch = CapturedModule(nn.Module(), fx.Graph(), "Branch")
        used = dict.fromkeys(n for made in nodes for n in made.all_input_nodes if n not in copies)
        for node, body in [(node, body) for node in used if (body := self._body(node)) is not None]:
            name = str(node.target).replace(".", "_")
            branch.add_module(name, body)
            copies[node] = graph.create_node("get_attr", name)
        for node in nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node.op == "call_module":
                module = root.get_submodule(str(node.target))
                if [*module.parameters(), *module.buffers()]:
                    raise _CannotMergeError  # its tensors would change their names
                copies[node].target = name = str(node.target).replace(".", "_")
                branch.add_module(name, clone(module))
        graph.output([copies[node] for node in results])
        erase_unused(list(places.values()))
        branch.graph = graph
        return branch


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)
