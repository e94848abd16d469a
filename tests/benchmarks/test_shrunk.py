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
    assert set(row) == {"model", "batch", *shrunk.compared([1.0], [1.0], [1.0])}
    assert all(row[key] > 0 for key in row if key != "model")


def test_ratios_are_those_of_each_round() -> None:
    found = shrunk.compared([0.4, 4.0, 0.8], [0.1, 2.0, 0.2], [0.2, 1.0, 0.1])
    assert found["whole ms"] == pytest.approx(800)
    assert found["shrunk ms"] == pytest.approx(200)
    assert found["shrunk / by hand"] == pytest.approx(2)  # the ratio of the medians would be 1
    assert found["speedup"] == pytest.approx(4)


def test_narrow_by_hand_has_the_layers_of_the_smaller_network() -> None:
    model, slim = (nn.Sequential(nn.Linear(3, n), nn.Sequential(nn.ReLU(), nn.Linear(n, 2))) for n in (8, 4))
    narrow = shrunk.narrow_by_hand(model, slim)
    assert str(narrow) == str(slim)
    assert "out_features=8" in str(model)
