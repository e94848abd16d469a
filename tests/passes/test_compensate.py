"""Compensate: at mixing points a masked graph computes over what its masks keep, in both modes, with finite gradients."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from tests.shrinking import assert_equal, pruned


class Latents(nn.Module):
    """Lets inputs attend to positions that are parameters, some of which go."""

    def __init__(self, call: Callable[[Any, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, 6, 8))
        self.spread = nn.Parameter(torch.randn(6, 1))
        self.q, self.k, self.v, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.randn(4, 6))
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.latents.expand(x.shape[0], -1, -1) * self.spread
        q, k, v = (h.unflatten(-1, (2, 4)).transpose(1, 2) for h in (self.q(x), self.k(tokens), self.v(tokens)))
        return self.out(self.call(self, q, k, v).transpose(1, 2).flatten(2))


ATTENTION: dict[str, Callable[[Any, Tensor, Tensor, Tensor], Tensor]] = {
    "plain": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v),
    "scale": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=2.0),
    "bias": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, m.bias, 0.0),
    "flags": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=m.bias > -0.5),
    "infinite": lambda m, q, k, v: F.scaled_dot_product_attention(q, k.abs().log(), v.abs().log()),
    "dropout": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if m.training else 0.0),
    "shared": lambda m, q, k, v: F.scaled_dot_product_attention(q.repeat(1, 2, 1, 1), k, v, enable_gqa=True)[:, ::2],
}


class Shares(nn.Module):
    """Reads logarithms of shares of channels by a layer that keeps them apart."""

    def __init__(self, shares: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.apart = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        self.head = nn.Linear(8, 2)
        self.shares = shares

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.apart(self.shares(self.stem(x))).sin().mean((2, 3)))


SHARES: dict[str, Callable[[Tensor], Tensor]] = {
    "log_softmax": lambda h: F.log_softmax(h, 1),
    "module": nn.LogSoftmax(1),
    "log": lambda h: h.softmax(1).log(),
    "added": lambda h: h.log_softmax(1) + h,
}


@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_to_positions_that_stay(name: str, frontend: str) -> None:
    torch.manual_seed(0)
    model = Latents(ATTENTION[name])
    found = pruned(model, (torch.randn(2, 4, 5),), 0.5, frontend, choose="all")
    assert found.small.get_parameter("spread").shape == (3, 1)
    assert found.small.get_parameter("latents").shape == (1, 3, 4)
    assert_equal(
        found, (torch.randn(2, 4, 5),), (torch.randn(3, 4, 5),), training=(False,) if name == "dropout" else (False, True)
    )


@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.parametrize("name", SHARES)
def test_logarithms_of_nothing_stay_out_of_gradients(name: str, frontend: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    found = pruned(Shares(SHARES[name]), (x,), 0.5, frontend)
    assert found.small.get_parameter("stem.weight").shape[0] == 4
    assert_equal(found, (x,), (torch.randn(3, 3, 6, 6),))
    masked = copy.deepcopy(found.masked)
    masked(x.double()).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in itertools.chain(masked.parameters()) if p.grad is not None)


@pytest.mark.parametrize("name", ["plain", "bias", "flags", "shared"])
def test_masked_attention_scripts_and_exports(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, dtype=torch.double)
    gm = pruned(Latents(ATTENTION[name]), (x,), 0.5, choose="all").masked
    expected = gm(x)
    torch.testing.assert_close(fxprune.to_torchscript(gm, x, method="script")(x), expected)
    torch.testing.assert_close(torch.export.export(gm, (x,)).module()(x), expected)


class Outer(nn.Module):
    """Contracts products of channels with channels, both of whose dimensions have the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        g = self.two(x) + h
        first, second = ((a[:, :, None] * a[:, None, :]).sigmoid() for a in (h, g))
        return self.out(torch.einsum("bij,bij->b", first, second)[:, None])


def test_both_dimensions_of_a_contraction_are_corrected_that_have_the_same_units() -> None:
    torch.manual_seed(0)
    found = pruned(Outer(), (torch.randn(2, 5),), 0.5)
    assert found.small.get_parameter("one.weight").shape == (3, 5)
    assert_equal(found, (torch.randn(2, 5),), (torch.randn(3, 5),))


class AcrossTheBatch(nn.Module):
    """Combines channels of all samples in one dimension, whose size no mask could know."""

    def __init__(self, combine: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x).exp()
        return self.two(h) / self.combine(h)


@pytest.mark.parametrize(
    "combine",
    [
        lambda h: h.flatten().std(),
        lambda h: h.reshape(-1).logsumexp(0),
        lambda h: h.view(-1).amax(0),
        lambda h: h.t().flatten().norm(),
    ],
)
def test_flags_for_the_whole_batch_are_not_tried(combine: Callable[[Tensor], Tensor]) -> None:
    gm = fxprune.capture(AcrossTheBatch(combine), torch.randn(2, 3))
    deps = fxprune.analyze(gm)
    assert "a mask could not correct" in str(deps.explain("one.weight", 0))
    for batch in (1, 3):
        assert fxprune.mask(copy.deepcopy(gm), fxprune.plan(deps, 0.5))(torch.randn(batch, 3)).shape == (batch, 2)


class NormedBlock(nn.Module):
    """Adds to channels what a layer whose weight is divided by its norm makes of them: units on both of its sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        self.block = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head((h + self.block(h)).mean((2, 3)))


@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_what_is_no_number_is_kept_out_of_sums(frontend: str) -> None:
    torch.manual_seed(0)
    found = pruned(NormedBlock(), (torch.randn(2, 3, 6, 6),), 0.5, frontend)
    assert found.small.get_parameter("stem.weight").shape[0] == 4
    assert_equal(found, (torch.randn(2, 3, 6, 6),), (torch.randn(3, 3, 6, 6),))
