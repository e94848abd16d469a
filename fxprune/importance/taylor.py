"""Taylor: how much the loss would change, to first order, if a unit were zero."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fxprune.analysis.dependencies import Dependencies
from fxprune.importance.criterion import GroupCriterion, Normalizer, Reduction, Scorer
from fxprune.importance.gradients import Loss, check_loss, gradients, undisturbed
from fxprune.importance.weights import Sums, Weights, accurate


@dataclass(frozen=True)
class Taylor(GroupCriterion):
    """Score a unit by the square of the sum of gradient times weight over its slice of each parameter.

    Args:
        loss: from the graph to a tensor of one element, such as the loss of some batches. Called once a plan, in the mode the
            graph is in. Modes, buffers, random numbers and ``.grad`` are as before afterwards.
        reduction: how the squares on the parameter axes of a group are combined: "mean", "sum", "max" or "first".
        normalizer: the scale that divides the scores of a group: their "mean", "max" or "sum", or "none". The
            default is "none", as changes of the loss are comparable over groups.

    Raises:
        PruningTypeError: the loss is no function.
        PlanError: an option has another value; when planning, the loss is not one finite number with a gradient.

    Source: Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", arXiv:1906.10771, the first-order
    criterion for a set of parameters that go together.

    Example:
        >>> loss = lambda gm: F.cross_entropy(gm(images), labels)
        >>> fxprune.plan(deps, 0.5, importance=Taylor(loss), scope="global")
    """

    loss: Loss
    reduction: Reduction = "mean"
    normalizer: Normalizer = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss)

    def prepare(self, deps: Dependencies) -> Scorer:
        """Return the scorer of groups by the present gradients."""
        weights = Weights(deps)
        parameters = weights.with_gradients()
        with undisturbed(deps.gm):
            found = gradients(deps.gm, self.loss, parameters.values())
        # The chain rule puts a mask into the gradient, so the product is that of the masked weight.
        products = {name: _real_product(found[p], p.detach()) for name, p in parameters.items()}
        sums = Sums(weights, products.__getitem__)
        return self.over_members(lambda member: sums.of(member).square(), parameters)


def _real_product(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return the part of the first-order change of a real loss that belongs to each weight."""
    if weight.is_complex():
        return (gradient.conj() * weight).real
    return accurate(gradient) * accurate(weight)
