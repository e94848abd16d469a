"""Activation checkpointing, which a graph does not do: a warning says so where the model does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import fxprune

X = torch.randn(3, 4).double()


class Net(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.way = nn.Linear(4, 16), nn.Sequential(nn.ReLU(), nn.Linear(16, 16)), nn.Linear(16, 2), way
        self.double()

    def body(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(x))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.way == "module":
            h = checkpoint(self.b, h, use_reentrant=False)
        elif self.way == "in training" and not self.training:
            h = self.body(h)
        elif self.way in ("function", "in training"):
            h = checkpoint(self.body, h, use_reentrant=False)
        elif self.way == "sequential":
            h = checkpoint_sequential(self.b, 2, h, use_reentrant=False)
        return self.c(torch.relu(h))


@pytest.mark.parametrize("way", ["module", "function", "in training", "sequential"])
@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_a_warning_says_that_activations_are_kept(way: str, frontend: Any) -> None:
    model = Net(way).train()
    with pytest.warns(
        fxprune.CaptureWarning, match=r"torch.utils.checkpoint does not take part in the graph.*\.py:\d+"
    ) as said:
        gm = fxprune.capture(model, X, frontend=frontend)
    assert len(said) == 1
    torch.testing.assert_close(gm(X), model(X), rtol=1e-9, atol=1e-9)


def test_nothing_is_said_of_a_model_that_does_not(recwarn: Any) -> None:
    fxprune.capture(Net("never"), X)
    assert not recwarn.list
