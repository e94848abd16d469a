"""Magnitude: the norm of a unit's weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.analysis.dependencies import Dependencies
from fxprune.errors import PlanError
from fxprune.importance.criterion import GroupCriterion, Normalizer, Reduction, Scorer
from fxprune.importance.weights import Sums, Weights


@dataclass(frozen=True)
class Magnitude(GroupCriterion):
    """Score a unit by the p-norm of its weights.

    On every parameter axis of its group a unit has a slice, or several. ``reduction`` combines the norms of slices on
    different axes; ``normalizer`` makes groups comparable.

    Args:
        p: the order of the norm, positive and finite.
        reduction: "mean", "sum" or "max" over the axes, or "first" for the first axis in ``group.members``.
        normalizer: the scale that divides the scores of a group: their "mean", "max" or "sum", or "none".

    Raises:
        PlanError: an option has another value.

    Source: Li et al. 2017, arXiv:1608.08710, for the filters of one layer.

    Example:
        >>> fxprune.plan(deps, 0.5, importance=Magnitude(p=1))
    """

    p: float = 2
    reduction: Reduction = "mean"
    normalizer: Normalizer = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.p, bool) or not isinstance(self.p, int | float) or not 0 < self.p < math.inf:
            raise PlanError(f"p must be a positive, finite number, not {self.p!r}")

    def prepare(self, deps: Dependencies) -> Scorer:
        """Return the scorer of groups by the present weights."""
        sums = powers(Weights(deps), self.p)
        return self.over_members(lambda member: sums.of(member) ** (1 / self.p))


def powers(weights: Weights, p: float) -> Sums:
    """Return the sums of ``|w| ** p``."""

    def power(value: Tensor, out: Tensor | None) -> Tensor:
        if p == 2:
            return torch.square(value, out=out)
        absolute = torch.abs(value, out=out)
        return absolute if p == 1 else torch.pow(absolute, p, out=out)

    return Sums(weights, weights.value, power)
