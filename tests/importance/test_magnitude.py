"""Magnitude: norms of slices, how they are combined, and on which tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fxprune
from fxprune.errors import PlanError
from fxprune.importance import Magnitude
from fxprune.planning.planner import plan
from tests.importance.nets import deps_of, net, parameters, slices


def by_hand(tensors: dict[str, Tensor], group: Any, p: float, reduction: str) -> Tensor:
    norms = torch.tensor([[float(torch.linalg.vector_norm(part, p)) for part in member] for member in slices(tensors, group)])
    return {"mean": norms.mean(0), "sum": norms.sum(0), "max": norms.amax(0), "first": norms[0]}[reduction]


@pytest.mark.parametrize("p", [1, 2, 3, 0.5])
@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "first"])
def test_norms_of_slices(p: float, reduction: Any) -> None:
    deps = deps_of(net())
    assert [g.size for g in deps.groups] == [2, 4, 6, 5]
    for group in deps.groups:
        expected = by_hand(parameters(deps.gm), group, p, reduction)
        scores = Magnitude(p, reduction, "none")(deps, group)
        torch.testing.assert_close(scores.float(), expected)
        assert scores.dtype == torch.float64


@pytest.mark.parametrize(("normalizer", "of"), [("mean", torch.mean), ("max", torch.max), ("sum", torch.sum)])
def test_normalizers(normalizer: Any, of: Any) -> None:
    deps = deps_of(net())
    for group in deps.groups:
        plain = Magnitude(normalizer="none")(deps, group)
        torch.testing.assert_close(Magnitude(normalizer=normalizer)(deps, group), plain / of(plain))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_are_summed_in_single_precision(dtype: torch.dtype) -> None:
    narrow, single = deps_of(net(dtype)), deps_of(net(dtype).float())
    for group, same in zip(narrow.groups, single.groups, strict=True):
        scores = Magnitude()(narrow, group)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, Magnitude()(single, same))


def test_masked_weights_count_as_zero() -> None:
    deps = deps_of(net())
    gm = deps.gm
    mask = torch.ones(8, 3, 3, 3)
    mask[[1, 5]] = 0
    dense = parameters(gm)
    fxprune.mask(gm, {"stem.weight": mask})
    masked = fxprune.analyze(gm)
    expected = {**dense, "stem.weight": dense["stem.weight"] * mask}
    for group in masked.groups:
        torch.testing.assert_close(Magnitude(normalizer="none")(masked, group).float(), by_hand(expected, group, 2, "mean"))


def test_large_weights_are_summed_piece_by_piece() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 700), torch.nn.Linear(700, 600), torch.nn.Linear(600, 2)).double()
    deps = deps_of(model, torch.randn(2, 3))
    for group in deps.groups:
        expected = by_hand(parameters(deps.gm), group, 2, "mean")
        torch.testing.assert_close(Magnitude(normalizer="none")(deps, group).float(), expected)


def test_strided_weights() -> None:
    model = net()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain, strided = deps_of(net()), deps_of(model)
    for group, same in zip(plain.groups, strided.groups, strict=True):
        torch.testing.assert_close(Magnitude()(plain, group), Magnitude()(strided, same))


def test_zero_weights_score_zero() -> None:
    model = net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    deps = deps_of(model)
    assert all(not Magnitude()(deps, group).any() for group in deps.groups)
    assert [len(c.kept) for c in plan(deps, 0.5).choices] == [2, 3, 3]


def test_the_smallest_go_by_default() -> None:
    deps = deps_of(net())
    made = plan(deps, 0.5)
    for choice in made.choices:
        scores = Magnitude()(deps, deps.groups[choice.group])
        assert set(choice.kept.tolist()) == set(scores.topk(len(choice.kept)).indices.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0}, "p must be a positive, finite number, not 0"),
        ({"p": float("inf")}, "p must be a positive, finite number, not inf"),
        ({"p": "2"}, "p must be a positive, finite number, not '2'"),
        ({"reduction": "min"}, "reduction must be one of 'mean', 'sum', 'max', 'first', not 'min'"),
        ({"normalizer": "std"}, "normalizer must be one of 'mean', 'max', 'sum', 'none', not 'std'"),
    ],
)
def test_options_out_of_range(options: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Magnitude(**options)
