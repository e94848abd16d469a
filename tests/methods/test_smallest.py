"""Global masks of the smallest elements: torch's where values differ, and by position where they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune.methods import smallest
from fxprune.methods.smallest import masks_of_smallest


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smallest, "piece_size", lambda tensors: 13)


class Weights(nn.Module):
    def __init__(self, *tensors: Tensor) -> None:
        super().__init__()
        for i, tensor in enumerate(tensors):
            self.register_parameter(f"w{i}", nn.Parameter(tensor))

    def forward(self, x: Tensor) -> Tensor:
        for parameter in self.parameters():
            x = x + parameter.abs().sum()
        return x


def both(*tensors: Tensor) -> tuple[Any, nn.Module, list[str]]:
    gm = fxprune.capture(Weights(*(t.clone() for t in tensors)), torch.ones(2))
    return (
        gm,
        Weights(*(t.clone(memory_format=torch.contiguous_format) for t in tensors)),
        [f"w{i}" for i in range(len(tensors))],
    )


def assert_same_masks(gm: Any, model: nn.Module, names: list[str]) -> None:
    for name in names:
        ours, theirs = gm.get_buffer(f"{name}_mask"), model.get_buffer(f"{name}_mask")
        torch.testing.assert_close(ours.to(theirs.dtype), theirs, rtol=0, atol=0)


def distinct(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor of numbers of different magnitudes."""
    count = torch.Size(shape).numel()
    signs = torch.randint(0, 2, (count,)) * 2 - 1
    return ((torch.randperm(count) + 1) * signs / 7).view(shape).to(dtype)


KINDS = {
    "float32": (distinct(4, 9), distinct(50) + 0.01),
    "float64": (distinct(4, 9, dtype=torch.float64), distinct(50, dtype=torch.float64) + 0.01),
    "bfloat16": (torch.linspace(-1, 1, 40).bfloat16()[:19], torch.tensor([3.0, -2.5], dtype=torch.bfloat16)),
    "mixed": (distinct(4, 9, dtype=torch.float16), distinct(50, dtype=torch.float64) + 0.01),
    "complex": (torch.complex(distinct(30).abs(), torch.zeros(30)), distinct(50).abs() + 0.01),
    "channels_last": (distinct(3, 4, 5, 2).to(memory_format=torch.channels_last), distinct(7) + 0.01),
    "not finite": (torch.tensor([float("nan"), float("inf"), 0.0, 1.0, -2.0]), torch.tensor([4.0, 0.5])),
}


@pytest.mark.filterwarnings("ignore:Casting complex values to real")  # torch's own masks of complex parameters
@pytest.mark.parametrize("tensors", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("amount", [0, 1, 4, 0.3, 0.5, 1.0])
def test_masks_are_those_of_torch(tensors: tuple[Tensor, ...], amount: int | float) -> None:
    gm, model, names = both(*tensors)
    left = sum(map(Tensor.numel, tensors))
    for _ in range(2):  # the second time among those that are left
        if isinstance(amount, int) and amount > left:
            continue
        left -= int(amount)
        fxprune.global_unstructured(gm, names, fxprune.L1Unstructured, amount=amount)
        torch_prune.global_unstructured([(model, n) for n in names], torch_prune.L1Unstructured, amount=amount)
        assert_same_masks(gm, model, names)


def test_importance_scores_and_masks_of_other_values() -> None:
    gm, model, names = both(distinct(4, 9), distinct(50) + 0.01)
    graded = torch.linspace(-1, 2, 36).view(4, 9)
    graded[0] = 1
    fxprune.custom_from_mask(gm, "w0", graded)
    torch_prune.custom_from_mask(model, "w0", graded)
    scores = distinct(50) + 0.02
    fxprune.global_unstructured(gm, names, fxprune.L1Unstructured, {"w1": scores}, amount=0.5)
    torch_prune.global_unstructured(
        [(model, n) for n in names], torch_prune.L1Unstructured, {(model, "w1"): scores}, amount=0.5
    )
    assert_same_masks(gm, model, names)


def test_whole_numbers_as_scores() -> None:
    gm, _, names = both(distinct(30), distinct(20))
    scores = [torch.randperm(50)[:30] - 25, torch.arange(20) + 60]
    fxprune.global_unstructured(gm, names, fxprune.L1Unstructured, dict(zip(names, scores, strict=True)), amount=0.5)
    kept = torch.cat([gm.get_buffer("w0_mask"), gm.get_buffer("w1_mask")]).bool()
    magnitude = torch.cat(scores).abs()
    assert kept.sum() == 25
    assert magnitude[~kept].max() <= magnitude[kept].min()


@pytest.mark.parametrize("goes", range(1, 60, 7))
def test_of_equal_elements_the_first_go(goes: int) -> None:
    equal, other = torch.full((5, 6), -2.0), torch.full((30,), 2.0)
    gm, _, names = both(equal, other)
    fxprune.global_unstructured(gm, names, fxprune.L1Unstructured, amount=goes)
    kept = torch.cat([gm.get_buffer(f"{name}_mask").flatten() for name in names])
    assert kept.tolist() == [0] * goes + [1] * (60 - goes)


def test_of_equal_elements_those_that_are_masked_do_not_count() -> None:
    values = torch.ones(40)
    gm, _, names = both(values)
    fxprune.custom_from_mask(gm, "w0", torch.tensor([0.0, 1.0] * 20))
    fxprune.global_unstructured(gm, names, fxprune.L1Unstructured, amount=5)
    assert gm.get_buffer("w0_mask").tolist() == [0] * 10 + [0, 1] * 15


def test_on_top_of_the_masks_of_a_plan() -> None:
    first, second = nn.Linear(8, 16), nn.Linear(16, 4)
    model = nn.Sequential(first, nn.ReLU(), second).double()
    x = torch.randn(3, 8, dtype=torch.float64)
    gm: Any = fxprune.capture(model, x)
    gm = fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    names = ["0.weight", "2.weight"]
    weights = {name: model.get_parameter(name).detach().clone() for name in names}
    structured = {name: gm.get_buffer(f"{name}_mask{dim}").expand_as(weights[name]) for dim, name in enumerate(names)}
    fxprune.global_unstructured(gm, names, fxprune.L1Unstructured, amount=0.25)
    left = torch.cat([(weights[n] * structured[n]).abs().flatten() for n in names])
    cut = left[left > 0].sort().values[24 - 1]  # a quarter of 64 + 32
    for name in names:
        weights[name] *= structured[name] * (weights[name].abs() > cut)
    by_hand = nn.functional.linear(
        torch.relu(nn.functional.linear(x, weights["0.weight"], first.bias.detach() * structured["0.weight"][:, 0])),
        weights["2.weight"],
        second.bias.detach(),
    )
    torch.testing.assert_close(gm(x), by_hand, rtol=0, atol=1e-12)
    fxprune.finalize(gm)
    torch.testing.assert_close(gm(x), by_hand, rtol=0, atol=1e-12)


def test_a_method_of_ones_own_still_sees_all_elements_at_once() -> None:
    seen = []

    class Mine(fxprune.L1Unstructured):
        def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
            seen.append(t.shape)
            return super().compute_mask(t, default_mask)

    gm, _, names = both(distinct(30), distinct(20) + 0.01)
    fxprune.global_unstructured(gm, names, Mine, amount=0.5)
    assert seen == [(50,)]


@pytest.mark.parametrize("tensors", [(torch.ones(3, dtype=torch.int64),), (torch.ones(3, device="meta"),)])
def test_what_cannot_be_ranked_by_its_bits_is_left_to_torch(tensors: tuple[Tensor, ...]) -> None:
    assert masks_of_smallest(tensors, [None], 1) is None


def test_more_than_there_are() -> None:
    gm, _, names = both(distinct(30))
    text = gm.code
    with pytest.raises(ValueError, match=r"cannot prune 1 parameters \(w0\) with L1Unstructured: amount=31 should be smaller"):
        fxprune.global_unstructured(gm, names, fxprune.L1Unstructured, amount=31)
    assert gm.code == text
