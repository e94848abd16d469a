"""Constant channels are folded into the biases of what reads them, where that is exact."""

from __future__ import annotations

import copy
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.algebra.axes import Axis
from fxprune.errors import ShrinkError
from fxprune.passes.fold_constants import FoldConstants
from fxprune.zeros.folds import Fold
from tests.zeros.test_removable import IMAGE, VECTOR, check, convs, linears, masked, shape, with_positive_bias

Frontend = Literal["trace", "export"]
FRONTENDS: tuple[Frontend, ...] = ("trace", "export")


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("between", [nn.ReLU, nn.Sigmoid, nn.GELU, nn.Identity, lambda: nn.PReLU(1), nn.Softplus])
def test_into_a_linear(between: type[nn.Module], frontend: Frontend) -> None:
    model = linears(between().double())
    bias = model.get_parameter("2.bias")
    gm = masked(fxprune.capture(model, VECTOR, frontend=frontend), "0.weight")
    small = check(gm, VECTOR)
    assert shape(small, "0.weight") == (5, 5)
    assert not torch.equal(small.get_parameter("2.bias"), bias)
    assert model.get_parameter("2.bias") is bias  # the model keeps its own


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_layer_without_a_bias_gets_one(frontend: Frontend) -> None:
    model = linears(nn.ReLU(), bias=False)
    small = check(masked(fxprune.capture(model, VECTOR, frontend=frontend), "0.weight"), VECTOR)
    assert shape(small, "0.weight") == (5, 5)
    assert shape(small, "2.bias") == (4,)
    assert small.get_parameter("2.bias").requires_grad
    assert "2.bias" not in dict(model.named_parameters())
    x = torch.randn(3, 5).double()
    assert torch.allclose(fxprune.to_torchscript(small, x)(x), small(x))


def test_channels_that_come_out_as_zero_need_no_bias() -> None:
    model = linears(nn.ReLU(), bias=False)
    nn.init.constant_(model.get_parameter("0.bias"), -1.0)
    small = check(masked(fxprune.capture(model, VECTOR), "0.weight"), VECTOR)
    assert shape(small, "0.weight") == (5, 5)
    assert "2.bias" not in dict(small.named_parameters())


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(
    "last",
    [
        lambda: nn.Conv2d(8, 4, 1),
        lambda: nn.Conv2d(8, 4, 3, stride=2, bias=False),
        lambda: nn.Conv2d(8, 4, (1, 3), dilation=2),
        lambda: nn.Conv2d(8, 4, 1, padding="same"),
        lambda: nn.Conv2d(8, 4, 3, padding="valid"),
    ],
)
def test_into_a_convolution_without_a_border(last: type[nn.Module], frontend: Frontend) -> None:
    model = with_positive_bias(convs(nn.ReLU(), nn.MaxPool2d(2, 1), last=last()))
    small = check(masked(fxprune.capture(model, IMAGE, frontend=frontend), "0.weight"), IMAGE)
    assert shape(small, "0.weight") == (5, 3, 3, 3)
    assert shape(small, "3.weight")[1] == 5


@pytest.mark.parametrize(
    "last",
    [
        lambda: nn.Conv2d(8, 4, 3, padding=1),
        lambda: nn.Conv2d(8, 4, 3, padding="same"),
        lambda: nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular"),
        lambda: nn.ConvTranspose2d(8, 4, 3),
        lambda: nn.Sequential(nn.AvgPool2d(3, padding=1), nn.Conv2d(8, 4, 1)),
        lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(8, 4, 3)),
        lambda: nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(8, 4, 1)),
    ],
)
def test_not_where_the_border_or_chance_counts(last: type[nn.Module]) -> None:
    model = with_positive_bias(convs(nn.ReLU(), last=last().double()))
    small = check(masked(fxprune.capture(model, IMAGE), "0.weight"), IMAGE)
    assert shape(small, "0.weight") in ((8, 3, 3, 3), (5, 3, 3, 3))
    if not isinstance(model[2], nn.Conv2d) or model[2].padding_mode == "zeros":
        assert shape(small, "0.weight") == (8, 3, 3, 3)


def test_not_behind_a_norm_that_the_modes_see_differently() -> None:
    gm = fxprune.capture(convs(nn.BatchNorm2d(8), nn.ReLU(), last=nn.Conv2d(8, 4, 1)), IMAGE)
    assert shape(check(masked(gm, "0.weight"), IMAGE), "0.weight") == (8, 3, 3, 3)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_behind_a_masked_norm(frontend: Frontend) -> None:
    """Without a scale the norm gives its shift, and without that zero, of which the sigmoid makes a half."""
    for names in (["1.weight"], ["1.weight", "1.bias"], ["0.weight", "1.weight", "1.bias"]):
        model = convs(nn.BatchNorm2d(8), nn.Sigmoid(), last=nn.Conv2d(8, 4, 1))
        small = check(masked(fxprune.capture(model, IMAGE, frontend=frontend), *names), IMAGE)
        assert shape(small, "0.weight") == (5, 3, 3, 3)
        assert small.get_buffer("1.running_mean").shape == (5,)


def test_places_of_a_flattened_channel() -> None:
    model = with_positive_bias(convs(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), last=nn.Linear(32, 4)))
    small = check(masked(fxprune.capture(model, IMAGE), "0.weight"), IMAGE)
    assert shape(small, "4.weight") == (4, 20)


def test_groups_take_in_their_own_channels() -> None:
    model = with_positive_bias(convs(nn.ReLU(), last=nn.Conv2d(8, 4, 3, groups=2)))
    gm = fxprune.capture(model, IMAGE)
    mask = torch.ones(8, 3, 3, 3).double()
    mask[[1, 5]] = 0
    fxprune.custom_from_mask(gm, "0.weight", mask)
    small = check(gm, IMAGE)
    assert shape(small, "0.weight") == (6, 3, 3, 3)
    assert shape(small, "2.weight") == (4, 3, 3, 3)


class TwoReaders(nn.Module):
    """What one layer makes is read by two, one of them without a bias; with a border or not."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 4, 3, bias=False)
        self.other = nn.Conv2d(8, 4, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.one(x).mean((2, 3)) + self.other(x).mean((2, 3))


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_all_readers_have_to_take_it_in(frontend: Frontend) -> None:
    for padding, left in ((0, 5), (1, 8)):
        model = TwoReaders(padding).double()
        nn.init.uniform_(model.first.bias, 0.5, 1.0)  # type: ignore[arg-type]
        small = check(masked(fxprune.capture(model, IMAGE, frontend=frontend), "first.weight"), IMAGE)
        assert shape(small, "first.weight") == (left, 3, 3, 3)
        assert ("one.bias" in dict(small.named_parameters())) == (left == 5)


class Residual(nn.Module):
    """A stream of channels that two layers add to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(F.relu(x + self.inner(F.relu(x))))


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_residual_stream_goes_when_all_that_adds_to_it_is_constant(frontend: Frontend) -> None:
    for names, left in ((["first.weight", "inner.weight"], 5), (["first.weight"], 8)):
        gm = fxprune.capture(Residual().double(), VECTOR, frontend=frontend)
        small = check(masked(gm, *names), VECTOR)
        assert shape(small, "last.weight") == (4, left)


class Shared(nn.Module):
    """One layer called on two inputs."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.other, self.last = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu()) + self.last(self.other(x).relu())


@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_of_two_calls_takes_nothing_in(bias: bool) -> None:
    model = Shared(bias).double()
    nn.init.uniform_(model.first.bias, 0.5, 1.0)
    nn.init.uniform_(model.other.bias, 0.5, 1.0)
    small = check(masked(fxprune.capture(model, VECTOR), "first.weight", "other.weight"), VECTOR)
    assert shape(small, "last.weight") == (4, 8)


class Product(nn.Module):
    """A layer as GPT-2 writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.matrix, self.shift = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.shift, F.gelu(self.first(x)), self.matrix)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_into_a_product_with_inputs_first(frontend: Frontend) -> None:
    small = check(masked(fxprune.capture(Product().double(), VECTOR, frontend=frontend), "first.weight"), VECTOR)
    assert shape(small, "matrix") == (5, 4)


def test_a_shared_weight_gets_a_bias_for_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.other = nn.Linear(5, 8), nn.Linear(5, 8)
            self.weight = nn.Parameter(torch.randn(4, 8))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.first(x).sigmoid(), self.weight) * F.linear(input=self.other(x).sigmoid(), weight=self.weight)

    small = check(masked(fxprune.capture(Twice().double(), VECTOR), "first.weight", "other.weight"), VECTOR)
    assert shape(small, "weight") == (4, 5)
    assert {name for name, _ in small.named_parameters() if "bias" in name} == {
        "first.bias", "other.bias", "bias", "bias_folded",
    }  # fmt: skip


def test_a_node_that_is_not_there_is_an_error() -> None:
    gm = fxprune.capture(linears(nn.ReLU(), bias=False), VECTOR)
    fold = Fold("gone", "2.weight", None, Axis.whole(4), False, np.ones(8))
    with pytest.raises(ShrinkError, match="node 'gone'"):
        FoldConstants([fold], [torch.ones(4).double()])(gm)


def test_a_folded_graph_still_trains() -> None:
    small = check(masked(fxprune.capture(linears(nn.ReLU(), bias=False), VECTOR), "0.weight"), VECTOR)
    before = copy.deepcopy(small.get_parameter("2.bias"))
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    small.train()(VECTOR).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, small.get_parameter("2.bias"))
