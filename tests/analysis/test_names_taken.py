"""Parameters whose masks would have names that the model uses itself stay whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune

pytestmark = pytest.mark.filterwarnings("ignore:amount=0.5 leaves:fxprune.PruneWarning")  # most of these models stays whole

ATTRIBUTES: list[Callable[[], Any]] = [
    lambda: nn.Parameter(torch.ones(16)),
    lambda: nn.Buffer(torch.ones(16)),
    lambda: nn.Linear(2, 2),
    lambda: 3,
]


class Net(nn.Module):
    def __init__(self, name: str, value: Any, layer: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.layer = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 2), layer
        self.weight = nn.Parameter(torch.randn(16, 16))
        setattr(self.b if layer else self, name, value)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return self.c(torch.relu(self.b(h) if self.layer else F.linear(h, self.weight)))


@pytest.mark.parametrize("name", ["weight_orig", "weight_mask0"])
@pytest.mark.parametrize("value", ATTRIBUTES)
@pytest.mark.parametrize("layer", [True, False])
@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_a_parameter_without_names_for_masks_stays_whole(name: str, value: Any, layer: bool, frontend: Any) -> None:
    model, x = Net(name, value(), layer).eval(), torch.randn(3, 4).double()
    gm = fxprune.capture(
        nn.Sequential(model, nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)).double().eval(), x, frontend=frontend
    )
    if name not in str(list(gm.state_dict())):
        return  # such as a number, which no graph has
    deps = fxprune.analyze(gm)
    parameter = "0.b.weight" if layer else "0.weight"
    assert f"cannot be masked, as the name {name!r} is taken by another attribute" in str(deps.explain(parameter, dim=0))
    expected = gm(x)
    small = fxprune.prune(gm, x, 0.5)
    assert small.get_parameter("1.weight").shape[0] == 8
    assert small.get_parameter(parameter).shape == (16, 16)
    fxprune.mask(gm, fxprune.plan(deps, 0.5))
    torch.testing.assert_close(gm(x), small(x), rtol=1e-9, atol=1e-9)
    assert not torch.equal(gm(x), expected)
