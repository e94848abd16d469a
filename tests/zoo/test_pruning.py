"""A sample of the catalogue is pruned exactly; ``python -m tests.zoo --prune`` prunes all of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from tests.zoo import pruning, shim
from tests.zoo.__main__ import main
from tests.zoo.catalogue import catalogue
from tests.zoo.pruning import EXACT, Row, WithoutDropout

shim.install()
pytest.importorskip("timm")
pytest.importorskip("transformers")

# What these libraries, and torch inside them, warn of is not ours to test.
pytestmark = pytest.mark.filterwarnings("ignore")

GOOD = Row("timm/test_vit", 372_000, 0.5, 0.5, 0.6, (1e-15, 1e-14, 0.0, 1e-12), 1e-9, (0.1, 0.2, 0.3))


@pytest.mark.parametrize("name", ["torchvision/shufflenet_v2_x0_5", "timm/test_vit", "transformers/bert", "transformers/llama"])
def test_a_sample_is_pruned_exactly(name: str) -> None:
    row = pruning.measure(catalogue()[name])
    assert not row.note
    assert row.removed_aside > 0.2


def test_the_models_that_have_to_be_exact_are_in_the_catalogue() -> None:
    assert set(EXACT) <= set(catalogue())
    assert len(set(EXACT)) == len(EXACT) == 58


def test_models_are_made_lively() -> None:
    model, args, kwargs, exact = pruning.lively(catalogue()["timm/test_vit"])
    assert exact
    assert all(p.dtype == torch.float64 for p in model.parameters())
    wider = pruning.wider(catalogue()["timm/test_vit"], (args, kwargs))
    assert torch.equal(wider[0][0][:2], args[0])
    assert pruning.is_telling(model(*wider[0], **wider[1]))
    assert not pruning.lively(catalogue()["transformers/llama"])[3]  # computes angles in float32
    assert not pruning.is_telling(torch.ones(2, 3))
    assert not pruning.is_telling(torch.tensor([[1.0], [float("nan")]]))


def test_tables_of_embeddings_are_found() -> None:
    model, args, kwargs = catalogue()["transformers/gpt2"].build()
    deps = fxprune.analyze(fxprune.capture(model, args, kwargs))
    assert pruning.embeddings(deps) == {"lm_head.weight", "transformer.wte.weight", "transformer.wpe.weight"}


def test_nothing_is_dropped_without_dropout() -> None:
    x = torch.randn(4, 6, requires_grad=True)
    with WithoutDropout():
        once = F.dropout(x, 0.3) + F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5)[0]
        again = nn.Dropout(0.3)(x) + F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5)[0]
        once.sum().backward()
    assert torch.equal(once, again)
    assert bool((once != 0).all())


def test_what_is_wrong_is_noted() -> None:
    assert not GOOD.is_failure
    assert dataclasses.replace(GOOD, removed=0.0).note == "nothing was removed"
    wrong = dataclasses.replace(GOOD, errors=(1e-15, 1e-3, 0.0, float("nan")))
    assert wrong.note == "masked and shrunk differ: train, gradient"
    assert dataclasses.replace(GOOD, errors=(0.0, 1e-6, 0.0, 0.0)).is_failure
    assert not dataclasses.replace(GOOD, errors=(0.0, 1e-6, 0.0, 0.0), tolerance=1e-5).is_failure


def test_an_error_and_the_time_limit_are_rows() -> None:
    def fail() -> nn.Module:
        raise RuntimeError("two\n  lines")

    recipe = catalogue()["torchvision/resnet18"]
    assert pruning.measure(dataclasses.replace(recipe, construct=fail)).error == "build: RuntimeError: two lines"
    assert pruning.measure_apart(recipe, seconds=0.0).error == "not done after 0 seconds"


def test_the_command_prints_writes_and_exits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [GOOD, Row("timm/test_convnext", 1000, error="mask: ValueError: no")]
    monkeypatch.setattr(pruning, "measure", lambda recipe: rows.pop(0))
    arguments = ["test_vit", "test_convnext", "--prune", "--jobs", "0", "--json", str(tmp_path / "rows.json")]
    assert main(arguments) == 1
    printed = capsys.readouterr().out.splitlines()
    numbers = ["timm/test_vit", "0.37", "50.0", "50.0", "60.0", "1e-15", "1e-14", "0e+00", "1e-12", "0.10", "0.20", "0.30"]
    assert printed[2].split() == numbers
    assert printed[3].endswith("mask: ValueError: no")
    assert printed[-1] == "1 of 2 pruned, by 50.0 % of the parameters on average, embeddings aside; 1 failed"
    assert [row["name"] for row in json.loads((tmp_path / "rows.json").read_text())] == ["timm/test_vit", "timm/test_convnext"]
    assert main(["--exact", "--prune", "--family", "timm", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 22
