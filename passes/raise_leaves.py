"""Raise: put lowered leaf modules back where their nodes are still as lowering wrote them.

The pattern to look for is made by lowering the module once more, into a scratch graph. So nothing about the first time
needs to be remembered, and a graph that was copied, pickled or rewritten elsewhere in between is raised all the same.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from torch import Tensor, fx, nn

from fxprune.graph.masks import all_masked
from fxprune.graph.metadata import CALL, PATH
from fxprune.graph.parts import Lowered, fill
from fxprune.graph.paths import erase_unused, replace_modules, value_at
from fxprune.passes.graph_pass import GraphPass
from fxprune.passes.lower import emit, take_over
from fxprune.torch_internals.graphs import is_erased


@dataclasses.dataclass(frozen=True)
class RaiseLeaves(GraphPass):
    """Pass: put back every lowered leaf module that no mask stands in any more.

    A module whose nodes another pass has changed stays written out.

    Ensures: after ``Lower`` and nothing else, the graph's text is the one before.
    """

    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Put the modules back, in place."""
        every = [(path, module) for path, module in gm.named_modules() if isinstance(module, Lowered)]
        tops = [(path, module) for path, module in every if not any(path.startswith(p + ".") for p, _ in every)]
        masked = {entry.orig for entry in all_masked(gm)} if tops else set()
        ready = [(path, module) for path, module in tops if masked.isdisjoint(module.parameters())]
        reads = readers(gm) if ready else {}
        restored: dict[nn.Module, nn.Module] = {}
        for path, lowered in ready:
            module = lowered.restore()
            if _raise(gm, path, lowered, module, reads):
                restored[lowered] = module
        replace_modules(gm, restored)
        return bool(restored)


def readers(gm: fx.GraphModule) -> dict[Tensor, list[fx.Node]]:
    """Map each tensor that the graph reads to the get_attr nodes that read it, in their order."""
    found: dict[Tensor, list[fx.Node]] = {}
    for node in gm.graph.find_nodes(op="get_attr"):
        if isinstance(value := value_at(gm, str(node.target)), Tensor):
            found.setdefault(value, []).append(node)
    return found


def _raise(gm: fx.GraphModule, path: str, lowered: Lowered, module: nn.Module, reads: dict[Tensor, list[fx.Node]]) -> bool:
    """Put calls of ``module`` in place of its nodes; tell whether there were any."""
    present = [node for p in module.parameters() for node in reads.get(p, ()) if not is_erased(node)]
    users = list(dict.fromkeys(user for node in present for user in node.users))
    if next(module.parameters(), None) is None:
        users = [node for node in gm.graph.nodes if CALL.get(node) is not None]
    found = False
    for index, (args, kwargs) in enumerate(lowered.calls):
        pattern = _pattern(module, path, args, kwargs)
        for site in users:
            if is_erased(site) or CALL.get(site) not in (None, index):
                continue
            # Tied layers are written out alike, and a layer that is registered twice is called by either name.
            name = PATH.get(site) or path
            if isinstance(owner := value_at(gm, name), Lowered) and owner is not lowered:
                continue
            matcher = _Matcher(gm, module, path)
            if matcher.same(pattern, site):
                _put_call(gm.graph, name if owner is lowered else path, args, kwargs, matcher.matched)
                found = True
    return found


def _pattern(module: nn.Module, path: str, args: Any, kwargs: Any) -> fx.Node:
    """Return the root of the module's functional form in a graph of its own, with placeholders for the slots."""
    scratch = fx.Graph()
    args, kwargs = fill((args, kwargs), functools.cache(scratch.placeholder))
    return emit(module, path, scratch, args, kwargs)


def _put_call(graph: fx.Graph, path: str, args: Any, kwargs: Any, matched: dict[fx.Node, fx.Node]) -> None:
    """Put the call of a module in place of the nodes that were matched, inputs before users, the root last."""
    slots = {pattern.target: node for pattern, node in matched.items() if pattern.op == "placeholder"}
    *inner, root = (node for pattern, node in matched.items() if pattern.op != "placeholder")
    args, kwargs = fill((args, kwargs), slots.__getitem__)
    with graph.inserting_before(root):
        call = graph.call_module(path, args, kwargs)
    take_over(root, call)
    erase_unused(inner)


class _Matcher:
    """Compares nodes of the graph with a pattern, from a root back to the slots; ``matched`` maps pattern to node."""

    def __init__(self, gm: fx.GraphModule, module: nn.Module, path: str) -> None:
        self.gm, self.module, self.path = gm, module, path
        self.matched: dict[fx.Node, fx.Node] = {}

    def same(self, pattern: fx.Node, node: fx.Node) -> bool:
        """Tell whether a node is computed as the pattern says."""
        if pattern in self.matched:
            return self.matched[pattern] is node
        if pattern.op == "get_attr":
            same = node.op == "get_attr" and (node.target == pattern.target or self._same_tensor(pattern, node))
        else:
            same = pattern.op == "placeholder" or (
                node.op == pattern.op and node.target == pattern.target and self._same_arguments(pattern, node)
            )
        if same:
            self.matched[pattern] = node
        return same

    def _same_tensor(self, pattern: fx.Node, node: fx.Node) -> bool:
        """Tell whether both read one tensor: a tied parameter may be read under another of its names."""
        value = value_at(self.module, str(pattern.target).removeprefix(f"{self.path}."))
        return isinstance(value, Tensor) and value_at(self.gm, str(node.target)) is value

    def _same_arguments(self, pattern: fx.Node, node: fx.Node) -> bool:
        (ours, plain), (theirs, other) = _split(pattern), _split(node)
        return len(ours) == len(theirs) and plain == other and all(map(self.same, ours, theirs))


def _split(node: fx.Node) -> tuple[list[fx.Node], Any]:
    """Return the nodes that a node reads, as often as it does, and its arguments with an ellipsis in place of each."""
    found: list[fx.Node] = []

    def blank(argument: fx.Node) -> Any:
        found.append(argument)
        return Ellipsis

    return found, fx.map_arg((node.args, node.kwargs), blank)
