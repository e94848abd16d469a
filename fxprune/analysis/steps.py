"""What an analysis notes on its way: where tensors are made, and where positions are combined."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.algebra.axes import Axis
from fxprune.analysis.sources import Tracked
from fxprune.rules.call import Call
from fxprune.rules.labels import Label, Zero


@dataclass(frozen=True, eq=False)
class Step:
    """One place where a tensor was made: a parameter, or a call of an operator at a node."""

    node: str
    op: str
    tracked: Tracked | None = None
    call: Call | None = None
    results: tuple[Label, ...] = ()

    @property
    def operands(self) -> tuple[Label, ...]:
        """The labels of the tensors that the call was given."""
        return () if self.call is None else tuple(label for label in self.call.operands if label is not None)


@dataclass(frozen=True, eq=False)
class MixingPoint:
    """A place where positions of an axis with units are combined.

    Attributes:
        node: the graph node.
        op: the ATen operator that the node calls there.
        kind: how: "contract", "sum", "mean", "var", "normalize", "softmax", "max", "min", "prod", "norm" or "logsumexp".
        operand: which tensor argument of the operator.
        dim: which dimension of it.
        zero: what a masked graph holds at its removed positions.
        neutral: whether removed positions change nothing there. Where they do, a masked graph needs a correction.
        axis: the positions.
        step: a number that orders the calls.
        name: the name that the operator's rule gives the positions.
    """

    node: str
    op: str
    kind: str
    operand: int
    dim: int
    zero: Zero
    neutral: bool
    axis: Axis
    step: int
    name: str = ""
