"""The benchmark of the whole way runs, in a short form; nothing here looks at times."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from tests.benchmarks import peers, pipeline
from tests.zoo import shim

# Torch-Pruning's own code, and what it calls.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_one_model() -> None:
    shim.install()
    pytest.importorskip("torchvision")
    row, *summary = pipeline.pipeline(("torchvision/resnet18",), rounds=1)
    assert row["not done"] == ""
    assert row["ratio"] == pytest.approx(row["fxprune s"] / row["torch-pruning s"])
    assert row["fxprune left %"] == pytest.approx(row["torch-pruning left %"], abs=3)
    assert {line["model"] for line in summary if line.get("ratio") == row["ratio"]} >= {"median", "greatest"}


def test_what_all_models_come_to() -> None:
    both = [{"model": str(i), "ratio": i, "fxprune s": i, "fxprune first s": 2 * i} for i in (1.0, 4.0)]
    rows = [{**row, "torch-pruning s": 1.0, "torch-pruning first s": 1.0} for row in both] + [{"model": "x", "fxprune s": 1.0}]
    mean, first, median, greatest, ours, theirs = pipeline.summary(rows)
    assert [line["ratio"] for line in (mean, first, median, greatest)] == pytest.approx([2, 4, 2.5, 4])
    assert [line["model"] for line in (ours, theirs)] == ["only fxprune: 1", "only torch-pruning: 0"]
    assert ours["not done"] == "x"


def test_the_other_side_is_told_what_makes_the_result_and_how_many_heads_there_are() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.body(x)))

    model = Net()
    assert peers._heads(model, (torch.randn(2, 4),), {}) == [model.head]
    small = peers.torch_pruned(model, (torch.randn(2, 4),), {})
    assert [tuple(p.shape) for p in small.parameters()] == [(4, 4), (4,), (4, 4), (4,)]
    attention: Any = nn.Module()
    attention.num_heads, attention.qkv = 2, nn.Linear(4, 12)
    assert peers._attentions(nn.Sequential(attention)) == {attention.qkv: 2}


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "transformers/bert"])
def test_models_are_of_normal_size(name: str) -> None:
    shim.install()
    pytest.importorskip(name.partition("/")[0])
    model, args, kwargs = pipeline.build(name)
    assert sum(p.numel() for p in model.parameters()) > 5e6
    (x,) = (*args, *kwargs.values())
    assert x.shape == ((1, 3, 224, 224) if args else (1, 128))


def test_what_did_not_work_is_told() -> None:
    model = nn.Linear(4, 2)
    with pytest.raises(ValueError, match="100 % of the parameters are left"):
        pipeline.check(model, model, (torch.randn(1, 4),), {})
    with pytest.raises(ValueError, match="results of shapes"):
        pipeline.check(nn.Linear(4, 3), model, (torch.randn(1, 4),), {})


def test_what_takes_too_long_is_ended() -> None:
    with pytest.raises(TimeoutError, match=r"not done after 0\.1 s"), pipeline.limited(0.1):
        time.sleep(60)
    with pipeline.limited(0.1):
        pass
    time.sleep(0.2)
