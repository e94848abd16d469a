"""A sample of the catalogue is analysed, with a rule for every operator; ``python -m tests.zoo`` measures all of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from torch import nn

from tests.zoo import coverage, shim
from tests.zoo.__main__ import main
from tests.zoo.catalogue import FAMILIES, catalogue, select
from tests.zoo.coverage import EXPECTED, Row

shim.install()
pytest.importorskip("timm")
pytest.importorskip("transformers")

# What these libraries, and torch inside them, warn of is not ours to test.
pytestmark = pytest.mark.filterwarnings("ignore")

# Cheap ones that differ: residuals, concatenation, channel shuffle, windows, fused and grouped attention, two stacks.
_SAMPLE = (
    "torchvision/resnet18",
    "torchvision/squeezenet1_1",
    "torchvision/shufflenet_v2_x0_5",
    "timm/test_convnext",
    "timm/test_vit",
    "transformers/bert",
    "transformers/llama",
    "transformers/t5",
)


@pytest.mark.parametrize("name", _SAMPLE)
def test_a_sample_is_covered(name: str) -> None:
    row = coverage.measure(catalogue()[name])
    assert not row.error
    assert row.without_rule == ()
    assert row.groups > 0
    assert 0 < row.share <= 1


def test_the_catalogue_is_wide_and_its_names_are_unique() -> None:
    recipes = select()
    assert len({recipe.name for recipe in recipes}) == len(recipes)
    counts = {family: sum(recipe.family == family for recipe in recipes) for family in FAMILIES}
    assert counts["transformers"] >= 30
    assert counts["timm"] >= 90
    assert counts["torchvision"] >= 40
    assert set(EXPECTED) <= set(catalogue())


def test_names_and_patterns_select() -> None:
    assert [recipe.name for recipe in select(["resnet18"])] == ["torchvision/resnet18"]
    assert [recipe.name for recipe in select(["*/densenet121"])] == ["torchvision/densenet121", "timm/densenet121"]
    assert {recipe.family for recipe in select(family="timm")} == {"timm"}
    with pytest.raises(ValueError, match="named 'nothing'"):
        select(["resnet18", "nothing"])


def test_an_error_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> nn.Module:
        raise RuntimeError("two\n  lines")

    recipe = dataclasses.replace(catalogue()["torchvision/resnet18"], construct=fail)
    row = coverage.measure(recipe)
    assert row.error == "build: RuntimeError: two lines"
    assert coverage.totals([row]).endswith("1 failed")
    monkeypatch.setitem(EXPECTED, recipe.name, "it is broken")
    assert coverage.totals([row]).endswith("0 failed")
    assert row.note == "expected (it is broken): build: RuntimeError: two lines"


def test_the_time_limit_is_a_row() -> None:
    row = coverage.measure_apart(catalogue()["torchvision/resnet18"], seconds=0.0)
    assert row.error == "not done after 0 seconds"


def test_the_command_prints_writes_and_exits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def measure(recipe: object) -> Row:
        return rows.pop(0)

    monkeypatch.setattr(coverage, "measure", measure)
    complete = Row("torchvision/alexnet", "trace", 24, 61_100_840, 1.0, 0.1, 7, 0.5)
    lacking = Row("torchvision/resnet18", "trace", 71, 11_689_512, 1.0, 0.1, 9, 1.0, ("sort at n",))
    rows = [complete, lacking]
    arguments = ["alexnet", "resnet18", "--jobs", "0", "--json", str(tmp_path / "rows.json")]
    assert main(arguments) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].split() == ["torchvision/alexnet", "trace", "24", "61.10", "1.0", "0.10", "7", "50.0"]
    assert printed[3].endswith("no rule: sort at n")
    assert printed[-1] == (
        "2 of 2 analysed; 1 with operators without a rule; on average 75.0 % of the parameters in a group; 1 failed"
    )
    written = json.loads((tmp_path / "rows.json").read_text())
    assert [Row(**{**row, "without_rule": tuple(row["without_rule"])}) for row in written] == [complete, lacking]
    rows = [complete]
    assert main(["alexnet", "--jobs", "0"]) == 0
