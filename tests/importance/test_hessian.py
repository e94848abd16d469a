"""Hessian against the exact diagonal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

import fxprune
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


class Fused(nn.Module):
    """Layers for which torch has fused kernels."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.up, self.down = kind, nn.Linear(4, 24), nn.Linear(8, 2)
        self.layer: nn.Module = (
            nn.MultiheadAttention(8, 2, batch_first=True) if kind == "layer" else nn.LSTM(4, 8, batch_first=True)
        )
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "recurrent":
            return self.down(self.layer(x)[0])
        q, k, v = self.up(x).chunk(3, -1)
        if self.kind == "layer":
            return self.down(self.layer(q, k, v, need_weights=False)[0])
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.kind == "causal")
        return self.down(self.out(mixed.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("kind", ["plain", "causal", "layer", "recurrent"])
@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_fused_kernels_are_differentiated_twice(kind: str, frontend: Any) -> None:
    torch.manual_seed(0)
    model, x = Fused(kind).eval(), torch.randn(2, 3, 4)
    deps = fxprune.analyze(fxprune.capture(model, x, frontend=frontend))
    scores = [Hessian(lambda gm: gm(x).square().sum())(deps, group) for group in deps.groups]
    double = fxprune.analyze(fxprune.capture(model.double(), x.double(), frontend=frontend))
    for group, score in zip(double.groups, scores, strict=True):
        exact = Hessian(lambda gm: gm(x.double()).square().sum())(double, group)
        torch.testing.assert_close(score.double(), exact, rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_differentiable_once_is_named() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, given: Tensor) -> Tensor:
            return given * 2

    deps = deps_of(net())
    with pytest.raises(PlanError, match="Hessian needs a loss that is twice differentiable: a part of it is marked"):
        plan(deps, 0.5, importance=Hessian(lambda gm: Once.apply(loss(gm)).square()))
