"""FPGM: the distance of a unit's weights from the weights of all other units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Member
from fxprune.importance.criterion import GroupCriterion, Normalizer, Reduction, Scorer
from fxprune.importance.weights import Weights, accurate


@dataclass(frozen=True)
class FPGM(GroupCriterion):
    """Score a unit by the sum of the distances between its weights and the weights of every other unit of its group.

    The units of least score lie closest to the geometric median of all, so the rest can replace them. Takes time and memory
    quadratic in the size of a group.

    Args:
        reduction: how the sums on the parameter axes of a group are combined: "mean", "sum", "max" or "first".
        normalizer: the scale that divides the scores of a group: their "mean", "max" or "sum", or "none".

    Raises:
        PlanError: an option has another value.

    Source: He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration",
    arXiv:1811.00250.

    Example:
        >>> fxprune.plan(deps, 0.3, importance=FPGM())
    """

    reduction: Reduction = "mean"
    normalizer: Normalizer = "mean"

    def prepare(self, deps: Dependencies) -> Scorer:
        """Return the scorer of groups by the present weights."""
        weights = Weights(deps)

        def distances(member: Member) -> Tensor:
            value = weights.value(member.parameter)
            value = (torch.view_as_real(value) if value.is_complex() else accurate(value)).movedim(member.dim, 0)
            vectors = value[torch.from_numpy(member.positions).to(value.device)].flatten(1)
            return torch.cdist(vectors, vectors).sum(1)

        return self.over_members(distances)
