"""The benchmarks of masks run, in a short form; nothing here looks at times."""

from __future__ import annotations

import functools

import pytest

from tests.benchmarks import masks
from tests.zoo import shim


def test_selection(apart: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)  # this process goes on
    (row,) = masks.tiny_selection()
    assert apart == ["fxprune 100000 bfloat16"]
    assert (row["dtype"], row["million elements"]) == ("bfloat16", 0.1)
    assert row["ratio"] == pytest.approx(row["fxprune s"] / row["torch s"])
    assert round(row["fxprune masks %"]) == 50  # a byte an element
    assert round(row["torch masks %"]) == 100


def test_training_step() -> None:
    (row,) = masks.training_step({"small": functools.partial(masks._transformer, 1, 16, 4)}, rounds=2)
    assert row["model"] == "small"
    assert all(row[f"masked / {other}"] > 0 for other in ("hooks", "parametrize", "dense"))


def test_mask_memory() -> None:
    shim.install()
    pytest.importorskip("torchvision")
    (row,) = masks.mask_memory("resnet18")
    assert 0 < row["ratio"] < 0.01
