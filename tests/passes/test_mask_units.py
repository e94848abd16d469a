"""Structured masks: the text of a graph that a plan masks, masks changed in place, masks together with element-wise ones."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.planning.plan import Plan
from fxprune.testing import check_graph
from tests.compare import assert_same, relative_error
from tests.golden.registry import NETS
from tests.kinds import readable
from tests.passes.masked_texts import TEXTS
from tests.passes.text_nets import Groups, Heads, Norms
from tests.passes.texts import Text
from tests.shrinking import captured, doubled

X = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.name)
def test_masked_graph_reads(text: Text) -> None:
    masked = text.pruned().masked
    assert readable(masked) == text.expected
    check_graph(masked)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.name)
def test_finalize_keeps_the_function_and_what_it_removed_can_still_be_taken_out(text: Text) -> None:
    torch.manual_seed(0)
    gm = captured(text.build(), (torch.randn(*text.shape),), text.frontend)
    before = gm.code
    masked = text.pruned().masked
    x = torch.randn(*text.shape, dtype=torch.float64)
    expected = numbers(masked, x)
    finalized = fxprune.finalize(masked)
    assert torch.allclose(numbers(finalized, x), expected, atol=1e-12)
    # Corrections stay: without them the graph would compute something else.
    assert finalized.code == before or "over_kept" in finalized.code
    small = fxprune.shrink(finalized)
    assert not list(small.named_buffers())


def net() -> fx.GraphModule:
    torch.manual_seed(0)
    return captured(Norms(), (X,))


def planned(gm: fx.GraphModule, amount: float, seed: int = 0) -> Plan:
    generator = np.random.default_rng(seed)
    return fxprune.plan(fxprune.analyze(gm), amount, importance=lambda _, group: generator.random(group.size))


def numbers(gm: nn.Module, *arguments: Tensor) -> Tensor:
    result = copy.deepcopy(gm).eval()(*arguments)
    assert isinstance(result, Tensor)
    return result


def test_masks_are_vectors_of_flags() -> None:
    gm = net()
    plan = planned(gm, 0.5)
    fxprune.mask(gm, plan)
    masks = {name: mask for name, mask in gm.named_buffers() if "_mask" in name}
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {
        "up.weight_mask0": (8, 1),
        "up.bias_mask0": (8,),
        "norm.weight_mask0": (8,),
        "norm.bias_mask0": (8,),
        "rms.weight_mask0": (8,),
        "down.weight_mask1": (1, 8),
    }
    for mask in masks.values():
        assert mask.dtype == torch.int8
        assert np.array_equal(np.flatnonzero(mask), plan.provenance("up.weight", 0))


def test_iterated_pruning_updates_the_masks_in_place() -> None:
    gm, dense = net(), net()
    plans = [planned(dense, amount, seed) for seed, amount in enumerate((0.25, 0.5, 0.25))]
    fxprune.mask(gm, plans[0])
    code, graph, parameters = gm.code, gm.graph, dict(gm.named_parameters())
    buffers = {name: id(buffer) for name, buffer in gm.named_buffers()}
    for plan in plans[1:]:
        assert fxprune.mask(gm, plan) is gm
        assert (gm.code, gm.graph is graph) == (code, True)
        assert all(parameter is parameters[name] for name, parameter in gm.named_parameters())
        assert {name: id(buffer) for name, buffer in gm.named_buffers()} == buffers
        fresh = fxprune.mask(net(), plan)
        assert fresh.code == code
        assert_same(gm, fresh, (X,))
    small = fxprune.shrink(gm, verify=True)
    assert small is gm
    assert small.get_parameter("up.weight").shape == (6, 3)


def test_one_optimizer_goes_on_through_iterated_pruning() -> None:
    gm = net()
    dense = {name: p.detach().clone() for name, p in gm.named_parameters()}
    optimizer = torch.optim.Adam(gm.parameters(), 0.1)
    for seed, amount in enumerate((0.25, 0.5, 0.75)):
        plan = planned(net(), amount, seed)
        fxprune.mask(gm, plan)
        before = numbers(gm, X)
        optimizer.zero_grad()
        gm(X).square().sum().backward()
        optimizer.step()
        assert not torch.equal(numbers(gm, X), before)
    for name, parameter in gm.named_parameters():
        assert not torch.equal(parameter, dense[name.removesuffix("_orig")]), name
    assert fxprune.shrink(gm).get_parameter("up.weight").shape == (2, 3)


@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_plans_for_other_axes_replace_each_other(frontend: str) -> None:
    x = torch.randn(3, 5, 4).double()

    def fresh() -> fx.GraphModule:
        torch.manual_seed(0)
        return captured(Heads(), (x,), frontend)

    deps = fxprune.analyze(fresh())
    plans = [fxprune.plan(deps, 0.5, choose="inner"), fxprune.plan(deps, 0.5, ignore="out", choose="inner")]
    gm = fresh()
    for plan in (*plans, plans[0]):
        expected = fxprune.mask(fresh(), plan)
        fxprune.mask(gm, plan)
        check_graph(gm)
        assert_same(gm, expected, (x,))
    assert_same(fxprune.shrink(gm), fxprune.shrink(fxprune.mask(fresh(), plans[0])), (x,))


def test_a_plan_that_removes_nothing_takes_the_masks_back() -> None:
    gm, dense = net(), net()
    nothing = fxprune.plan(fxprune.analyze(gm), 0.0)
    fxprune.mask(gm, nothing)
    assert gm.code == dense.code
    fxprune.mask(gm, planned(dense, 0.5))
    fxprune.mask(gm, nothing)
    assert_same(gm, dense, (X,))
    assert fxprune.shrink(gm).code == dense.code


@pytest.mark.parametrize("name", ["residual", "vit"])
def test_plans_from_json_mask_the_same(name: str) -> None:
    inputs = NETS[name].inputs(2)
    plan = fxprune.plan(fxprune.analyze(captured(NETS[name].build(), inputs)), 0.5)
    stored = Plan.from_json(plan.to_json())
    ours = fxprune.mask(captured(NETS[name].build(), inputs), stored)
    theirs = fxprune.mask(captured(NETS[name].build(), inputs), plan)
    assert ours.code == theirs.code
    assert_same(ours, theirs, doubled(inputs))


@pytest.mark.parametrize("order", ["element-wise first", "plan first"])
@pytest.mark.parametrize("last", [fxprune.finalize, fxprune.shrink])
def test_element_wise_and_structured_masks_on_one_parameter(order: str, last: Any) -> None:
    gm, plan = net(), planned(net(), 0.5)
    mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) > 0.3
    steps = [lambda: fxprune.mask(gm, {"up.weight": mask}), lambda: fxprune.mask(gm, plan)]
    for step in steps if order == "element-wise first" else reversed(steps):
        step()
        check_graph(gm)
    reference = net()
    with torch.no_grad():
        reference.get_parameter("up.weight").mul_(mask)
    reference = fxprune.mask(reference, plan)
    assert relative_error(numbers(gm, X), numbers(reference, X)) <= 1e-12
    kept = torch.from_numpy(plan.provenance("up.weight", 0))
    expected = (net().get_parameter("up.weight") * mask).detach()
    last(gm)
    assert not fxprune.is_pruned(gm)
    if last is fxprune.shrink:
        assert torch.equal(gm.get_parameter("up.weight"), expected[kept])
        assert relative_error(numbers(gm, X), numbers(reference, X)) <= 1e-12
    else:
        gone = torch.from_numpy(np.setdiff1d(np.arange(8), kept))
        assert torch.equal(gm.get_parameter("up.weight"), expected.index_fill(0, gone, 0.0))


def test_a_structured_mask_survives_a_change_of_the_element_wise_one() -> None:
    gm, plan = net(), planned(net(), 0.5)
    fxprune.mask(fxprune.mask(gm, {"up.weight": torch.ones(8, 3)}), plan)
    before = numbers(gm, X)
    assert relative_error(before, numbers(fxprune.mask(net(), plan), X)) <= 1e-12
    fxprune.mask(gm, {"up.weight": torch.zeros(8, 3)})
    assert np.array_equal(np.flatnonzero(gm.get_buffer("up.weight_mask0")), plan.provenance("up.weight", 0))
    assert not torch.allclose(numbers(gm, X), before)


def test_a_state_dict_goes_from_one_masked_graph_to_another() -> None:
    one, other = fxprune.mask(net(), planned(net(), 0.5, 1)), fxprune.mask(net(), planned(net(), 0.25, 2))
    assert one.state_dict().keys() == other.state_dict().keys()
    other.load_state_dict(one.state_dict())
    assert_same(other, one, (X,))
    small = fxprune.shrink(other)
    assert small.get_parameter("up.weight").shape == (4, 3)
    assert relative_error(numbers(small, X), numbers(one, X)) <= 1e-12


def test_pass_says_whether_it_changed_the_graph() -> None:
    gm, plan = net(), planned(net(), 0.5)
    assert fxprune.passes.Mask(plan)(gm).modified is True
    code, state = gm.code, {key: value.clone() for key, value in gm.state_dict().items()}
    fxprune.passes.Mask(plan)(gm)
    assert gm.code == code
    assert all(torch.equal(value, state[key]) for key, value in gm.state_dict().items())
    assert fxprune.passes.Mask(fxprune.plan(fxprune.analyze(net()), 0.0))(net()).modified is False


def test_plans_that_do_not_fit_are_refused_and_change_nothing() -> None:
    gm = net()
    torch.manual_seed(0)
    other = fxprune.plan(fxprune.analyze(captured(Groups(), (torch.randn(2, 3, 4, 4),))), 0.5)
    with pytest.raises(fxprune.PlanError, match="the plan was made for another graph, or the graph changed since"):
        fxprune.mask(gm, other)
    assert gm.code == net().code
    plan = planned(gm, 0.5)
    small = fxprune.shrink(fxprune.mask(net(), plan))
    code = small.code
    with pytest.raises(fxprune.PlanError, match="as it does when it is shrunk: make a new one"):
        fxprune.mask(small, plan)
    assert small.code == code
    assert all("_orig" not in name for name, _ in small.named_parameters())


def test_what_is_neither_a_plan_nor_masks_is_refused() -> None:
    with pytest.raises(fxprune.PruningError, match="masks must be a plan or a dict of tensors by name, not int"):
        fxprune.mask(net(), 3)  # type: ignore[arg-type]
    with pytest.raises(fxprune.PruningError, match=r"expected a torch\.fx\.GraphModule, got Linear"):
        fxprune.mask(nn.Linear(2, 2), planned(net(), 0.5))  # type: ignore[type-var]


def test_masks_of_inference_mode_take_part_in_training_and_are_updated_outside_it() -> None:
    x = torch.randn(X.shape, dtype=X.dtype)
    gm = net()
    with torch.inference_mode():
        fxprune.mask(gm, planned(gm, 0.5))
    gm.train()(x).sum().backward()
    with torch.inference_mode():
        copied = copy.deepcopy(gm).eval()
    fxprune.mask(copied, planned(copied, 0.25))
    masked = numbers(copied, x)
    assert relative_error(fxprune.shrink(copied)(x), masked) < 1e-9
    with torch.inference_mode():
        fxprune.mask(gm, planned(gm, 0.25))
        fxprune.shrink(gm)
    gm.train()(x).sum().backward()
