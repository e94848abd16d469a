"""Plans and their graphs: stored, found again, refused; and arguments out of range."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fxprune
from fxprune.errors import PlanError, PruningTypeError
from fxprune.importance import Magnitude, Random
from fxprune.planning.plan import Plan
from fxprune.planning.planner import plan
from tests.golden.registry import NETS
from tests.plans import chain, counts, deps_of, golden, rising
from tests.zoo import shim

# A plan and its graph.


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("options", [{}, {"choose": "all"}, {"scope": "global"}], ids=str)
def test_units_are_found_again_from_what_is_kept(name: str, options: dict[str, Any]) -> None:
    deps = golden(name)
    made = Plan.from_json(plan(deps, 0.5, **options).to_json())
    removed = made.removed(deps)
    expected = np.zeros(deps.units.count, bool)
    for choice in made.choices:
        gone = np.setdiff1d(np.arange(choice.size), choice.kept)
        expected[deps.groups[choice.group].units[gone]] = True
    assert np.array_equal(removed, expected)
    flags = np.append(removed, False)
    for tracked in deps.tracked:
        for dim, axis in enumerate(tracked.label.axes):
            left = np.flatnonzero(~flags[deps.units.resolve(axis)].any(1))
            assert np.array_equal(made.provenance(tracked.name, dim), left)
    sizes = [math.prod(len(made.provenance(t.name, d)) for d in range(len(t.label))) for t in deps.tracked if t.is_parameter]
    assert made.params_after == sum(sizes) == deps.costs.parameters(removed)
    alone = [choice.parameters for choice in made.choices]
    assert made.params_before - made.params_after <= sum(alone)


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(sorted(NETS)), amount=st.floats(0, 0.99), seed=st.integers(0, 1000))
def test_plans_survive_as_text(name: str, amount: float, seed: int) -> None:
    made = plan(golden(name), amount, importance=Random(seed), scope="global" if seed % 2 else "local")
    read = Plan.from_json(made.to_json())
    assert str(read) == str(made)
    assert read.to_json() == made.to_json()
    assert (read.fingerprint, read.shapes, read.aliases) == (made.fingerprint, made.shapes, made.aliases)
    assert read.kept.keys() == made.kept.keys()
    assert all(np.array_equal(read.kept[place], made.kept[place]) for place in made.kept)
    for one, other in zip(read.choices, made.choices, strict=True):
        assert np.array_equal(one.scores, other.scores)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: "{", "the text is not a plan"),
        (lambda s: "[]", "not a plan of the format 'fxprune plan 1'"),
        (lambda s: json.dumps({**s, "format": "fxprune plan 9"}), "not a plan of the format"),
        (lambda s: json.dumps({k: v for k, v in s.items() if k != "kept"}), "the plan is damaged: KeyError: 'kept'"),
        (lambda s: json.dumps({**s, "kept": [["layers.0.weight", 0, 99]]}), "the plan is damaged: IndexError"),
        (lambda s: json.dumps({**s, "indices": [[3, 2]]}), "the plan is damaged: ValueError: indices must ascend from 0"),
        (lambda s: json.dumps({**s, "indices": [[]]}), r"nothing is kept of layers.0.weight\[0\]"),
        (lambda s: json.dumps({**s, "indices": [[0, 4]]}), "be less than 4"),
        (lambda s: json.dumps({**s, "indices": [[True]]}), "indices must be a list of integers"),
        (
            lambda s: json.dumps({**s, "kept": [[*k[:2], -1] for k in s["kept"]]}),
            "the place of .* must be of type int, not '-1'",
        ),
        (lambda s: json.dumps({**s, "kept": [["z", 0, 0]]}), "KeyError: 'z'"),
        (lambda s: json.dumps({**s, "kept": [["layers.0.weight", 2, 0]]}), "IndexError"),
        (lambda s: json.dumps({**s, "kept": [["layers.0.weight", -1, 0]]}), "must be of type int, not '-1'"),
        (lambda s: json.dumps({**s, "kept": {"layers.0.weight": 0}}), "kept must be of type list"),
        (
            lambda s: json.dumps(
                {**s, "kept": [["layers.0.weight", 0, 0]] * 2 + [["layers.0.weight", 0, 1]], "indices": [[0], [1]]}
            ),
            "is there twice",
        ),
        (lambda s: json.dumps({**s, "shapes": [[1]]}), "shapes must be of type dict"),
        (lambda s: json.dumps({**s, "shapes": {"layers.0.weight": ["4"]}}), "a size of 'layers.0.weight' must be of type int"),
        (lambda s: json.dumps({**s, "aliases": {"x": "z"}}), "no shape of 'z'"),
        (lambda s: json.dumps({**s, "params": ["1", 2]}), "a number of parameters must be of type int"),
        (lambda s: json.dumps({**s, "params": [1]}), "ValueError"),
        (lambda s: json.dumps({**s, "flops": [1e999, 1]}), "Infinity is not a number of a plan"),
        (lambda s: json.dumps(s).replace(str(s["flops"][0]), "NaN"), "NaN is not a number of a plan"),
        (lambda s: json.dumps({**s, "fingerprint": None}), "the fingerprint must be of type str"),
        (lambda s: json.dumps({**s, "choices": [[0, "a", 2, [0], [1.0], 3]]}), "the scores of 'a' must be 2 numbers"),
        (lambda s: json.dumps({**s, "choices": [[0, "a", 2, [2], [1.0, 2.0], 3]]}), "be less than 2: the units of 'a'"),
        (lambda s: json.dumps({**s, "choices": [[0, "a", 2, [0]]]}), "ValueError"),
        (lambda s: json.dumps({**s, "choices": [5]}), "a choice must be of type list"),
        (lambda s: "[" * 100_000, "the text is not a plan"),
        (lambda s: json.dumps({**s, "flops": [10**400, 1]}), "OverflowError"),
        (lambda s: json.dumps({**s, "indices": [[0.5]]}), "indices must be a list of integers"),
        (lambda s: json.dumps({**s, "indices": 5}), "indices must be of type list"),
    ],
)
def test_damaged_text_is_refused(damage: Callable[[dict[str, Any]], str], message: str) -> None:
    stored = json.loads(plan(chain(3, 4, 2), 0.5).to_json())
    with pytest.raises(PlanError, match=message):
        Plan.from_json(damage(stored))


def test_indices_that_no_units_leave_are_refused() -> None:
    deps = chain(3, 4, 2)
    stored = json.loads(plan(deps, 0.5, importance=rising).to_json())
    stored["indices"].append([0, 1, 2])
    stored["kept"][0][2] = len(stored["indices"]) - 1
    with pytest.raises(
        PlanError, match=r"keeps indices of layers.0.weight\[0\] that are not those left by whole units, at \[3\]"
    ):
        Plan.from_json(json.dumps(stored)).removed(deps)
    stored["indices"][-1] = [7]
    with pytest.raises(PlanError, match=r"be less than 4: layers.0.weight\[0\]"):
        Plan.from_json(json.dumps(stored)).removed(deps)


def test_a_plan_that_keeps_nothing_is_refused_before_anything_changes() -> None:
    deps = chain(3, 4, 2)
    made = plan(deps, 0.5)
    empty = dataclasses.replace(made, kept={at: index[:0] for at, index in made.kept.items()})
    code = deps.gm.code
    with pytest.raises(PlanError, match=r"the plan keeps nothing of layers.0.weight\[0\]: make a new one"):
        fxprune.mask(deps.gm, empty)
    with pytest.raises(PlanError, match=r"keeps indices of x\[0\], which the graph does not have"):
        fxprune.mask(deps.gm, dataclasses.replace(made, kept={**made.kept, ("x", 0): np.arange(2)}))
    assert deps.gm.code == code


def test_a_huge_multiple_keeps_everything() -> None:
    for multiple in (4, 1000, 10**30, 10**400):
        made = plan(chain(3, 4, 2), 0.5, round_to=multiple)
        assert made.params_after == made.params_before


def test_a_plan_fits_its_graph_only() -> None:
    made = plan(chain(3, 4, 2), 0.5)
    assert made.removed(chain(3, 4, 2)).sum() == 2
    with pytest.raises(PlanError, match=r"the plan was made for another graph, or the graph changed since.*make a new one"):
        made.removed(chain(3, 5, 2))


@pytest.mark.parametrize("name", ["residual", "shuffle", "vit", "swin", "llama", "lstm"])
def test_masks_do_not_outdate_a_plan(name: str) -> None:
    net = NETS[name]
    made = plan(golden(name), 0.5)
    gm = fxprune.capture(net.build(), net.inputs(2))
    names = [t.name for t in golden(name).tracked if t.is_parameter]
    for parameter in names[1::2]:
        fxprune.l1_unstructured(gm, parameter, 0.2)
    deps = fxprune.analyze(gm)
    assert deps.fingerprint == made.fingerprint == golden(name).fingerprint
    assert deps.costs.parameters(made.removed(deps)) == made.params_after


def test_fingerprints_tell_graphs_apart() -> None:
    prints = {name: golden(name).fingerprint for name in NETS}
    assert len(set(prints.values())) == len(prints)
    assert all(len(text) == 64 and int(text, 16) >= 0 for text in prints.values())


def test_provenance_of_what_does_not_exist() -> None:
    made = plan(chain(3, 4, 2), 0.5)
    with pytest.raises(PlanError, match="the plan knows no parameter or buffer 'fc'"):
        made.provenance("fc", 0)
    with pytest.raises(PlanError, match=r"'layers.0.weight' of shape \[4, 3\] has no dimension 2"):
        made.provenance("layers.0.weight", 2)


TABLE = """\
  group  first member         units    kept    params removed
-------  -----------------  -------  ------  ----------------
      0  layers.0.weight[0]       4       2                20
      1  layers.1.weight[0]       6       3                21
params 60 -> 25 (41.7%), FLOPs 192 -> 72 (37.5%)"""


def test_a_table() -> None:
    words = [line.split() for line in str(plan(chain(3, 4, 6, 2), 0.5)).splitlines() if "--" not in line]
    assert words == [line.split() for line in TABLE.splitlines() if "--" not in line]


# Arguments.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"amount": 1.0}, PlanError, r"amount must be in \[0, 1\) if it is a float, but it is 1.0"),
        ({"amount": -0.1}, PlanError, r"amount must be in \[0, 1\).*-0.1"),
        ({"amount": float("nan")}, PlanError, r"amount must be in \[0, 1\).*nan"),
        ({"amount": -1}, PlanError, "amount must not be negative, but it is -1"),
        ({"amount": True}, PruningTypeError, "amount must be an int or a float, not True"),
        ({"amount": "half"}, PruningTypeError, "amount must be an int or a float, not 'half'"),
        ({}, PlanError, "give either amount, or max_params, max_flops or both"),
        ({"amount": 0.5, "max_params": 0.5}, PlanError, "give either amount, or max_params"),
        ({"max_params": 1.5}, PlanError, r"max_params must be a positive int, or a float in \(0, 1\).*1.5"),
        ({"max_flops": 0}, PlanError, "max_flops must be a positive int"),
        ({"max_flops": "1G"}, PruningTypeError, "max_flops must be an int or a float, not '1G'"),
        ({"max_flops": 0.5, "overrides": {"layers.0": 0.5}}, PlanError, "overrides are amounts, which go with amount"),
        ({"amount": 0.5, "overrides": {"layers.0": 2.0}}, PlanError, r"overrides\['layers.0'\] must be in \[0, 1\)"),
        ({"amount": 0.5, "overrides": ["layers.0"]}, PruningTypeError, "overrides must map names and patterns to amounts"),
        ({"amount": 0.5, "overrides": {"layer.0": 0.5}}, PlanError, "overrides has 'layer.0', which matches no parameter"),
        (
            {"amount": 0.5, "ignore": "layers.0.wieght"},
            PlanError,
            "ignore has 'layers.0.wieght'.*did you mean 'layers.0.weight'",
        ),
        ({"amount": 0.5, "ignore": "layrs"}, PlanError, "did you mean 'layers'"),
        ({"amount": 0.5, "ignore": "xyz*"}, PlanError, "which matches no parameter of the graph; it has 4 parameters"),
        ({"amount": 0.5, "ignore": [3]}, PruningTypeError, "ignore takes names, glob patterns and modules, not 3"),
        ({"amount": 0.5, "ignore": 3}, PruningTypeError, "ignore must be an iterable"),
        ({"amount": 0.5, "scope": "both"}, PlanError, 'scope must be "local" or "global", not \'both\''),
        ({"amount": 0.5, "choose": "middle"}, PlanError, 'choose must be None, "outer", "inner" or "all", not \'middle\''),
        ({"amount": 0.5, "round_to": 0}, PlanError, "round_to must be a number of units of at least 1, not 0"),
        ({"amount": 0.5, "round_to": 1.5}, PlanError, "round_to must be a number of units of at least 1, not 1.5"),
        ({"amount": 0.5, "importance": "l1"}, PruningTypeError, "importance must be a criterion or a callable"),
    ],
    ids=str,
)
def test_arguments_out_of_range(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plan(chain(3, 4, 2), **options)


def test_a_graph_is_no_analysis() -> None:
    with pytest.raises(PruningTypeError, match=r"deps must be what fxprune.analyze returns, not Chain"):
        plan(chain(3, 4, 2).gm, 0.5)  # type: ignore[arg-type]


def test_numbers_of_other_kinds_are_amounts_too() -> None:
    deps = chain(3, 8, 2)
    assert counts(plan(deps, np.float32(0.5))) == [4]  # type: ignore[arg-type]
    assert counts(plan(deps, np.int64(3))) == [5]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (
            lambda deps, group: torch.zeros(3),
            r"importance .* gave scores of shape \[3\] for group 0: 4 units .*they must be \[4\]",
        ),
        (lambda deps, group: torch.zeros(4, 1), r"importance .* gave scores of shape \[4, 1\]"),
        (lambda deps, group: [0, 1, float("nan"), 3], r"importance .* gave scores that are not finite for group 0.*: nan"),
        (lambda deps, group: torch.tensor([0, 1, float("inf"), 3]), "not finite for group 0.*: inf"),
        (lambda deps, group: None, r"importance .* gave"),
        (lambda deps, group: "many", r"importance .* gave no numbers for group 0.*'many'"),
    ],
)
def test_scores_are_checked(importance: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan(chain(3, 4, 2), 0.5, importance=importance)


def test_a_graph_without_groups_has_an_empty_plan() -> None:
    deps = chain(3, 2)
    made = plan(deps, 0.5, scope="global")
    assert (made.kept, made.choices, made.params_after) == ({}, (), made.params_before)
    assert not made.removed(deps).any()
    with pytest.raises(PlanError, match=r"max_params=0\.5 .* cannot be met"):
        plan(deps, max_params=0.5)


def test_a_resnet() -> None:
    shim.install()
    import torchvision

    with torch.device("meta"):
        meta = torchvision.models.resnet18()
    deps = deps_of(meta, torch.randn(1, 3, 64, 64, device="meta"))
    with pytest.raises(PlanError, match=r"parameter 'conv1.weight' is on the meta device and has no values to be ranked by"):
        plan(deps, 0.5)
    made = plan(deps, 0.5, importance=rising, ignore=["fc"])
    assert len(made.choices) == len(deps.groups) - 1
    assert made.provenance("fc.weight", 1).size == 512
    assert made.provenance("layer4.0.bn1.running_mean", 0).tolist() == list(range(256, 512))
    halved = plan(deps, max_flops=0.5, importance=Random(0), scope="global", round_to=8)
    assert halved.flops_after <= 0.5 * halved.flops_before
    assert all(len(c.kept) % 8 == 0 for c in halved.choices)


def test_planning_leaves_the_graph_as_it_was() -> None:
    deps = golden("residual")
    text, state = deps.gm.code, {k: v.clone() for k, v in deps.gm.state_dict().items()}
    plan(deps, 0.5, importance=Magnitude(p=1))
    assert deps.gm.code == text
    assert all(torch.equal(state[k], v) for k, v in deps.gm.state_dict().items())
