"""Repair: what the code of small modules says about sizes and places is right for what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.passes.repair.cases import PARTS, PLACES, VIEWS, Case
from tests.passes.repair.layers import LAYERS
from tests.shrinking import Pruned, assert_equal, assert_sizes, pruned

CASES = VIEWS | PARTS | PLACES | LAYERS

every_case = pytest.mark.parametrize(
    ("case", "frontend"),
    [pytest.param(case, frontend, id=f"{name}-{frontend}") for name, case in CASES.items() for frontend in case.frontends],
)


def pruned_case(case: Case, frontend: str) -> Pruned:
    options: dict[str, Any] = {"amount": 0.5} | dict(case.options)
    return pruned(case.build(), case.inputs(2), options.pop("amount"), frontend, **options)


@every_case
def test_what_is_left_computes_what_the_mask_leaves(case: Case, frontend: str) -> None:
    found = pruned_case(case, frontend)
    assert_sizes(found)
    tensors = dict(found.small.named_parameters()) | dict(found.small.named_buffers())
    assert {name: tuple(tensors[name].shape) for name in case.left} == dict(case.left)
    assert_equal(found, case.inputs(3), training=(False,))
    if "by_mode" in case.body.__name__:
        assert_equal(found, case.inputs(1), training=(True,))
    if frontend == "trace":
        assert {name: str(found.small.get_submodule(name)) for name in case.printed} == dict(case.printed)


class Scaled(nn.Module):
    """Multiplies by a number that it makes of sizes, of which one shrinks and others are those of the input."""

    def __init__(self, number: Callable[[int, int, int, int], float]) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        return self.two(h * self.number(*(h.shape[d] for d in range(4)))) + h.square().sum() / (h.numel() / h.shape[0])


@pytest.mark.parametrize(
    "number",
    [
        lambda b, c, h, w: c + h,
        lambda b, c, h, w: c * h + 1,
        lambda b, c, h, w: 1.0 / (b * c * h * w),
        lambda b, c, h, w: (c * h * w) ** 0.5 - c,
        lambda b, c, h, w: c**-0.5,
    ],
)
@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_numbers_keep_their_values_at_every_size_of_the_input(number: Callable[..., float], frontend: str) -> None:
    found = pruned(Scaled(number), (torch.randn(2, 3, 6, 6),), 0.5, frontend)
    assert found.small.get_parameter("one.weight").shape[0] == 4
    sizes = [(2, 6, 6), (3, 6, 6)] + ([(1, 5, 9)] if frontend == "trace" else [])  # an exported graph fixes height and width
    assert_equal(found, *((torch.randn(batch, 3, *size),) for batch, *size in sizes))
