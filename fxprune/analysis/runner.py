"""Runs a graph node by node under a watch, which sees what the nodes call."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, fx

from fxprune.errors import AnalysisError, FxpruneError
from fxprune.functional import layers
from fxprune.graph.interpreter import NodeRunner
from fxprune.graph.parts import ByMode


class Watch(Protocol):
    """What a run tells where it is."""

    counts: bool
    """Whether what runs is work."""

    def at(self, node: fx.Node, inside: str) -> None:
        """Take note of the node that runs next, of the graph or of one inside."""

    def finish(self, node: fx.Node, value: Any, inside: str) -> None:
        """Take note of a node's value."""

    def forget(self, tensor: Tensor) -> None:
        """Expect no zeros and no known values of whatever shares the memory of a tensor that is written to."""

    def couple(self, one: Any, other: Any) -> None:
        """Say that two results, of the two modes, stand for the same."""


class Run(NodeRunner):
    """Runs the graph under a watch, which it tells where it is."""

    def __init__(self, gm: fx.GraphModule, watch: Watch, inside: str = "") -> None:
        super().__init__(gm, garbage_collect_values=False)  # the calls keep them anyway
        self.extra_traceback = False  # the error names the node
        self.watch = watch
        self.inside = inside

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        self.watch.at(n, self.inside)
        try:
            value = self._branches(n) if n.op == "call_module" else super().run_node(n)
        except FxpruneError:
            raise
        except Exception as error:
            raise AnalysisError(
                f"node {n.name!r} ({n.op} {n.target}) cannot run on fake tensors: {str(error).partition(chr(10))[0]}"
            ) from error
        self.watch.finish(n, value, self.inside)
        return value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function."""
        if target is layers.add_if_:
            self.watch.forget(args[0])  # it is written to in the other mode, if not in this one
        return super().call_function(target, args, kwargs)

    def _branches(self, node: fx.Node) -> Any:
        """Call a module; of one that differs by mode both versions, since dependencies have to hold in either."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        module = self.fetch_attr(str(node.target))
        if not isinstance(module, ByMode):
            return module(*args, **kwargs)
        counts, results = self.watch.counts, list[Any]()
        for inside, branch in module.branches(self.inside + node.name):
            # Only what runs in the present mode is work.
            self.watch.counts = counts and branch is (module.in_train if module.training else module.in_eval)
            results.append(Run(branch, self.watch, inside).run(*args, *kwargs.values()))
        in_train, in_eval = results
        self.watch.counts = counts
        self.watch.at(node, self.inside)
        self.watch.couple(in_train, in_eval)
        return in_train if module.training else in_eval
