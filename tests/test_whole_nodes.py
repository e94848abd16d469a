"""One node that cannot be analysed or rewritten keeps its axes whole, with a reason; it does not refuse the model."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune


class Odd(nn.Module):
    """Beside an odd node there are hidden units that can go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def odd(self, x: Tensor) -> Any:
        return x

    def forward(self, x: Tensor) -> Any:
        return self.last(torch.relu(self.c(self.odd(torch.relu(self.a(x))))))


class Covariance(Odd):
    def odd(self, x: Tensor) -> Tensor:
        return x @ torch.cov(self.b(x).T)


class Correlation(Odd):
    def odd(self, x: Tensor) -> Tensor:
        return x @ torch.corrcoef(self.b(x).T)


class OneHot(Odd):
    def odd(self, x: Tensor) -> Tensor:
        return self.b(x) + F.pad(F.one_hot((x[:, 0] > 0).long()), (0, 16))[:, :16]


class Distinct(Odd):
    def odd(self, x: Tensor) -> Tensor:
        return self.b(torch.unique((x * 3).round().long(), return_inverse=True)[1].to(x))


class Conjugated(Odd):
    def odd(self, x: Tensor) -> Tensor:
        one, other = torch.fft.fft(x, dim=0), torch.fft.fft(self.b(x), dim=0)
        return torch.fft.ifft(one * torch.conj(other), dim=0).real


class RepeatedBy(Odd):
    def odd(self, x: Tensor) -> Tensor:
        return torch.tanh(self.b(x))[:, :8].repeat_interleave(torch.tensor([2] * 8), dim=1)


class WithoutGradients(Odd):
    def odd(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.b(x).reshape(x.shape[0], 4, 4).transpose(1, 2).reshape(x.shape[0], 16)


class Supervised(Odd):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return torch.stack([y, y * 2], 1) if self.training else y


class Flags(Odd):
    def odd(self, x: Tensor) -> Tensor:
        flags, y = x.sum(-1) > 0, torch.zeros_like(x)
        y[flags] = self.b(x[flags])
        return y


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "network", [Covariance, Correlation, OneHot, Distinct, Conjugated, RepeatedBy, WithoutGradients, Supervised, Flags]
)
@pytest.mark.parametrize("verify", [True, False])
def test_the_rest_is_pruned(network: type[nn.Module], verify: bool) -> None:
    torch.manual_seed(0)
    model = network().double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.CaptureWarning)
        slim = fxprune.prune(model, X.double(), 0.5, verify=verify)
    assert slim.get_parameter("c.weight").shape[0] == 6


@pytest.mark.parametrize(("network", "node"), [(Covariance, "cov"), (Correlation, "corrcoef")])
def test_explain_says_why_a_node_keeps_its_axes(network: type[nn.Module], node: str) -> None:
    deps = fxprune.analyze(fxprune.capture(network().eval(), X))
    assert deps.not_analysed == (node,)
    assert f"cannot be analysed: DataDependentOutputException: aten.equal.default (node '{node}')" in str(
        deps.explain("b.weight")
    )
    assert [member.parameter for group in deps.groups for member in group.members] == ["c.weight", "c.bias", "last.weight"]


def test_after_a_refused_shrink_the_next_analysis_keeps_the_node_whole() -> None:
    gm = fxprune.capture(Conjugated().double().eval(), X.double())
    code = gm.code
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    masked = gm.code
    with pytest.raises(fxprune.ShrinkError, match=r"'mul'.*analyze, plan and mask the graph again"):
        fxprune.shrink(gm)
    assert gm.code == masked != code
    deps = fxprune.analyze(gm)
    assert "node 'mul'" in str(deps.explain("b.weight"))
    fxprune.shrink(fxprune.mask(gm, fxprune.plan(deps, 0.5)))
    assert gm.get_parameter("b.weight").shape == (16, 16)
    assert gm.get_parameter("c.weight").shape == (6, 16)
