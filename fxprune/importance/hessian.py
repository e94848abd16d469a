"""Hessian: how much the loss would change, to second order, if a unit were zero in a minimum of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxprune.analysis.dependencies import Dependencies
from fxprune.errors import PlanError, in_short
from fxprune.importance.criterion import GroupCriterion, Normalizer, Reduction, Scorer
from fxprune.importance.gradients import Loss, check_loss, gradients, undisturbed
from fxprune.importance.weights import Sums, Weights, accurate
from fxprune.torch_internals.switches import attention_as_products, no_mkldnn


@dataclass(frozen=True)
class Hessian(GroupCriterion):
    """Score a unit by the sum of ``h * w ** 2 / 2`` over its slice of each parameter, h on the diagonal of the Hessian.

    The diagonal is estimated by Hutchinson's method: the mean of ``z * (H z)`` over random vectors z of signs, which needs one
    product with the Hessian a sample. Its error falls with the square root of the number of samples; where the Hessian is
    diagonal one sample is exact. Sums of either sign count by their size.

    Args:
        loss: from the graph to a tensor of one element, such as the loss of some batches; it has to be twice differentiable.
            Called once a plan, in the mode the graph is in. Modes, buffers, random numbers and ``.grad`` are as before
            afterwards.
        samples: how many random vectors, 8 unless given.
        seed: where the random vectors start, so that plans repeat.
        reduction: how the sums on the parameter axes of a group are combined: "mean", "sum", "max" or "first".
        normalizer: the scale that divides the scores of a group: their "mean", "max" or "sum", or "none".

    Raises:
        PruningTypeError: the loss is no function.
        PlanError: an option has another value; when planning, the loss is not one finite number that has a gradient twice.

    Source: LeCun et al. 1989, "Optimal Brain Damage"; for the diagonal Yao et al. 2020, "AdaHessian", arXiv:2006.00719.

    Example:
        >>> loss = lambda gm: F.cross_entropy(gm(images), labels)
        >>> fxprune.plan(deps, 0.5, importance=Hessian(loss, samples=32), scope="global")
    """

    loss: Loss
    samples: int = 8
    seed: int = 0
    reduction: Reduction = "mean"
    normalizer: Normalizer = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss)
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 1:
            raise PlanError(f"samples must be a positive number, not {self.samples!r}")

    def prepare(self, deps: Dependencies) -> Scorer:
        """Return the scorer of groups by the Hessian at the present weights."""
        weights = Weights(deps)
        parameters = weights.with_gradients()
        # Fused kernels of attention and of recurrent layers can be differentiated once.
        with undisturbed(deps.gm), attention_as_products(), no_mkldnn():
            first = gradients(deps.gm, self.loss, parameters.values(), differentiable=True)
            diagonal = self._diagonal(first)
        # The chain rule puts the square of a mask into the Hessian, so the product is that of the masked weight.
        products = {name: diagonal[p] * accurate(p.detach()) ** 2 / 2 for name, p in parameters.items()}
        sums = Sums(weights, products.__getitem__)
        return self.over_members(lambda member: sums.of(member).abs(), parameters)

    def _diagonal(self, first: dict[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
        """Return the estimate of the diagonal, given differentiable gradients."""
        if _ends_early(list(first.values())):
            raise PlanError("Hessian needs a loss that is twice differentiable: a part of it is marked as once_differentiable")
        generator = torch.Generator().manual_seed(self.seed)
        total = {p: torch.zeros_like(accurate(p.detach())) for p in first}
        used = {p: g for p, g in first.items() if g.requires_grad}
        for sample in range(self.samples if used else 0):
            signs = {p: (torch.randint(0, 2, p.shape, generator=generator) * 2 - 1).to(p) for p in used}
            keep = sample + 1 < self.samples
            try:
                products = torch.autograd.grad(
                    list(used.values()), list(used), list(signs.values()), retain_graph=keep, allow_unused=True
                )
            except RuntimeError as error:
                raise PlanError(f"Hessian needs a loss that is twice differentiable: {in_short(error)}") from error
            for (p, sign), product in zip(signs.items(), products, strict=True):
                if product is not None:
                    total[p] += accurate(product * sign)
        return {p: value / self.samples for p, value in total.items()}


def _ends_early(gradients: list[Tensor]) -> bool:
    """Tell whether a backward that must not be differentiated gave a part of gradients; torch passes over it in silence."""
    ahead, seen = [g.grad_fn for g in gradients], set()
    while ahead:
        if (function := ahead.pop()) is None or function in seen:
            continue
        if function.name().endswith("::Error"):  # of torch.autograd.function.once_differentiable
            return True
        seen.add(function)
        ahead += [each for each, _ in function.next_functions]
    return False
