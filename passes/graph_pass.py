"""The base class of passes; ``README.md`` says how to write a pass."""

from __future__ import annotations

import abc
from collections.abc import Iterable

from torch import fx
from torch.fx.passes.infra.pass_base import PassResult

from fxprune.graph.captured import as_editable


class GraphPass(abc.ABC):
    """A rewrite of a graph in place; each is a frozen dataclass, whose fields are its options.

    A pass is called on a graph, as by torch's PassManager. It does not inherit torch's PassBase, which calls ``ensures`` on the
    graph that went in.
    """

    def requires(self, gm: fx.GraphModule) -> None:  # noqa: B027 (most passes require nothing)
        """Raise unless the pass can run on the graph; nothing has changed then."""

    @abc.abstractmethod
    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Rewrite the graph, which is not recompiled, and tell whether that changed anything."""

    def ensures(self, gm: fx.GraphModule) -> None:  # noqa: B027 (some passes ensure nothing that can be looked up)
        """Raise AssertionError unless the graph is as the pass leaves it; for tests."""

    def run(self, gm: fx.GraphModule) -> PassResult:
        """Rewrite the graph and compile it anew if that changed anything."""
        modified = self.rewrite(gm)
        if modified:
            gm.recompile()
        return PassResult(gm, modified)

    def __call__(self, graph_module: fx.GraphModule) -> PassResult:
        """Run the pass in place."""
        self.requires(as_editable(graph_module))
        return self.run(graph_module)


def run_all(passes: Iterable[GraphPass], gm: fx.GraphModule) -> bool:
    """Run passes one after the other; tell whether any of them changed the graph."""
    modified = False
    for each in passes:
        modified |= each(gm).modified
    return modified
