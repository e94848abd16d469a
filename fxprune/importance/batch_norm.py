"""BatchNormScale: the factors by which batch norms multiply the channels of a unit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group
from fxprune.importance.criterion import Criterion, Normalizer, Reduction, Scorer, checked, combined, normalized
from fxprune.importance.magnitude import Magnitude
from fxprune.importance.weights import Weights, accurate, by_unit
from fxprune.rules.labels import Label
from fxprune.rules.registry import op_card

_PRODUCTS = {torch.ops.aten.mul}  # with a mask


@dataclass(frozen=True)
class BatchNormScale(Criterion):
    """Score a unit by the absolute values of the batch-norm scales on its channels.

    Scales are recognised by their use: as the scale argument of a batch-norm operator. A group that meets no batch norm is
    scored by ``Magnitude(reduction=reduction, normalizer=normalizer)`` instead.

    Args:
        reduction: how the scales of several batch norms are combined: "mean", "sum", "max" or "first".
        normalizer: what the scores of a group are divided by: their "mean", "max" or "sum", or by nothing, "none".

    Raises:
        PlanError: an option has another value.

    Source: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", arXiv:1708.06519.

    Example:
        >>> fxprune.plan(deps, 0.5, importance=BatchNormScale(), scope="global")
    """

    reduction: Reduction = "mean"
    normalizer: Normalizer = "mean"

    def __post_init__(self) -> None:
        checked(self.reduction, self.normalizer)

    def prepare(self, deps: Dependencies) -> Scorer:
        """Return what scores the groups of a graph by its weights as they are now."""
        scales = batch_norm_scales(deps)
        fallback = Magnitude(reduction=self.reduction, normalizer=self.normalizer).prepare(deps)
        weights = Weights(deps)
        known: dict[str, Tensor] = {}

        def scorer(group: Group) -> Tensor:
            found = []
            for member in group.members:
                if member.parameter in scales and not member.is_buffer:
                    if member.parameter not in known:
                        known[member.parameter] = accurate(weights.value(member.parameter)).abs()
                    scores = by_unit(known[member.parameter], member.positions)
                    found.append(scores / member.positions.shape[1])
            return normalized(combined(found, self.reduction), self.normalizer) if found else fallback(group)

        return scorer


def batch_norm_scales(deps: Dependencies) -> set[str]:
    """Return the names of the parameters that enter a batch norm as its scale, masked ones included."""
    found: set[str] = set()
    for step in deps.steps:
        place = None if step.call is None else op_card(step.call.op).batch_norm_scale
        scale = None if place is None or step.call is None else step.call.operands[place]
        if scale is not None:
            found.update(_factors(deps, scale))
    return found


def _factors(deps: Dependencies, label: Label) -> Iterator[str]:
    """Yield the names of the parameters that a tensor is, or is a product of."""
    made = deps.steps[label.producer] if label.producer >= 0 else None
    if made is not None and made.tracked is not None and made.tracked.is_parameter:
        yield made.tracked.name
    elif made is not None and made.call is not None and made.call.op.overloadpacket in _PRODUCTS:
        for operand in made.operands:
            yield from _factors(deps, operand)
