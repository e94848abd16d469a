"""FPGM: how far a unit's weights are from those of the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Member
from fxprune.importance.criterion import Criterion, Normalizer, Reduction, Scorer, checked, over_members
from fxprune.importance.weights import Weights, accurate


@dataclass(frozen=True)
class FPGM(Criterion):
    """Score a unit by the sum of the distances between its weights and those of every other unit of its group.

    The units of least score lie closest to the geometric median of all: others can stand in for them. Takes time and memory
    quadratic in the size of a group.

    Args:
        reduction: how the sums on the parameter axes of a group are combined: "mean", "sum", "max" or "first".
        normalizer: what the scores of a group are divided by: their "mean", "max" or "sum", or by nothing, "none".

    Raises:
        PlanError: an option has another value.

    Source: He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration",
    arXiv:1811.00250.

    Example:
        >>> fxprune.plan(deps, 0.3, importance=FPGM())
    """

    reduction: Reduction = "mean"
    normalizer: Normalizer = "mean"

    def __post_init__(self) -> None:
        checked(self.reduction, self.normalizer)

    def prepare(self, deps: Dependencies) -> Scorer:
        """Return what scores the groups of a graph by its weights as they are now."""
        weights = Weights(deps)

        def distances(member: Member) -> Tensor:
            value = accurate(weights.value(member.parameter)).movedim(member.dim, 0)
            vectors = value[torch.from_numpy(member.positions).to(value.device)].flatten(1)
            return torch.cdist(vectors, vectors).sum(1)

        return over_members(distances, self.reduction, self.normalizer)
