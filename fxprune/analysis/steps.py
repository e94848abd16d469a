"""Steps and mixing points, which an analysis notes on its way."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.algebra.axes import Axis
from fxprune.analysis.sources import Tracked
from fxprune.rules.call import Call
from fxprune.rules.labels import Label, Zero


@dataclass(frozen=True, eq=False)
class Step:
    """A place where tensors are made: a parameter, or a call of an operator at a node."""

    node: str
    op: str
    tracked: Tracked | None = None
    call: Call | None = None
    results: tuple[Label, ...] = ()

    @property
    def operands(self) -> tuple[Label, ...]:
        """The labels of the tensor arguments of the call."""
        return () if self.call is None else tuple(label for label in self.call.operands if label is not None)


@dataclass(frozen=True, eq=False)
class MixingPoint:
    """A place where positions of an axis with units are combined.

    Attributes:
        node: the graph node.
        op: the ATen operator that the node calls there.
        kind: "contract", "sum", "mean", "var", "normalize", "softmax", "max", "min", "prod", "norm" or "logsumexp".
        operand: the number of the operator's tensor argument.
        dim: the dimension of the operand.
        zero: the values of a masked graph at the removed positions.
        neutral: whether removed positions do not change the result; if they do, a masked graph needs a correction.
        axis: the axis whose positions are combined.
        step: the number of the step; later calls have higher numbers.
        name: the name of the axis in the operator's rule.
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
