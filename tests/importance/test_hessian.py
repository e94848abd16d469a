"""Hessian against the exact diagonal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx
from torch.func import functional_call, hessian

from fxprune.errors import PlanError
from fxprune.importance import Hessian
from fxprune.planning.planner import plan
from tests.importance.nets import deps_of, loss, net, parameters, slices


def test_a_diagonal_hessian_takes_one_sample() -> None:
    deps = deps_of(net())

    def separate(gm: fx.GraphModule) -> Tensor:
        return torch.stack([(p**4).sum() for p in gm.parameters()]).sum()

    weights = parameters(deps.gm)
    for group in deps.groups:
        # Half of 12 w ** 2, the second derivative, times w ** 2.
        expected = torch.tensor([[float(6 * (part**4).sum()) for part in member] for member in slices(weights, group)]).mean(0)
        torch.testing.assert_close(Hessian(separate, samples=1)(deps, group).float(), expected)


def test_many_samples_come_close_to_the_exact_diagonal() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    deps = deps_of(model, x)
    weights = parameters(deps.gm)
    second = hessian(lambda w: functional_call(deps.gm, w, (x,)).square().mean())(weights)
    diagonal = {n: second[n][n].reshape(w.numel(), w.numel()).diagonal().reshape(w.shape) for n, w in weights.items()}
    saliency = {n: diagonal[n] * w**2 / 2 for n, w in weights.items()}
    (group,) = deps.groups
    expected = torch.tensor([[float(part.sum()) for part in member] for member in slices(saliency, group)]).abs().mean(0)
    found = Hessian(lambda gm: gm(x).square().mean(), samples=4000)(deps, group)
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.01)


def test_plans_repeat() -> None:
    deps = deps_of(net())
    texts = [plan(deps, 0.5, importance=Hessian(loss, samples=2, seed=seed), scope="global").to_json() for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("samples", [0, True, 1.5])
def test_samples_out_of_range(samples: int) -> None:
    with pytest.raises(PlanError, match="samples must be a positive number"):
        Hessian(loss, samples=samples)
