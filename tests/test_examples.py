"""The examples run, on small models, and print what they promise."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.zoo import shim

shim.install()

EXAMPLES = Path(__file__).parent.parent / "examples"
# What torchvision, timm and transformers, and torch inside them, warn of is not ours to test.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    monkeypatch.setattr("fxprune.reports.comparison._SECONDS", 0.0)  # no test looks at the latencies
    main = runpy.run_path(str(EXAMPLES / name))["main"]
    main.__globals__.update(TIMED_ROUNDS=1, WARM_UP=0)
    with torch.random.fork_rng(devices=[]):
        main()


def cells(printed: str, stage: str) -> list[str]:
    """Return the numbers in one row of a table."""
    line = next(line for line in printed.splitlines() if line.startswith(f"{stage}  "))
    return line.removeprefix(stage).split()


def test_digits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    run(monkeypatch, "digits.py", "--epochs", 1, "--output", tmp_path)
    printed = capsys.readouterr().out
    dense, masked, shrunk = (cells(printed, stage) for stage in ("dense", "masked, round 3", "shrunk"))
    assert dense[1:4] == ["672", "308,074", "6,068,736"]
    assert masked[1:4] == ["336", "308,074", "6,068,736"]
    assert shrunk[1:4] == ["336", "77,754", "1,527,040"]
    assert shrunk[0] == masked[0]  # they compute the same
    assert cells(printed, "TorchScript reloaded")[1:4] == shrunk[1:4]
    assert float(shrunk[4]) < float(dense[4]) / 3
    assert (tmp_path / "digits.torchscript.pt").exists()


def test_digits_sparse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    run(monkeypatch, "digits_sparse.py", "--epochs", 1, "--output", tmp_path)
    printed = capsys.readouterr().out
    assert cells(printed, "round 3")[2] == cells(printed, "finalized")[2] == "80.0"
    assert (tmp_path / "digits.torchscript.pt").exists()


@pytest.mark.parametrize(
    ("library", "model", "size"),
    [("torchvision", "resnet18", 64), ("timm", "test_vit", 160)],
    ids=["torchvision", "timm"],
)
def test_classifier(
    library: str, model: str, size: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip(library)
    file = tmp_path / "model.pt"
    run(monkeypatch, "classifier.py", "--library", library, "--model", model, "--image-size", size, "--torchscript", file)
    printed = capsys.readouterr().out
    assert re.search(r"3 positions: whole: .*graph input 'x'", printed)
    assert re.search(r"1000 positions: whole: graph output", printed)
    assert ratio(printed, "parameters") < 0.7
    assert "logits of 3 images: (3, 1000)" in printed
    assert torch.jit.load(str(file))(torch.randn(2, 3, size, size)).shape == (2, 1000)


def test_encoder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    file = tmp_path / "encoder.pt"
    run(monkeypatch, "encoder.py", "--length", 16, "--torchscript", file)
    printed = capsys.readouterr().out
    assert ratio(printed, "FLOPs") < 0.55
    assert "outputs, as before: {'last_hidden_state': (2, 16, 256), 'pooler_output': (2, 256)}" in printed
    assert file.exists()


def test_encoder_from_a_directory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("onnxscript")
    from transformers import DistilBertConfig, DistilBertModel

    model = DistilBertModel(DistilBertConfig(vocab_size=1000, dim=32, n_layers=1, n_heads=4, hidden_dim=64))
    model.save_pretrained(tmp_path)
    file = tmp_path / "encoder.onnx"
    run(monkeypatch, "encoder.py", "--pretrained", tmp_path, "--length", 8, "--onnx", file)
    assert "'last_hidden_state': (2, 8, 32)" in capsys.readouterr().out
    assert file.exists()


def ratio(printed: str, quantity: str) -> float:
    """Return the ratio in one row of a summary."""
    return float(cells(printed, quantity)[-1])
