"""Names, patterns and axes in ``ignore`` and ``overrides``: what they mean, and what they hold for besides."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import PlanError
from fxprune.planning.plan import Plan
from tests.plans import chain, counts, deps_of


class Gated(nn.Module):
    """A stream of 8, and a gated layer of 12."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(x + self.down_proj(self.gate_proj(x).sigmoid() * self.up_proj(x)))


def gated(**options: Any) -> Plan:
    return fxprune.plan(deps_of(Gated(), torch.randn(2, 3)), 0.5, **options)


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("gate_proj.weight[0]", [4, 9]),
        ("*gate_proj.weight[0]", [4, 9]),
        ("gate_proj.weight[-2]", [4, 9]),
        ("gate_proj[0]", [4, 9]),
        ("down_proj.weight[1]", [4, 9]),
        ("*_proj.weight[1]", [6, 9]),
        ("gate_proj.weight[1]", [6, 6]),
        ("gate_proj.weight", [6, 9]),
    ],
)
def test_a_name_may_end_in_an_axis(pattern: str, kept: list[int]) -> None:
    assert counts(gated(overrides={pattern: 0.25})) == kept
    ignored = gated(ignore=pattern)
    assert ignored.provenance("stem.weight", 0).size == (8 if kept[0] == 6 else 4)
    assert ignored.provenance("gate_proj.weight", 0).size == (12 if kept[1] == 9 else 6)


def test_letters_in_brackets_stay_letters() -> None:
    deps = chain(3, 4, 6, 8, 2)
    assert [c.group for c in fxprune.plan(deps, 0.5, ignore="layers.[01]").choices] == [2]
    assert [c.group for c in fxprune.plan(deps, 0.5, ignore="layers.[0]").choices] == [1, 2]
    assert [c.group for c in fxprune.plan(deps, 0.5, ignore="layers.[01].weight[0]").choices] == [2]
    assert [c.group for c in fxprune.plan(deps, 0.5, ignore="layers.[01].weight[1]").choices] == [1, 2]


def test_brackets_in_names_stay_names() -> None:
    model = nn.ModuleDict({"a[0]": nn.Linear(3, 4), "b": nn.Linear(4, 2)})

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, x: Tensor) -> Tensor:
            return self.layers["b"](self.layers["a[0]"](x))

    deps = deps_of(Named(), torch.randn(2, 3))
    assert fxprune.plan(deps, 0.5, ignore="layers.b[1]").choices == ()


@pytest.mark.parametrize("argument", ["ignore", "overrides"])
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("gate_proj.weight[2]", r"'gate_proj.weight\[2\]', but 'gate_proj.weight' of shape \[12, 8\] has no dimension 2"),
        ("gate_proj.bias[1]", r"'gate_proj.bias' of shape \[12\] has no dimension 1"),
        ("gate_proj.weight[-3]", "has no dimension -3"),
        ("gate_proj.weight[99999999999999999999]", "an axis is the number of a dimension"),
        ("gate_proj.weight[rows]", r"an axis is the number of a dimension, as in 'gate_proj.weight\[0\]'"),
        ("gate_proj.weight[0, 1]", "an axis is the number of a dimension"),
        ("gate_proj.weight[]", "an axis is the number of a dimension"),
        ("gate_proj.wieght[0]", "matches no parameter of the graph; did you mean 'gate_proj.weight'"),
        ("[0]", "matches no parameter of the graph"),
        ("gate_proj.weight]", "matches no parameter"),
    ],
)
def test_axes_that_are_not_there(argument: str, pattern: str, message: str) -> None:
    with pytest.raises(PlanError, match=f"^{argument} has .*{message}"):
        gated(**{argument: {pattern: 0.25} if argument == "overrides" else pattern})


def test_a_plan_says_what_else_names_hold_for() -> None:
    made = gated(overrides={"*gate_proj.weight[0]": 0.25}, ignore="last")
    assert made.notes == (
        "ignore: 'last' leaves alone stem.weight[0], stem.bias[0], gate_proj.weight[1] and 3 more as well",
        "overrides: '*gate_proj.weight[0]' holds for gate_proj.bias[0], up_proj.weight[0], up_proj.bias[0] and 1 more as well",
    )
    assert str(made).endswith("\n".join(made.notes))
    assert Plan.from_json(made.to_json()).notes == made.notes
    assert gated(overrides={"*": 0.25}, ignore=()).notes == ()


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (
            {"overrides": {"last.weight[0]": 0.25}},
            r"overrides: 'last.weight\[0\]' changes nothing: last.weight\[0\], 2 positions: whole: graph output .*",
        ),
        (
            {"overrides": {"stem.bias": 0.25}, "ignore": "stem.weight[0]"},
            "overrides: 'stem.bias' changes nothing: its groups are ignored, .*",
        ),
        (
            {"overrides": {"up_proj.bias": 0.25, "gate_proj.bias": 0.5}},
            "overrides: 'up_proj.bias' changes nothing: .* meant by a later entry, .*",
        ),
    ],
)
def test_a_plan_says_which_overrides_change_nothing(options: dict[str, Any], note: str) -> None:
    assert sum(bool(re.fullmatch(note, each)) for each in gated(**options).notes) == 1


def test_notes_of_another_kind_are_damaged() -> None:
    text = gated(ignore="last").to_json()
    with pytest.raises(PlanError, match="the plan is damaged"):
        Plan.from_json(text.replace('"notes": ["', '"notes": [1, "'))


def test_modules_are_called_by_their_class() -> None:
    model = Gated().eval()
    deps = deps_of(model, torch.randn(2, 3))
    assert fxprune.plan(deps, 0.5, ignore=[model.last]).notes[0].startswith("ignore: a Linear leaves alone stem.weight[0]")
