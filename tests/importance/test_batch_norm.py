"""BatchNormScale: which parameters are scales, by their use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.importance import BatchNormScale, Magnitude
from fxprune.importance.batch_norm import batch_norm_scales
from tests.importance.nets import deps_of, net, parameters


@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.parametrize("training", [False, True])
def test_scales_are_found_in_every_kind_of_graph(frontend: Any, training: bool) -> None:
    model = net(torch.float32).train(training)
    gm = fxprune.capture(model, torch.randn(2, 3, 8, 8), frontend=frontend)
    assert batch_norm_scales(fxprune.analyze(gm)) == {"norm.weight"}
    fxprune.l1_unstructured(gm, "norm.weight", 2)
    assert batch_norm_scales(fxprune.analyze(gm)) == {"norm.weight"}


def test_absolute_scales_or_else_magnitudes() -> None:
    deps = deps_of(net())
    scale = parameters(deps.gm)["norm.weight"].abs()
    by_hand = {0: scale.reshape(2, 4).mean(1), 1: scale.reshape(2, 4).mean(0)}
    for group in deps.groups:
        expected = by_hand.get(group.index, Magnitude(normalizer="none")(deps, group))
        torch.testing.assert_close(BatchNormScale(normalizer="none")(deps, group), expected)


def test_masked_scales_are_zero() -> None:
    deps = deps_of(net())
    fxprune.mask(deps.gm, {"norm.weight": torch.tensor([0.0, 1, 1, 1, 0, 1, 1, 1])})
    masked = fxprune.analyze(deps.gm)
    group = next(g for g in masked.groups if g.size == 4)
    assert (BatchNormScale()(masked, group) == 0).tolist() == [True, False, False, False]


class Functional(nn.Module):
    """A batch norm whose parameters have names of their own, and one without any."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)
        self.gain, self.shift = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.plain = nn.BatchNorm1d(6, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.plain(self.one(x))
        mean, var = torch.zeros(6), torch.ones(6)
        return self.two(F.batch_norm(hidden, mean, var, self.gain, self.shift))


def test_scales_go_by_use_and_not_by_name() -> None:
    deps = deps_of(Functional().eval(), torch.randn(3, 4))
    assert batch_norm_scales(deps) == {"gain"}
