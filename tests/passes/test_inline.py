"""Functions that a graph calls whole, whatever sizes they ask for inside, compute what the masked graph does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from tests.compare import relative_error
from tests.shrinking import assert_equal, pruned


@fx.wrap
def scaled(x: Tensor) -> Tensor:
    return x * x.shape[1]


@fx.wrap
def scaled_by_both(x: Tensor) -> Tensor:
    return x * (x.shape[0] * x.shape[1])


@fx.wrap
def scaled_and_added(x: Tensor, other: Any) -> Tensor:
    return x * x.shape[1] + other


@fx.wrap
def rooted(x: Tensor) -> Tensor:
    return x / x.shape[-1] ** 0.5


@fx.wrap
def added(x: Tensor) -> Tensor:
    return torch.add(x, x, alpha=x.shape[1])


@fx.wrap
def scaled_in_place(x: Tensor) -> Tensor:
    return x.mul_(x.shape[1])


@fx.wrap
def attended(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


@fx.wrap
def in_eights(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1, 8)


@fx.wrap
def reshaped(x: Tensor, size: int) -> Tensor:
    return x.reshape(-1, size)


@fx.wrap
def normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[1:])


@fx.wrap
def ones(x: Tensor) -> Tensor:
    return x.new_ones(x.shape[1])


@fx.wrap
def size_as_tensor(x: Tensor) -> Tensor:
    return torch.full((1,), float(x.shape[1]), dtype=x.dtype)


@fx.wrap
def over_tensor(x: Tensor) -> Tensor:
    return x / torch.tensor(float(x.shape[1]), dtype=x.dtype)


@fx.wrap
def with_size(x: Tensor) -> tuple[Tensor, int]:
    return x * 2, x.shape[1]


@fx.wrap
def picked(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(1, index)


@fx.wrap
def picked_twice(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(1, index) * 2


@fx.wrap
def doubled(x: Tensor) -> Tensor:
    return x * 2


@fx.wrap
def scaled_by_batch(x: Tensor) -> Tensor:
    return x * x.shape[0]


@fx.wrap
def scaled_by_length(x: Tensor) -> Tensor:
    return x * (len(x) * x.shape[1])


@fx.wrap
def halves(x: Tensor) -> Any:
    return x.chunk(2, 1)


class Net(nn.Module):
    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 5)
        self.register_buffer("index", torch.arange(16).view(4, 4).t().flatten())
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.body(self, self.a(x).tanh()))


X = torch.randn(3, 6)

HIDING = {
    "scaled": lambda m, h: scaled(h),
    "scaled_by_both": lambda m, h: scaled_by_both(h),
    "a_number_and_a_tensor": lambda m, h: scaled_and_added(h, 0) * scaled_and_added(h, h),
    "rooted": lambda m, h: rooted(h),
    "added": lambda m, h: added(h),
    "scaled_in_place": lambda m, h: scaled_in_place(h + 1),
    "attended": lambda m, h: attended(h.view(-1, 2, 2, 4)).flatten(1),
    "in_eights": lambda m, h: in_eights(h).flatten(1),
    "reshaped": lambda m, h: reshaped(h, 8).view(h.shape[0], -1),
    "reshaped_to_size": lambda m, h: reshaped(h, h.shape[1] // 2).view(h.shape[0], -1),
    "normed": lambda m, h: normed(h),
    "ones": lambda m, h: h * ones(h),
    "size_as_tensor": lambda m, h: h * size_as_tensor(h),
    "over_tensor": lambda m, h: over_tensor(h),
    "with_size": lambda m, h: with_size(h)[0] * with_size(h)[1],
    "halves": lambda m, h: torch.cat(halves(h), 1),
    "picked": lambda m, h: picked(h, m.index),
    "picked_twice": lambda m, h: picked_twice(h, m.index),
}

SHOWING = {"doubled": doubled, "scaled_by_batch": scaled_by_batch}


@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.parametrize("body", HIDING.values(), ids=HIDING)
def test_sizes_that_a_function_asks_for_stay_what_they_were(body: Callable[[Any, Tensor], Tensor], frontend: str) -> None:
    found = pruned(Net(body).eval(), (X,), 0.5, frontend)
    assert found.small.get_parameter("a.weight").shape[0] == 8
    assert_equal(found, (X,), (torch.randn(7, 6),), (torch.randn(1, 6),))


@pytest.mark.parametrize("name", SHOWING)
def test_a_function_that_comes_out_right_stays_as_it_is(name: str) -> None:
    model = Net(lambda m, h: SHOWING[name](h)).eval()
    found = pruned(model, (X,), 0.5)
    assert found.small.get_parameter("a.weight").shape[0] == 8
    assert found.small.code == fxprune.capture(model, X.double()).code
    assert_equal(found, (X,), (torch.randn(7, 6),), (torch.randn(1, 6),))


def test_a_function_that_would_be_written_out_for_one_batch_size_alone_stays_whole() -> None:
    model = Net(lambda m, h: scaled_by_length(h)).eval()
    with pytest.warns(fxprune.PruneWarning, match=r"scaled_by_length.* other sizes"):
        found = pruned(model, (X,), 0.5)
    assert found.small.get_parameter("a.weight").shape[0] == 16
    assert relative_error(found.small(X.double()), found.masked(X.double())) < 1e-9


@fx.wrap
def normed_by(x: Tensor, weight: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[1:], weight)


MIXING = {
    "attended": lambda m, h: attended(h.view(-1, 4, 4)).flatten(1),
    "normed_by": lambda m, h: normed_by(h, m.weight),
}


@pytest.mark.parametrize("body", MIXING.values(), ids=MIXING)
def test_what_a_mask_could_not_correct_inside_a_function_stays_whole(body: Callable[[Any, Tensor], Tensor]) -> None:
    model = Net(body).eval()
    model.weight = nn.Parameter(torch.rand(16))
    found = pruned(model, (X,), 0.5, choose="outer")
    assert "could not correct" in str(found.deps.explain("a.weight", 0)) or "could not correct" in str(found.deps)
    assert_equal(found, (X,), (torch.randn(7, 6),))


def test_sizes_that_a_corrected_norm_does_not_read_are_there_again_afterwards() -> None:
    model = Net(lambda m, h: F.layer_norm(h, h.shape[1:])).eval()
    found = pruned(model, (X,), 0.5)
    assert found.small.get_parameter("a.weight").shape[0] == 8
    assert_equal(found, (X,), (torch.randn(7, 6),))
    assert found.small.code == fxprune.capture(model, X.double()).code
