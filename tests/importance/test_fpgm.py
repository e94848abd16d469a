"""FPGM against distances taken one by one."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.importance import FPGM
from fxprune.planning.planner import plan
from tests.importance.nets import deps_of, net, parameters, slices


def test_sums_of_distances() -> None:
    deps = deps_of(net())
    for group in deps.groups:
        sums = [
            [sum(float((one - other).norm()) for other in member) for one in member]
            for member in slices(parameters(deps.gm), group)
        ]
        torch.testing.assert_close(FPGM(normalizer="none")(deps, group).float(), torch.tensor(sums).mean(0))


def test_the_unit_in_the_middle_goes_first_however_large_it_is() -> None:
    first, second = nn.Linear(2, 5, bias=False), nn.Linear(5, 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[9.0, 9.0], [10.0, 9.0], [9.0, 10.0], [8.0, 9.0], [9.0, 8.0]]))
        second.weight.fill_(1.0)
    made = plan(deps_of(nn.Sequential(first, second), torch.randn(1, 2)), 1, importance=FPGM())
    assert made.kept["0.weight", 0].tolist() == [1, 2, 3, 4]
