"""Modules in modules, deeper than Python calls go by default where torch traces them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Residual(Around):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x))


class Keyed(Around):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__(nn.ModuleDict({"class": inner}))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner["class"](x)  # type: ignore[index]


def nested(depth: int, around: Callable[[nn.Module], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    inner: nn.Module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    for _ in range(depth):
        inner = around(inner)
    return nn.Sequential(nn.Linear(4, 8), inner, nn.ReLU(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).double().eval()


@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.parametrize(("depth", "around"), [(150, nn.Sequential), (150, Around), (130, Keyed), (130, Residual)])
def test_deep_models(depth: int, around: Any, frontend: Any) -> None:
    model, x, limit = nested(depth, around), torch.randn(3, 4).double(), sys.getrecursionlimit()
    gm = fxprune.capture(model, x, frontend=frontend)
    assert sys.getrecursionlimit() == limit
    torch.testing.assert_close(gm(x), model(x), rtol=1e-9, atol=1e-9)
    assert list(gm.state_dict()) == list(model.state_dict())
    small = fxprune.prune(gm, x, 0.5)
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())


def test_deeper_than_the_model_itself_runs() -> None:
    model, x = nested(400, nn.Sequential), torch.randn(3, 4).double()
    with pytest.raises(RecursionError):
        model(x)
    small = fxprune.prune(model, x, 0.5)
    assert small(x).shape == (3, 2)
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("depth", [800, 6000])
def test_an_error_names_the_limit_of_python(depth: int) -> None:
    model, limit = nested(0, nn.Sequential), sys.getrecursionlimit()
    for _ in range(depth):
        model = Around(model).eval() if depth < 1000 else nn.Sequential(model)
    with pytest.raises(
        fxprune.CaptureError, match=rf"deeper than Python's limit of {4 * limit}; sys.setrecursionlimit raises it"
    ):
        fxprune.capture(model, torch.randn(3, 4).double())
    assert sys.getrecursionlimit() == limit
