"""The rules of operators that cannot run here, checked by brute force on operators that compute the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload

import fxprune
from fxprune.rules import OpCard, Zero
from fxprune.rules.registry import named_card, op_card, register, unregister
from tests.rules import references
from tests.rules.brute_force import apply_rule, check_sound, draw, needlessly_whole, state_combinations, zero_claims
from tests.rules.sample import Context, Sample, exactly, real

GROUPED = op_card(torch.ops.aten._grouped_mm.default)
_ENDS = exactly(torch.tensor([2, 2, 6], dtype=torch.int32))
_REGIONS = exactly(torch.tensor([[0, 1, 1, 5, 6], [1, 0, 2, 4, 4], [0, 2, 0, 6, 3.0]]).double())


def _deformed(groups: int = 1, offset_groups: int = 1, use_mask: bool = True) -> Callable[[Context], list[Tensor]]:
    def run(c: Context) -> list[Tensor]:
        left = c.size("g", groups), c.size("q", offset_groups)
        return c.call(*c.tensors, 1, 2, 1, 0, 1, 1, *left, use_mask)

    return run


def _regions(*rest: Any) -> Callable[[Context], list[Tensor]]:
    return lambda c: c.call(c[0], c[1], 0.5, 2, 3, 2, *rest)


def _named(name: str) -> OpCard:
    return named_card(f"torchvision::{name}")


_X, _CONV = real(2, 12, 5, 8), references.deform_conv2d
CASES: list[tuple[OpOverload, OpCard, Sample]] = [
    (references.grouped_mm, GROUPED, Sample("", (real(6, 4), real(3, 4, 5), _ENDS), lambda c: c.call(*c.tensors))),
    (references.grouped_mm, GROUPED, Sample("", (real(6, 4), real(3, 4, 5), _ENDS, real(5)), lambda c: c.call(*c.tensors))),
    (references.grouped_mm, GROUPED, Sample("", (real(3, 6, 4), real(3, 4, 5)), lambda c: c.call(*c.tensors))),
    (references.grouped_mm, GROUPED, Sample("", (real(3, 5, 4), real(4, 6), _ENDS), lambda c: c.call(*c.tensors))),
    (references.grouped_mm, GROUPED, Sample("", (real(4, 6), real(6, 5), _ENDS), lambda c: c.call(*c.tensors))),
    (_CONV, _named("deform_conv2d"), Sample(
        "", (_X, real(6, 12, 3, 2), real(2, 12, 5, 4), real(2, 6, 5, 4), real(6)), _deformed())),
    (_CONV, _named("deform_conv2d"), Sample(
        "", (_X, real(6, 12, 3, 2), real(2, 12, 5, 4), real(2, 1), real(6)), _deformed(use_mask=False))),
    (_CONV, _named("deform_conv2d"), Sample(
        "", (_X, real(6, 4, 3, 2), real(2, 12, 5, 4), real(2, 6, 5, 4), real(6)), _deformed(groups=3))),
    (_CONV, _named("deform_conv2d"), Sample(
        "", (_X, real(6, 12, 3, 2), real(2, 24, 5, 4), real(2, 12, 5, 4), real(6)), _deformed(offset_groups=2))),
    (_CONV, _named("deform_conv2d"), Sample(
        "", (_X, real(6, 4, 3, 2), real(2, 24, 5, 4), real(2, 12, 5, 4), real(6)), _deformed(groups=3, offset_groups=2))),
    (references.roi_align, _named("roi_align"), Sample("", (_X, _REGIONS), _regions(True))),
    (references.ps_roi_align, _named("ps_roi_align"), Sample("", (_X, _REGIONS), _regions())),
]  # fmt: skip
_IDS = [f"{op} {' '.join(map(str, (list(o.shape) for o in sample.operands)))}" for op, _, sample in CASES]


@pytest.mark.parametrize(("op", "card", "sample"), CASES, ids=_IDS)
def test_sound(op: OpOverload, card: OpCard, sample: Sample) -> None:
    assert card.rule is not None
    check_sound(apply_rule(op, card.rule, sample, draw(sample, 1)), 1)


@pytest.mark.parametrize(("op", "card", "sample"), CASES, ids=_IDS)
def test_zeros(op: OpOverload, card: OpCard, sample: Sample) -> None:
    assert card.rule is not None
    for states in state_combinations(sample):
        for claim in zero_claims(apply_rule(op, card.rule, sample, draw(sample, 2), states=states), states, 2):
            assert claim.seen >= claim.claimed
            if claim.seen is Zero.ZERO and Zero.FINITE not in states and claim.result == 0:
                assert claim.claimed is Zero.ZERO


@pytest.mark.parametrize(("op", "card", "sample"), CASES, ids=_IDS)
def test_not_too_strict(op: OpOverload, card: OpCard, sample: Sample) -> None:
    assert card.rule is not None
    found = set(needlessly_whole(op, card.rule, sample, known=False, seeds=(3, 4)))
    # Groups may be empty, so that a single call does without them; and a mask that is not used has no rule.
    assert found <= ({(0, 0), (1, 0), (2, 0)} if op is references.grouped_mm else {(3, 0)})


@pytest.fixture
def known() -> Iterator[None]:
    """Let the operators of this file have the cards of those that they stand for."""
    cards = {op: card for op, card, _ in CASES}
    for op, card in cards.items():
        register(op, card)
    yield
    for op in cards:
        unregister(op)


class Detector(nn.Module):
    def __init__(self, groups: int, offset_groups: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.moves = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 18 * offset_groups, 3, padding=1)
        self.weight, self.bias = nn.Parameter(torch.randn(24, 12 // groups, 3, 3)), nn.Parameter(torch.randn(24))
        self.wide, self.head, self.parts = nn.Conv2d(24, 36, 1), nn.Linear(24, 3), nn.Linear(6, 3)
        self.groups = groups, offset_groups

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        flags = x.new_zeros(x.shape[0], 1)
        y = torch.tanh(self.stem(x))
        y = references.deform_conv2d(y, self.weight, self.moves(x), flags, self.bias, 1, 1, 1, 1, 1, 1, *self.groups, False)
        found = references.roi_align(torch.relu(y), regions, 0.5, 2, 3, 2, True).mean((2, 3))
        parts, _ = references.ps_roi_align(self.wide(y), regions, 0.5, 2, 3, 2)
        out: Tensor = self.head(found) + self.parts(parts.mean((2, 3)))
        return out


@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (3, 1), (1, 2)])
def test_a_detector_is_pruned(known: None, frontend: Any, groups: int, offset_groups: int) -> None:
    model = Detector(groups, offset_groups).double().eval()
    x, regions = torch.randn(2, 3, 6, 7).double(), draw(CASES[-1][2], 0)[1]
    small = fxprune.prune(model, (x, regions), 0.5, frontend=frontend, choose="inner")
    assert small.get_parameter("weight").shape[0] == 12
    assert small.get_parameter("weight").shape[1] == 6 // groups
    assert small.get_parameter("wide.weight").shape == (18, 12, 1, 1)
    assert small(x, regions).shape == (3, 3)


@pytest.mark.parametrize("name", ["torchvision::nms", "transformers::grouped_mm_fallback"])
def test_operators_of_other_libraries_need_not_be_there(name: str) -> None:
    assert named_card(name).rule is not None
