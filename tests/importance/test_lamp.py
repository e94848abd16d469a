"""LAMP against its definition, unit by unit."""

from __future__ import annotations

import pytest
import torch

from fxprune.errors import PlanError
from fxprune.importance import LAMP, Magnitude
from fxprune.planning.planner import plan
from tests.importance.nets import deps_of, net, parameters, slices


def test_shares_of_what_is_no_smaller() -> None:
    deps = deps_of(net())
    for group in deps.groups:
        members = slices(parameters(deps.gm), group)
        squares = torch.tensor([[float(part.square().sum()) for part in member] for member in members]).mean(0)
        expected = torch.stack([s / squares[squares >= s].sum() for s in squares])
        scores = LAMP()(deps, group).float()
        torch.testing.assert_close(scores, expected)
        assert scores.max() == 1


def test_within_a_group_the_order_is_that_of_magnitudes() -> None:
    deps = deps_of(net())
    for group in deps.groups:
        assert LAMP("first")(deps, group).argsort().tolist() == Magnitude(2, "first")(deps, group).argsort().tolist()


def test_zero_weights_score_zero() -> None:
    model = net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    deps = deps_of(model)
    assert all(not LAMP()(deps, group).any() for group in deps.groups)
    assert plan(deps, 0.5, importance=LAMP(), scope="global").params_after < plan(deps, 0).params_after


def test_an_unknown_reduction() -> None:
    with pytest.raises(PlanError, match="reduction must be one of"):
        LAMP("median")  # type: ignore[arg-type]
