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


class Weighted(nn.Module):
    """Weights over time, in which masked steps have no part."""

    gone: Tensor

    def __init__(self, gone: Tensor) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("gone", gone)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).masked_fill(self.gone, -torch.inf).softmax(1))


def test_masked_elements_are_left_out() -> None:
    model, x = Weighted(torch.tensor([False, True, False])[:, None]).eval(), torch.randn(2, 3, 3)
    deps = deps_of(model, x)
    with torch.no_grad():
        linear = model.one(x)
        weights = linear.masked_fill(model.gone, -torch.inf).softmax(1)
    means = [value.abs().mean((0, 1)) for value in (linear, linear[:, [0, 2]], weights)]
    torch.testing.assert_close(Activation([x], "none")(deps, deps.groups[0]).float(), torch.stack(means).mean(0))


def test_a_unit_without_any_finite_value_is_named() -> None:
    x = torch.randn(2, 3, 3)
    deps = deps_of(Weighted(torch.tensor([True, False, False, False])).eval(), x)
    deps.gm.get_parameter("two.weight").data[:, 0] = 0
    with pytest.raises(PlanError, match="the graph gives NaN on batch 0"):
        plan(deps, 0.5, importance=Activation([x]))


class Attention(nn.Module):
    """Attention written out; ``rows`` leaves no key for the first query."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (3, 2)).transpose(1, 2) for each in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2)
        hidden = torch.ones(4, 4, dtype=torch.bool).triu(0 if self.kind == "rows" else 1)
        if self.kind == "added":
            scores = scores + torch.zeros(4, 4).masked_fill(hidden, -torch.inf)
        else:
            scores = scores.masked_fill(hidden, -torch.inf)
        weights = scores.log_softmax(-1).exp() if self.kind == "logarithms" else scores.softmax(-1)
        if self.kind == "rows":
            weights = torch.where(hidden.all(-1, keepdim=True), 0.0, weights)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", ["filled", "added", "rows", "logarithms"])
@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_masked_attention_has_scores(kind: str, frontend: Any) -> None:
    torch.manual_seed(0)
    deps = fxprune.analyze(fxprune.capture(Attention(kind).eval(), torch.randn(2, 4, 6), frontend=frontend))
    made = plan(deps, 1, importance=Activation([torch.randn(2, 4, 6)]), choose="outer")
    assert [choice.size for choice in made.choices] == [3]
    assert (made.choices[0].scores > 0).all()


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([torch.randn(2, 5, 8, 8)], r"the graph fails on batch 0, of a tensor of shape \[2, 5, 8, 8\], .* at node 'stem'"),
        ([batch(), batch().double()], "the graph fails on batch 1, of .*torch.float64"),
        ([batch().long()], "the graph fails on batch 0"),
        ([(batch(), batch())], "the graph fails on batch 0, of .*TypeError"),
        ([{"image": batch()}], "the graph fails on batch 0, of .*TypeError"),
        (["a text"], "the graph fails on batch 0, of 'a text'"),
        ([batch() * torch.nan], "the graph gives NaN on batch 0"),
        ([batch(), batch() * torch.inf], "the graph gives NaN on batch 1"),
        (iter([]), "batches is empty"),
    ],
)
def test_batches_that_the_graph_cannot_take(batches: Any, message: str) -> None:
    deps = deps_of(net(torch.float32))
    modes = [module.training for module in deps.gm.modules()]
    with pytest.raises(PlanError, match=message):
        plan(deps, 0.5, importance=Activation(batches))
    assert [module.training for module in deps.gm.modules()] == modes


@pytest.mark.parametrize("batches", [None, 3, "text", {"x": batch()}])
def test_batches_of_the_wrong_type(batches: Any) -> None:
    with pytest.raises(fxprune.PruningError, match="batches must be an iterable of inputs, one for each call, not"):
        Activation(batches)
