"""BatchNormScale: the factors by which batch norms multiply the channels of a unit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group
from fxprune.importance.criterion import GroupCriterion, Normalizer, Reduction, Scorer
from fxprune.importance.magnitude import Magnitude, powers
from fxprune.importance.weights import Weights
from fxprune.rules.labels import Label
from fxprune.rules.registry import op_card


@dataclass(frozen=True)
class BatchNormScale(GroupCriterion):
    """Score a unit by the absolute values of the batch-norm scales on its channels.

    Scales are recognised by their use: as the scale argument of a batch-norm operator. A group that meets no batch norm is
    scored by ``Magnitude(reduction=reduction, normalizer=normalizer)`` instead.

    Args:
        reduction: how the scales of several batch norms are combined: "mean", "sum", "max" or "first".
        normalizer: the scale that divides the scores of a group: their "mean", "max" or "sum", or "none".

    Raises:
        PlanError: an option has another value.

    Source: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", arXiv:1708.06519.

    Example:
        >>> fxprune.plan(deps, 0.5, importance=BatchNormScale(), scope="global")
    """

    reduction: Reduction = "mean"
    normalizer: Normalizer = "mean"

    def prepare(self, deps: Dependencies) -> Scorer:
        """Return the scorer of groups by the present weights."""
        scales = batch_norm_scales(deps)
        fallback = Magnitude(reduction=self.reduction, normalizer=self.normalizer).prepare(deps)
        sums = powers(Weights(deps), 1)

        def scorer(group: Group) -> Tensor:
            members = [m for m in group.on_parameters if m.parameter in scales]
            if not members:
                return fallback(group)
            return self.combined([sums.of(m) / m.positions.shape[1] for m in members])

        return scorer


def batch_norm_scales(deps: Dependencies) -> set[str]:
    """Return the names of the parameters, masked or not, that a batch norm takes as its scale."""
    found: set[str] = set()
    for call in (step.call for step in deps.steps if step.call is not None):
        place = op_card(call.op).batch_norm_scale
        if place is not None and (scale := call.operands[place]) is not None:
            found.update(_factors(deps, scale))
    return found


def _factors(deps: Dependencies, label: Label) -> Iterator[str]:
    """Yield the name of the parameter that a tensor is, or the names of its factors."""
    made = deps.steps[label.producer] if label.producer >= 0 else None
    if made is not None and made.tracked is not None and made.tracked.is_parameter:
        yield made.tracked.name
    elif made is not None and made.call is not None and made.call.op.overloadpacket is torch.ops.aten.mul:  # with a mask
        for operand in made.operands:
            yield from _factors(deps, operand)
