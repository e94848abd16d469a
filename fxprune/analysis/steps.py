"""Steps and mixing points, which an analysis notes on its way."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.analysis.sources import Tracked
from fxprune.rules.call import Call, Mixing
from fxprune.rules.labels import Label


@dataclass(frozen=True, eq=False)
class Step:
    """A place where tensors are made: a parameter, or a call of an operator at a node; ``within`` is the node's own name.

    A node of a region, a graph that a node of the graph runs, goes by the name of that node; its own name starts with it.
    """

    node: str
    op: str
    tracked: Tracked | None = None
    call: Call | None = None
    results: tuple[Label, ...] = ()
    within: str = ""

    @property
    def operands(self) -> tuple[Label, ...]:
        """The labels of the tensor arguments of the call."""
        return () if self.call is None else tuple(label for label in self.call.operands if label is not None)


@dataclass(frozen=True, eq=False, kw_only=True)
class MixingPoint(Mixing):
    """A place in the graph where positions of an axis with units are combined.

    Attributes:
        node: the graph node.
        op: the ATen operator that the node calls there.
        step: the number of the step; later calls have higher numbers.
    """

    node: str
    op: str
    step: int
