"""What every criterion says of weights that have no values or none that can be ranked, and of scores that are no numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.errors import PlanError
from fxprune.importance import FPGM, LAMP, Activation, BatchNormScale, Criterion, Hessian, Magnitude, Random, Taylor
from fxprune.planning.planner import plan
from tests.importance.nets import batch, deps_of, loss, net
from tests.plans import chain

CRITERIA: dict[str, Criterion] = {
    "magnitude": Magnitude(),
    "absolute": Magnitude(p=1, normalizer="none"),
    "scales": BatchNormScale(),
    "distances": FPGM(),
    "shares": LAMP(),
    "activation": Activation([batch()]),
    "gradient": Taylor(loss),
    "second order": Hessian(loss, samples=1),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_weights_on_the_meta_device(name: str) -> None:
    deps = deps_of(net(torch.float32).to("meta"), batch().to("meta"))
    with pytest.raises(PlanError, match=r"parameter '.*' is on the meta device and has no values to be ranked by"):
        plan(deps, 0.5, importance=CRITERIA[name])
    assert plan(deps, 0.5, importance=Random(0)).choices


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(name: str, value: float) -> None:
    model = net(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(-1)[0] = value
    message = "importance .* gave scores that are not finite for group .*; not all values of 'stem.weight'"
    if name in ("activation", "gradient", "second order"):
        message = f"{message}|the graph gives NaN on batch 0|loss must be a finite real number, not"
    with pytest.raises(PlanError, match=message):
        plan(deps_of(model), 0.5, importance=CRITERIA[name])


@pytest.mark.parametrize("name", CRITERIA)
def test_frozen_weights_of_inference_mode(name: str) -> None:
    with torch.inference_mode():
        model = net(torch.float32).requires_grad_(False)
    deps = deps_of(model)
    if name in ("gradient", "second order"):
        with pytest.raises(PlanError, match=r"parameter '.*' was made in inference mode, so that it has no gradient"):
            plan(deps, 0.5, importance=CRITERIA[name])
    else:
        assert plan(deps, 0.5, importance=CRITERIA[name], scope="global").choices
    assert not any(p.requires_grad for p in model.parameters())


def test_distances_of_complex_weights() -> None:
    first, second = nn.Linear(1, 4, bias=False, dtype=torch.complex64), nn.Linear(4, 1, dtype=torch.complex64)
    with torch.no_grad():
        first.weight[:, 0] = torch.tensor([1, 1j, -1, 0])  # all but the last have the same absolute value
        second.weight.fill_(0)
    deps = deps_of(nn.Sequential(first, second), torch.randn(2, 1, dtype=torch.complex64))
    scores = FPGM(normalizer="none", reduction="first")(deps, deps.groups[0])
    torch.testing.assert_close(scores, torch.tensor([3 + 2**0.5, 1 + 2 * 2**0.5, 3 + 2**0.5, 3.0]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda n: torch.ones(n + 1), r"of shape \[5\] for group 0: 4 units .*; they must be \[4\]"),
        (lambda n: torch.ones(n, 1), r"of shape \[4, 1\]"),
        (lambda n: 1.0, r"of shape \[\]"),
        (lambda n: None, r"of shape \[\]"),
        (lambda n: torch.full((n,), torch.nan), "not finite for group 0: .*: nan$"),
        (lambda n: np.full(n, -np.inf), "not finite for group 0: .*: -inf$"),
        (lambda n: torch.ones(n, device="meta"), "no numbers for group 0: .* but a tensor of shape .* on meta"),
        (lambda n: torch.ones(n, dtype=torch.complex64), "no numbers for group 0: .*complex64"),
        (lambda n: np.ones(n) * 1j, "no numbers for group 0"),
        (lambda n: [1j] * n, "no numbers for group 0"),
        (lambda n: ["a"] * n, "no numbers for group 0: .*'a'"),
        (lambda n: [[1], [1, 2]], "no numbers for group 0"),
        (lambda n: [10**400] * n, "no numbers for group 0"),
        (lambda n: {1: 2}, "no numbers for group 0"),
        (lambda n: torch.ones(n).to_sparse(), "no numbers for group 0"),
    ],
)
def test_scores_that_are_no_numbers(given: Callable[[int], Any], message: str) -> None:
    def mine(deps: Any, group: Any) -> Any:
        return given(group.size)

    with pytest.raises(PlanError, match=f"importance .*mine gave .*{message}"):
        plan(chain(3, 4, 2), 0.5, importance=mine)


@pytest.mark.parametrize(
    "kind",
    [
        lambda scores: scores.to(torch.bfloat16),
        lambda scores: scores.requires_grad_(),
        lambda scores: scores.int(),
        lambda scores: scores.numpy().astype(np.float16),
        lambda scores: scores.tolist(),
        lambda scores: tuple(scores),
    ],
)
def test_scores_of_any_kind(kind: Callable[[Any], Any]) -> None:
    made = plan(chain(3, 4, 2), 0.5, importance=lambda deps, group: kind(torch.arange(4.0)))
    assert made.kept["layers.0.weight", 0].tolist() == [2, 3]
