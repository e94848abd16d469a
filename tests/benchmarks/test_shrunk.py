"""The benchmark of shrunk networks runs, in a short form; nothing here looks at times."""

from __future__ import annotations

import pytest
from torch import nn

from tests.benchmarks import shrunk
from tests.zoo import shim


def test_latency() -> None:
    shim.install()
    pytest.importorskip("torchvision")
    (row,) = shrunk.tiny()
    assert (row["model"], row["batch"]) == ("resnet18", 2)
    assert row["shrunk / by hand"] == pytest.approx(row["shrunk ms"] / row["narrow by hand ms"])
    assert row["speedup"] > 0


def test_narrow_by_hand_has_the_layers_of_the_smaller_network() -> None:
    model, slim = (nn.Sequential(nn.Linear(3, n), nn.Sequential(nn.ReLU(), nn.Linear(n, 2))) for n in (8, 4))
    narrow = shrunk.narrow_by_hand(model, slim)
    assert str(narrow) == str(slim)
    assert "out_features=8" in str(model)
