"""Activation against values recorded by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import PlanError
from fxprune.importance import Activation
from fxprune.planning.planner import plan
from tests.importance.nets import batch, deps_of, net


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5)
        self.fc = nn.Linear(6, 5)

    def forward(self, image: Tensor, scale: Tensor) -> Tensor:
        return self.fc(self.drop(F.relu(self.norm(self.conv(image)))).mean((2, 3))) * scale


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    return batch(seed), torch.ones(1)


@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.parametrize("kind", [tuple, list, lambda pair: {"scale": pair[1], "image": pair[0]}])
def test_means_of_absolute_values(frontend: Any, kind: Any) -> None:
    model = Plain().eval()
    gm = fxprune.capture(model, inputs(0), frontend=frontend).train()
    deps = fxprune.analyze(gm)
    (group,) = deps.groups
    means = []
    with torch.no_grad():
        for seed in (1, 2, 3):
            conv = model.conv(inputs(seed)[0])
            norm = model.norm(conv)
            relu = F.relu(norm)
            values = [conv, norm, relu, relu, relu.mean((2, 3), keepdim=True)]
            means.append(torch.stack([v.abs().mean((0, 2, 3)) for v in values]))
    scores = Activation((kind(inputs(seed)) for seed in (1, 2, 3)), "none")(deps, group)
    torch.testing.assert_close(scores.float(), torch.stack(means).mean((0, 1)))
    assert gm.training
    assert int(gm.get_buffer("norm.num_batches_tracked")) == 0


def test_a_tensor_is_a_batch_and_normalizers_apply() -> None:
    deps = deps_of(net(torch.float32))
    plain = [Activation([batch(1)], "none")(deps, group) for group in deps.groups]
    scaled = [Activation([batch(1)])(deps, group) for group in deps.groups]
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one / one.mean(), other)
    made = plan(deps, 0.5, importance=Activation([batch(1), batch(2)]), scope="global")
    assert made.params_after < made.params_before


def test_other_batch_sizes_than_at_capture() -> None:
    deps = deps_of(net(torch.float32))
    both = torch.cat([batch(1), batch(2)])
    one = Activation([both])(deps, deps.groups[0])
    torch.testing.assert_close(one, Activation([batch(1), batch(2)])(deps, deps.groups[0]))


def test_a_dead_channel_scores_least() -> None:
    model = net(torch.float32)
    with torch.no_grad():
        for name in ("stem.weight", "stem.bias", "norm.bias"):
            model.get_parameter(name)[[2, 6]] = 0
    deps = deps_of(model)
    group = next(g for g in deps.groups if g.size == 4)
    assert Activation([batch(1)])(deps, group).argmin() == 2


def test_no_batch() -> None:
    with pytest.raises(PlanError, match="batches is empty"):
        plan(deps_of(net(torch.float32)), 0.5, importance=Activation([]))


class WeightsOnly(nn.Module):
    """Multiplies two weights: their common axis is on no value made of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.a @ self.b)


def test_units_on_no_value() -> None:
    with pytest.raises(PlanError, match="no value that the graph computes has all units of group 0: 6 units"):
        plan(deps_of(WeightsOnly(), torch.randn(3, 4)), 0.5, importance=Activation([torch.randn(3, 4)]))
