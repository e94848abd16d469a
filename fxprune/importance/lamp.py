"""LAMP: magnitudes relative to the magnitudes of all units that would be left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.analysis.dependencies import Dependencies
from fxprune.importance.criterion import GroupCriterion, Reduction, Scorer
from fxprune.importance.magnitude import powers
from fxprune.importance.weights import Weights


@dataclass(frozen=True)
class LAMP(GroupCriterion):
    """Score a unit by its share in the squared weights of all units of its group that are no smaller.

    The largest unit of each group scores 1, so that one threshold over all groups takes from each group as much as its
    distribution bears: made for ``scope="global"``. Within a group the order is that of :class:`Magnitude` over squared norms.

    Args:
        reduction: how the squared norms on the parameter axes of a group are combined: "mean", "sum", "max" or "first".

    Raises:
        PlanError: the reduction is none of these.

    Source: Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning", arXiv:2010.07611, for units in place
    of single weights.

    Example:
        >>> fxprune.plan(deps, 0.5, importance=LAMP(), scope="global")
    """

    reduction: Reduction = "mean"

    def prepare(self, deps: Dependencies) -> Scorer:
        """Return the scorer of groups by the present weights."""
        squares = self.over_members(powers(Weights(deps), 2).of)
        return lambda group: _share_of_rest(squares(group))


def _share_of_rest(squares: Tensor) -> Tensor:
    order = squares.argsort(descending=True, stable=True)
    falling = squares[order]
    rest = falling.cumsum(0)
    shares = torch.empty_like(squares)
    shares[order] = falling / torch.where(rest == 0, torch.ones_like(rest), rest)
    return shares
