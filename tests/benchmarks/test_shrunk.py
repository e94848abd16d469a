"""The benchmark of shrunk networks runs, in a short form; nothing here looks at times."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.benchmarks import shrunk
from tests.zoo import shim

# Torch-Pruning's own code, and what it calls.
pytestmark = pytest.mark.filterwarnings("ignore")

_SMALL = {
    "resnet": shrunk.resnet("resnet18", 32),
    "vit": shrunk.vit(16, 8, 1, 8, 256),
    "bert": shrunk.bert(8, hidden_size=32, num_attention_heads=8, intermediate_size=64, num_hidden_layers=1, vocab_size=1000),
}


@pytest.mark.parametrize("name", _SMALL)
def test_latency(name: str) -> None:
    shim.install()
    pytest.importorskip("torchvision")
    pytest.importorskip("transformers")
    rows = shrunk.latency({name: _SMALL[name]}, ("eager", "TorchScript frozen"), {2: 3})
    assert [row["way"] for row in rows] == ["eager", "TorchScript frozen"]
    assert all(row["shrunk / class"] > 0 for row in rows)
    assert rows[0]["torch-pruning FLOPs / ours"] == pytest.approx(1, abs=0.1)


def test_flops_are_those_of_all_layers() -> None:
    layer, x = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval(), torch.randn(2, 5, 32)
    assert shrunk.flops(layer, x) >= 2 * 2 * 5 * (4 * 32 * 32 + 2 * 32 * 64)


def test_a_compiled_model_is_timed() -> None:
    times = shrunk._times({"shrunk": nn.Linear(4, 2)}, "torch.compile", torch.randn(2, 4), 3)
    assert len(times["shrunk"]) == 3


def test_ratios_are_those_of_each_round() -> None:
    found = shrunk.compared({"shrunk": [0.1, 2.0, 0.2], "class": [0.2, 1.0, 0.1]})
    assert found["shrunk ms"] == pytest.approx(200)
    assert found["class ms"] == pytest.approx(200)
    assert found["shrunk / class"] == pytest.approx(2)  # the ratio of the medians would be 1


def test_narrow_by_hand_has_the_layers_of_the_smaller_network() -> None:
    model, slim = (nn.Sequential(nn.Linear(3, n), nn.Sequential(nn.ReLU(), nn.Linear(n, 2))) for n in (8, 4))
    narrow = shrunk.narrow_by_hand(model, slim)
    assert str(narrow) == str(slim)
    assert "out_features=8" in str(model)


def test_the_peer_is_brought_to_as_many_flops() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)), torch.randn(3, 4)
    goal = shrunk.flops(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), x)
    small = shrunk.pruned_to(model, x, goal)
    assert shrunk.flops(small, x) == goal
    assert len(model.get_parameter("0.weight")) == 64
