"""One node that cannot be analysed or rewritten keeps its axes whole, with a reason; it does not refuse the model."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

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


class Branch(Odd):
    def odd(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y * 2, torch.sin, (self.b(x),))


class Grid(Odd):
    def odd(self, x: Tensor) -> Tensor:
        y = self.b(x)
        return y + torch.meshgrid(y[0], y[1], indexing="ij")[0][0]


class Attention(Odd):
    def odd(self, x: Tensor) -> Tensor:
        y, weight = self.b(x)[:, None], self.b.weight
        found, _ = F.multi_head_attention_forward(
            y, y, y, 16, 2, torch.cat([weight] * 3), None, None, None, False, 0.0, weight, self.b.bias
        )
        return found[:, 0]


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
        warnings.simplefilter("ignore", UserWarning)  # of the capture, and of what keeps most of some of these models
        slim = fxprune.prune(model, X.double(), 0.5, verify=verify)
    assert slim.get_parameter("c.weight").shape[0] == 6


def test_explain_says_why_a_node_keeps_its_axes() -> None:
    deps = fxprune.analyze(fxprune.capture(Branch().eval(), X))
    assert deps.not_analysed == ("cond",)
    assert "cannot be analysed: " in str(deps.explain("b.weight"))
    assert "(node 'cond')" in str(deps.explain("b.weight"))
    assert [str(group.members[0]) for group in deps.groups] == ["a.weight[0]", "c.weight[0]"]


@pytest.mark.parametrize("network", [Grid, Attention])
def test_what_cannot_be_rewritten_stays_whole_when_it_shrinks(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    gm = fxprune.capture(network().double().eval(), X.double())
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    masked = gm(X.double())
    with pytest.warns(
        fxprune.PruneWarning, match=r"^node '.*other sizes than its arguments can say; what the node reads stays whole$"
    ):
        fxprune.shrink(gm)
    assert gm.get_parameter("b.weight").shape[0] == 16
    assert gm.get_parameter("c.weight").shape == (6, 16)
    assert torch.allclose(gm(X.double()), masked, rtol=1e-9, atol=1e-12)
    assert "node" in str(fxprune.analyze(gm).explain("b.weight"))


def test_a_shrink_that_fails_leaves_no_note_of_what_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = fxprune.capture(Grid().double().eval(), X.double())
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    before = dict(gm.meta)

    def refuse(*_: Any, **__: Any) -> float:
        raise fxprune.VerificationError("they differ")

    monkeypatch.setattr("fxprune.pipeline.verify_rewriting", refuse)
    with pytest.raises(fxprune.VerificationError):
        fxprune.shrink(gm)
    assert gm.meta == before


@pytest.mark.parametrize("network", [Grid, Attention, Branch, Conjugated, WithoutGradients])
@pytest.mark.parametrize("frontend", ["auto", "export"])
def test_a_model_with_masks_is_pruned(network: type[nn.Module], frontend: Any) -> None:
    torch.manual_seed(0)
    model = network().double().eval()
    for layer in (model.a, model.b, model.c):
        prune.ln_structured(layer, "weight", 0.25, n=2, dim=0)
    prune.random_unstructured(model.last, "weight", 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the capture, and of what keeps most of some models
        slim = fxprune.prune(model, X.double(), 0.5, frontend=frontend)
    assert slim.get_parameter("c.weight").shape[0] <= 6
    assert slim(X.double()).shape == (5, 3)
