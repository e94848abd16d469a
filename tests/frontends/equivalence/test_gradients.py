"""Hand-written backwards that a graph cannot keep are named; those that are the derivative of their forward are not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxprune


class Round(torch.autograd.Function):
    """Rounds, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Clip(torch.autograd.Function):
    """The identity, whose gradients are clipped."""

    @staticmethod
    def forward(x: Tensor, limit: float) -> Tensor:
        return x * 1

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.limit = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g.clamp(-ctx.limit, ctx.limit), None


class Square(torch.autograd.Function):
    """The square, with its own derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * g


class Net(nn.Module):
    def __init__(self, code: Any) -> None:
        super().__init__()
        self.a, self.b, self.code = nn.Linear(4, 6), nn.Linear(6, 2), code

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.code(self, self.a(x)))
        return y


def in_train_mode(net: Any, h: Tensor) -> Any:
    return Round.apply(h) if net.training else h


def by_hook(net: Any, h: Tensor) -> Tensor:
    h = h * 1
    if h.requires_grad:
        h.register_hook(lambda g: -g)
    return h


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (lambda net, h: Round.apply(h), "Round"),
        (lambda net, h: Clip.apply(h, 0.01), "Clip"),
        (in_train_mode, "Round"),
        (by_hook, "register_hook"),
    ],
)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.filterwarnings("ignore:.*asks whether a tensor requires gradients:fxprune.CaptureWarning")
def test_a_backward_that_is_lost_is_named(code: Any, name: str, training: bool) -> None:
    model = Net(code).train(training)
    with pytest.warns(fxprune.CaptureWarning, match=rf"does not have the model's gradients, .*{name}.*test_gradients.py:"):
        fxprune.capture(model, torch.randn(3, 4))
    assert all(p.grad is None for p in model.parameters())
    before = torch.autograd.Function.apply
    assert torch.autograd.Function.apply == before


@pytest.mark.parametrize(
    "code",
    [
        lambda net, h: Square.apply(h),
        lambda net, h: h + (h.round() - h).detach(),
        lambda net, h: checkpoint(torch.tanh, h, use_reentrant=False),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_a_backward_that_is_the_derivative_is_not(code: Any, training: bool) -> None:
    model, x = Net(code).double().train(training), torch.randn(3, 4).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="torch.utils.checkpoint does not take part")
        gm = fxprune.capture(model, x)
    wanted = torch.autograd.grad(model(x).pow(2).sum(), list(model.parameters()))
    found = torch.autograd.grad(gm(x).pow(2).sum(), list(gm.parameters()))
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_gradients_that_cannot_be_compared_are_warned_of() -> None:
    with torch.device("meta"):
        model, x = Net(lambda net, h: Round.apply(h)), torch.randn(3, 4)
    with pytest.warns(fxprune.CaptureWarning, match="Round"):
        fxprune.capture(model, x)
