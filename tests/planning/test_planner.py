"""plan: what is kept, of which groups, within which budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune.analysis.dependencies import Dependencies
from fxprune.errors import PlanError
from fxprune.importance import Random
from fxprune.planning.planner import plan
from tests.golden.registry import NETS
from tests.plans import IMAGE, Chain, Net, chain, counts, deps_of, golden, rising

# Amounts.


def test_the_least_important_units_of_each_group_go() -> None:
    deps = chain(3, 4, 6, 2)
    made = plan(deps, 0.5, importance=rising)
    assert {place: kept.tolist() for place, kept in made.kept.items()} == {
        ("layers.0.weight", 0): [2, 3],
        ("layers.0.bias", 0): [2, 3],
        ("layers.1.weight", 1): [2, 3],
        ("layers.1.weight", 0): [3, 4, 5],
        ("layers.1.bias", 0): [3, 4, 5],
        ("layers.2.weight", 1): [3, 4, 5],
    }
    assert [(c.group, c.size, c.kept.tolist(), c.scores.tolist()) for c in made.choices] == [
        (0, 4, [2, 3], [0, 1, 2, 3]),
        (1, 6, [3, 4, 5], [0, 1, 2, 3, 4, 5]),
    ]
    assert made.provenance("layers.0.weight", 1).tolist() == [0, 1, 2]
    assert made.provenance("layers.2.weight", -1).tolist() == [3, 4, 5]
    narrow = Chain(3, 2, 3, 2)
    assert made.params_before == sum(p.numel() for p in Chain(3, 4, 6, 2).parameters())
    assert made.params_after == sum(p.numel() for p in narrow.parameters())


def test_of_equal_units_the_first_stay() -> None:
    made = plan(chain(3, 4, 2), 0.5, importance=lambda deps, group: np.zeros(group.size))
    assert made.kept["layers.0.weight", 0].tolist() == [0, 1]


@pytest.mark.parametrize("amount", [0, 1, 3, 0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("size", [2, 5, 10, 32])
def test_amounts_round_as_in_torch(amount: float, size: int) -> None:
    expected = size - min(torch_prune._compute_nparams_toprune(amount, size), size - 1)
    if amount == 3 and size == 2:
        with pytest.raises(PlanError, match="amount is 3 units, but no group to be pruned has more than 2"):
            plan(chain(3, size, 2), amount)
        return
    assert counts(plan(chain(3, size, 2), amount)) == [expected]


def test_an_integer_amount_is_capped_in_small_groups() -> None:
    assert counts(plan(chain(3, 4, 20, 2), 6)) == [1, 14]


def test_kept_numbers_are_rounded_up() -> None:
    deps = chain(3, 30, 16, 2)
    assert counts(plan(deps, 0.5, round_to=8)) == [16, 8]
    assert counts(plan(deps, 0.4, round_to=8)) == [24, 16]
    assert counts(plan(deps, 0.1, round_to=8)) == [30, 16]
    assert counts(plan(deps, 0.95, round_to=8, scope="global"))[0] % 8 == 0


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("scope", ["local", "global"])
def test_nothing_goes_for_amount_zero(name: str, scope: Any) -> None:
    deps = golden(name)
    made = plan(deps, 0, scope=scope)
    assert not made.removed(deps).any()
    assert (made.params_after, made.flops_after) == (made.params_before, made.flops_before)
    parameters = {id(p): p for p in deps.gm.parameters()}
    assert made.params_before == sum(p.numel() for p in parameters.values())
    assert made.flops_before == sum(part.flops for part in deps.work)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("scope", ["local", "global"])
def test_more_takes_the_same_and_more(name: str, scope: Any) -> None:
    deps, before = golden(name), np.zeros(golden(name).units.count, bool)
    for amount in (0.1, 0.3, 0.5, 0.8, 0.99):
        removed = plan(deps, amount, scope=scope).removed(deps)
        assert not (before & ~removed).any()
        before = removed
    assert before.any()


def test_a_global_amount_ranks_units_of_all_groups() -> None:
    deps = chain(3, 4, 6, 2)
    scores = {4: [5.0, 0.5, 7.0, 8.0], 6: [1.0, 2.0, 9.0, 0.1, 0.2, 0.3]}
    made = plan(deps, 5, scope="global", importance=lambda deps, group: scores[group.size])
    assert [c.kept.tolist() for c in made.choices] == [[0, 2, 3], [1, 2]]
    assert counts(plan(deps, 0.5, scope="global", importance=lambda deps, group: scores[group.size])) == [3, 2]
    # One of each group stays.
    assert counts(plan(deps, 10, scope="global", importance=lambda deps, group: scores[group.size])) == [1, 1]
    with pytest.raises(PlanError, match="amount is 11 units, but the groups to be pruned have 10 together"):
        plan(deps, 11, scope="global")


# What survives.


def _sizes_left(deps: Dependencies, removed: np.ndarray[Any, np.dtype[np.bool_]]) -> list[int]:
    axes = [axis for tracked in deps.tracked for axis in tracked.label.axes]
    axes += [axis for step in deps.steps for label in step.results for axis in label.axes]
    flags = np.append(removed, False)
    return [axis.size - int(flags[deps.units.resolve(axis)].any(1).sum()) for axis in axes if axis.size]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("options", [{}, {"choose": "all"}, {"scope": "global"}], ids=str)
def test_no_axis_of_any_value_loses_everything(name: str, options: dict[str, Any]) -> None:
    deps = golden(name)
    made = plan(deps, 0.999, importance=Random(0), **options)
    assert min(_sizes_left(deps, made.removed(deps))) >= 1
    assert all(len(kept) for kept in made.kept.values())
    assert all(len(choice.kept) for choice in made.choices)


class Sliced(nn.Module):
    """Scales everything by the mean of a slice of its channels, which no parameter tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        return self.two(hidden) * hidden[:, 1:4].mean(1, keepdim=True)


def test_a_slice_of_channels_keeps_its_most_important_one() -> None:
    deps = deps_of(Sliced(), torch.randn(2, 4))
    assert [g.size for g in deps.groups] == [8]
    kept = [plan(deps, k, importance=rising).kept["one.weight", 0].tolist() for k in range(8)]
    assert kept[3:] == [[3, 4, 5, 6, 7], [3, 5, 6, 7], [3, 6, 7], [3, 7], [3, 7]]
    assert all(set(kept[k + 1]) <= set(kept[k]) for k in range(7))


# Groups that cross.


def chosen(deps: Dependencies, **options: Any) -> list[int]:
    return [choice.group for choice in plan(deps, 0.5, importance=rising, **options).choices]


class Standardised(Net):
    """Scales features by how much they vary across the channels."""

    def __init__(self, correction: float) -> None:
        super().__init__()
        self.first, self.last, self.correction = nn.Linear(3, 4), nn.Linear(4, 2), correction

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h / h.std(-1, correction=self.correction, keepdim=True))


@pytest.mark.parametrize(("correction", "left"), [(0, 1), (0.5, 1), (1, 2), (2, 3)])
def test_a_variance_keeps_more_positions_than_it_takes_degrees_off(correction: float, left: int) -> None:
    deps = deps_of(Standardised(correction), torch.ones(2, 3))
    made = plan(deps, 0.9, importance=rising)
    assert made.kept["first.weight", 0].tolist() == list(range(4 - left, 4))


def test_one_of_crossing_groups_is_pruned() -> None:
    deps = deps_of(Net(), IMAGE)
    # 2 conv groups, which cross the 3 inputs and the 5 outputs of each, which do not cross one another.
    assert [g.size for g in deps.groups] == [2, 3, 5]
    assert chosen(deps) == [1, 2]
    assert chosen(deps, choose="outer") == [0]
    assert chosen(deps, choose="inner") == [1, 2]
    assert chosen(deps, choose="all") == [0, 1, 2]
    assert chosen(deps, choose="outer", ignore="grouped") == []
    assert chosen(deps_of(Net(groups=8), IMAGE)) == [0]


def test_heads_or_their_dimensions() -> None:
    deps = golden("multihead")
    assert [g.size for g in deps.groups] == [15, 3, 5, 14]
    assert chosen(deps) == [0, 2, 3]  # three heads are too few
    assert chosen(deps, choose="outer") == [0, 1, 3]
    heads = plan(deps, 0.5, importance=rising, choose="outer").kept["attn.in_proj_weight", 0]
    assert heads.tolist() == [place for place in range(45) if place % 15 >= 10]  # two of three go, of q, k and v
    both = plan(deps, 0.5, importance=rising, choose="all").kept["attn.in_proj_weight", 0]
    assert both.tolist() == [place for place in range(45) if place % 15 >= 10 and place % 5 >= 2]


def test_rotary_pairs_go_with_the_dimensions_of_values() -> None:
    deps = golden("llama")
    sizes = [g.size for g in deps.groups]
    assert sizes == [12, 2, 2, 5, 10, 14, 2, 2, 10, 14]
    # Heads cross the queries of a head, pairs cross both in both layers, values cross them in their own.
    assert chosen(deps) == [0, 3, 4, 5, 8, 9]
    assert chosen(deps, choose="outer") == [0, 1, 5, 6, 9]
    assert chosen(deps, choose="inner") == [0, 3, 4, 5, 8, 9]


@pytest.mark.parametrize("name", NETS)
def test_no_two_chosen_groups_cross(name: str) -> None:
    deps = golden(name)
    taken = {index: set(deps.groups[index].units.tolist()) for index in chosen(deps)}
    owner = {unit: group.index for group in deps.groups for unit in group.units.tolist()}
    crossing = False
    for tracked in deps.tracked:
        for axis in tracked.label.axes:
            for row in deps.units.resolve(axis).tolist():
                assert len({index for index, units in taken.items() if units & set(row)}) <= 1
                crossing = crossing or len({owner[unit] for unit in row if unit in owner}) > 1
    # Nothing more could be taken.
    assert {g.index for g in deps.groups} == set(taken) or crossing


def test_groups_side_by_side_are_all_pruned() -> None:
    assert chosen(golden("channel_slice")) == [0, 1, 2]
    assert chosen(golden("densenet")) == [0, 1, 2, 3]


# What is left alone, and what gets an amount of its own.


@pytest.mark.parametrize(
    "ignore",
    [
        ["layers.1"],
        "layers.1",
        ("layers.1.weight",),
        ["layers.1.*"],
        ["layers.1.wei*", "layers.0.bias"],
    ],
    ids=str,
)
def test_groups_on_ignored_parameters_are_left_alone(ignore: Any) -> None:
    made = plan(chain(3, 4, 6, 8, 2), 0.5, ignore=ignore)
    assert [choice.group for choice in made.choices] == [2]
    assert made.provenance("layers.1.weight", 0).tolist() == list(range(6))


def test_modules_are_ignored_by_their_parameters() -> None:
    model = Chain(3, 4, 6, 2)
    deps = deps_of(model, torch.randn(2, 3))
    assert [c.group for c in plan(deps, 0.5, ignore=[model.layers[0]]).choices] == [1]
    assert [c.group for c in plan(deps, 0.5, ignore=deps.gm.get_submodule("layers.2")).choices] == [0]
    assert plan(deps, 0.5, ignore=[model]).choices == ()
    with pytest.raises(PlanError, match="ignore has a Linear that shares no parameter with the graph"):
        plan(deps, 0.5, ignore=[nn.Linear(3, 4)])


def test_a_tied_parameter_is_ignored_under_each_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
    model[1].weight = model[0].weight
    deps = deps_of(nn.Sequential(nn.Linear(5, 4), model), torch.randn(2, 5))
    assert len(plan(deps, 0.5).choices) == 1
    assert plan(deps, 0.5, ignore="1.1.weight").choices == ()
    made = plan(deps, 0.5)
    assert made.provenance("1.1.weight", 0).tolist() == made.provenance("1.0.weight", 0).tolist()
    assert made.params_after == 2 * 5 + 2 + 2 * 2 + 2 * 3 + 3


def test_overrides() -> None:
    deps = chain(3, 8, 8, 8, 2)
    assert counts(plan(deps, 0.5, overrides={"layers.0": 0.25})) == [6, 4, 4]
    assert counts(plan(deps, 0.5, overrides={"layers.0.*": 0.25, "layers.1.bias": 6})) == [6, 2, 4]
    assert counts(plan(deps, 0.5, overrides={"layers.0.bias": 0.25, "layers.*": 0})) == [8, 8, 8]
    assert counts(plan(deps, 0.5, overrides={"layers.*": 0, "layers.0.bias": 0.25})) == [6, 8, 8]
    kept = counts(plan(deps, 0.5, overrides={"layers.0.bias": 0.25}, scope="global", importance=rising))
    assert kept == [6, 4, 4]


# Budgets.


@pytest.mark.parametrize("name", ["residual", "densenet", "vit", "llama", "grouped_conv", "lstm"])
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8, 0.999])
def test_budgets_are_met_and_not_by_more_than_needed(name: str, scope: Any, budget: float) -> None:
    deps = golden(name)
    made = plan(deps, max_params=budget, scope=scope)
    limit = budget * made.params_before
    assert made.params_after <= limit
    assert made.params_after == deps.costs.parameters(made.removed(deps))
    # Every pruning by an amount that removes less misses the budget.
    removed = made.removed(deps).sum()
    for amount in np.linspace(0, 0.999, 40).tolist():
        other = plan(deps, amount, scope=scope)
        if other.removed(deps).sum() < removed:
            assert other.params_after > limit


def test_budgets_of_numbers_and_of_both_kinds() -> None:
    deps = golden("residual")
    whole = plan(deps, 0)
    both = plan(deps, max_params=0.6, max_flops=0.4)
    assert both.params_after <= 0.6 * whole.params_before
    assert both.flops_after <= 0.4 * whole.flops_before
    number = plan(deps, max_params=whole.params_before // 2)
    assert number.params_after <= whole.params_before // 2
    assert plan(deps, max_params=whole.params_before).params_after == whole.params_before
    assert plan(deps, max_flops=10**15).flops_after == whole.flops_before


def test_a_budget_out_of_reach_says_what_can_be_reached() -> None:
    deps = chain(3, 4, 6, 2)
    least = sum(p.numel() for p in Chain(3, 1, 1, 2).parameters())
    assert plan(deps, max_params=least).params_after == least
    message = rf"max_params={least - 1} cannot be met: with all removed that can go {least} parameters are left of 60, 16.7%"
    with pytest.raises(PlanError, match=message):
        plan(deps, max_params=least - 1)
    with pytest.raises(PlanError, match=r"max_flops=0.01 \(2\) cannot be met: with all removed that can go 24 FLOPs are left"):
        plan(deps, max_flops=0.01, scope="global")


def _flops(model: nn.Module, *inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("options", "narrow"),
    [
        ({"choose": "outer"}, Net(groups=1)),
        ({"choose": "inner"}, Net(inner=1, outer=3)),
        ({"choose": "all"}, Net(inner=1, outer=3, groups=1)),
    ],
    ids=["outer", "inner", "all"],
)
def test_costs_are_those_of_the_narrow_network(options: Any, narrow: nn.Module) -> None:
    deps = deps_of(Net(), IMAGE)
    made = plan(deps, 0.5, importance=rising, **options)
    assert made.params_after == sum(p.numel() for p in narrow.parameters())
    assert made.flops_before == _flops(Net(), IMAGE)
    assert made.flops_after == pytest.approx(_flops(narrow, IMAGE))
    assert deps.costs.flops(made.removed(deps)) == made.flops_after


@pytest.mark.parametrize("importance", [None, Random(0)])
def test_an_analysis_of_a_graph_that_was_shrunk_since_is_refused(importance: Any) -> None:
    deps = chain(3, 4, 2)
    gm = fxprune.mask(deps.gm, plan(deps, 0.5))
    plan(deps, 0.5, importance=importance)  # masks change nothing
    fxprune.shrink(gm, verify=False)
    with pytest.raises(
        PlanError, match=r"changed since .* 'layers.0.weight' had shape \[4, 3\] then and has shape \[2, 3\] now; analyze"
    ):
        plan(deps, 0.5, importance=importance)
