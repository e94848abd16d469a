"""Every benchmark runs, in a short form; nothing here looks at times."""

from __future__ import annotations

import runpy
import sys

import pytest

from tests.benchmarks import analysis


def test_depth() -> None:
    rows = analysis.depth(layers=(1, 2), repeats=1)
    assert [row["layers"] for row in rows] == [1, 2]
    assert rows[0]["a layer, ratio"] == 1


def test_width() -> None:
    rows = analysis.width((16, 32), heads=4, layers=1, repeats=1)
    assert [row["ratio of widths"] for row in rows] == [1, 2]
    assert rows[0]["ratio of times"] == 1


def test_resolution() -> None:
    rows = analysis.resolution((32, 64), ("resnet18",), repeats=1)
    assert [row["pixels"] for row in rows] == [1024, 4096]
    assert rows[0]["ratio"] == 1


def test_usual_models() -> None:
    rows = analysis.usual_models(repeats=1)
    assert [row["model"] for row in rows] == ["resnet50", "vit_b_16"]
    assert all(row["both s"] == pytest.approx(row["capture s"] + row["analysis s"]) for row in rows)


def test_a_model_larger_than_the_machine() -> None:
    (row,) = analysis.large(layers=2)
    assert row["parameters, billion"] > 3
    assert row["peak memory GiB"] < 4
    assert row["in a group %"] == pytest.approx(100)


def test_the_command_knows_its_benchmarks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m tests.benchmarks", "nothing"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("tests.benchmarks", run_name="__main__")
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert "choose from" in printed
    assert "depth" in printed
