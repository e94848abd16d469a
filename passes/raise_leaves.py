"""Raise: put lowered leaf modules back where their nodes are still as lowering wrote them.

The pattern to look for is made by lowering the module once more, into a scratch graph. So nothing about the first time
needs to be remembered, and a graph that was copied, pickled or rewritten elsewhere in between is raised all the same.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx, nn

from fxprune.graph.arguments import map_aggregate
from fxprune.graph.masks import all_masked
from fxprune.graph.metadata import CALL, PATH
from fxprune.graph.parts import Lowered, Slot
from fxprune.graph.paths import all_modules, join, replace_modules, value_at
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
        every = [(path, module) for path, module in all_modules(gm) if isinstance(module, Lowered)]
        tops = [(path, module) for path, module in every if not any(path.startswith(p + ".") for p, _ in every)]
        masked = {entry.orig for entry in all_masked(gm)} if tops else set()
        ready = [(path, module) for path, module in tops if masked.isdisjoint(module.parameters())]
        readers = _readers(gm) if ready else {}
        tensor_of = {node: key for key, nodes in readers.items() for node in nodes}
        restored: dict[nn.Module, nn.Module] = {}
        for path, lowered in ready:
            module = lowered.restore()
            if _raise(gm, path, lowered, module, readers, tensor_of):
                restored[lowered] = module
        replace_modules(gm, restored)
        return bool(restored)


@dataclasses.dataclass
class _Match:
    """Where a pattern was found: its root, all its nodes (inputs before users), and the nodes in place of the slots."""

    root: fx.Node
    nodes: list[fx.Node]
    slots: dict[str, fx.Node]


def _readers(gm: fx.GraphModule) -> dict[Tensor, list[fx.Node]]:
    """Map each tensor of the graph to the get_attr nodes that read it."""
    tensors = dict(gm.named_parameters(remove_duplicate=False)) | dict(gm.named_buffers(remove_duplicate=False))
    readers: dict[Tensor, list[fx.Node]] = collections.defaultdict(list)
    for node in gm.graph.find_nodes(op="get_attr"):
        if node.target in tensors:
            readers[tensors[node.target]].append(node)
    return readers


def _raise(
    gm: fx.GraphModule,
    path: str,
    lowered: Lowered,
    module: nn.Module,
    readers: dict[Tensor, list[fx.Node]],
    tensor_of: dict[fx.Node, Tensor],
) -> bool:
    """Put calls of ``module`` in place of its nodes; tell whether there were any."""
    reads = [node for p in module.parameters() for node in readers.get(p, ()) if not is_erased(node)]
    users = list(dict.fromkeys(user for node in reads for user in node.users))
    if next(module.parameters(), None) is None:
        users = [node for node in gm.graph.nodes if CALL.get(node) is not None]
    found = False
    for index, (args, kwargs) in enumerate(lowered.calls):
        pattern = _pattern(module, path, args, kwargs)
        for site in users:
            if is_erased(site) or CALL.get(site) not in (None, index):
                continue
            # Layers that are tied are written out alike, and one that is registered twice is called by either name.
            name = PATH.get(site) or path
            if isinstance(owner := value_at(gm, name), Lowered) and owner is not lowered:
                continue
            match = _Matcher(module, path, tensor_of).run(pattern, site)
            if match is None:
                continue
            _put_call(gm.graph, name if owner is lowered else path, args, kwargs, match)
            found = True
    return found


def _pattern(module: nn.Module, path: str, args: Any, kwargs: Any) -> fx.Node:
    """Return the root of the module's functional form in a graph of its own, with placeholders for the slots."""
    scratch = fx.Graph()
    inputs: dict[str, fx.Node] = {}

    def to_input(value: Any) -> Any:
        if not isinstance(value, Slot):
            return value
        if value not in inputs:
            inputs[value] = scratch.create_node("placeholder", str(value), name=f"slot_{len(inputs)}")
        return inputs[value]

    args, kwargs = map_aggregate(args, to_input), map_aggregate(kwargs, to_input)
    return emit(module, path, scratch, args, kwargs)


def _put_call(graph: fx.Graph, path: str, args: Any, kwargs: Any, match: _Match) -> None:
    def fill(value: Any) -> Any:
        return match.slots[value] if isinstance(value, Slot) else value

    with graph.inserting_before(match.root):
        call = graph.call_module(path, map_aggregate(args, fill), map_aggregate(kwargs, fill))
    take_over(match.root, call)
    for node in reversed(match.nodes[:-1]):
        if not is_erased(node) and not node.users:
            graph.erase_node(node)


class _Matcher:
    """Compares nodes of the graph with a pattern, from a root back to the slots."""

    def __init__(self, module: nn.Module, path: str, tensor_of: dict[fx.Node, Tensor]) -> None:
        named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        self.targets = {join(path, name): tensor for name, tensor in named if isinstance(tensor, Tensor)}
        self.tensor_of = tensor_of

    def run(self, pattern: fx.Node, site: fx.Node) -> _Match | None:
        matched: dict[fx.Node, fx.Node] = {}
        if not self._same(pattern, site, matched):
            return None
        slots = {str(p.target): n for p, n in matched.items() if p.op == "placeholder"}
        nodes = [n for p, n in matched.items() if p.op != "placeholder"]
        return _Match(site, nodes, slots)

    def _same(self, pattern: fx.Node, node: fx.Node, matched: dict[fx.Node, fx.Node]) -> bool:
        if pattern in matched:
            return matched[pattern] is node
        if pattern.op == "get_attr":
            # A tied parameter may be read under another of its names.
            same = node.op == "get_attr" and (
                node.target == pattern.target
                or (node in self.tensor_of and self.tensor_of[node] is self.targets.get(str(pattern.target)))
            )
        else:
            same = pattern.op == "placeholder" or (
                node.op == pattern.op and node.target == pattern.target and self._same_arguments(pattern, node, matched)
            )
        if same:
            matched[pattern] = node
        return same

    def _same_arguments(self, pattern: fx.Node, node: fx.Node, matched: dict[fx.Node, fx.Node]) -> bool:
        ours, theirs = list(_nodes_in(pattern)), list(_nodes_in(node))
        return (
            len(ours) == len(theirs)
            and _without_nodes(pattern) == _without_nodes(node)
            and all(self._same(p, n, matched) for p, n in zip(ours, theirs, strict=True))
        )


def _nodes_in(node: fx.Node) -> Iterator[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), lambda n: found.append(n) or n)  # type: ignore[func-returns-value]
    return iter(found)


def _without_nodes(node: fx.Node) -> Any:
    blank: Callable[[fx.Node], Any] = lambda _: Ellipsis  # noqa: E731 (map_arg's annotation knows only graph arguments)
    return fx.map_arg((node.args, node.kwargs), blank)
