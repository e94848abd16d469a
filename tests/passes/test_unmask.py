"""Corrections belong to the units that masks remove: they go with these units, and are a part of the graph otherwise."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.analysis.corrections import Rescale
from fxprune.graph.metadata import BAKED, KEEPS, REMOVED
from fxprune.passes.compensate import Compensation
from fxprune.passes.fold_constants import amounts_of
from tests.compare import relative_error
from tests.sequences.__main__ import sequence
from tests.sequences.nets import NETS, network

X = torch.randn(5, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
NUMBERS = range(len(NETS))


def captured(number: int) -> fx.GraphModule:
    return fxprune.capture(network(number), X)


def masked(number: int, amount: float = 0.5) -> fx.GraphModule:
    gm = captured(number)
    return fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), amount))


def groups(gm: fx.GraphModule) -> list[str]:
    return [str(group) for group in fxprune.analyze(gm).groups]


def masked_names(gm: fx.GraphModule) -> list[str]:
    return [n.removesuffix("_orig") for n, _ in gm.named_parameters() if n.endswith("_orig")]


def train(gm: fx.GraphModule) -> None:
    optimizer = torch.optim.SGD(gm.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        gm.train()(X).square().sum().backward()
        optimizer.step()
    gm.eval()


def load(gm: fx.GraphModule) -> None:
    gm.load_state_dict({name: parameter + 0.1 for name, parameter in gm.named_parameters()}, strict=False)


def flip(gm: fx.GraphModule, part: str) -> None:
    gm.load_state_dict({name: buffer.flip(0) for name, buffer in gm.named_buffers() if part in name}, strict=False)


def remove_one(gm: fx.GraphModule) -> None:
    fxprune.remove(gm, masked_names(gm)[0])


def remove_all(gm: fx.GraphModule) -> None:
    for name in masked_names(gm):
        fxprune.remove(gm, name)


CHANGES: dict[str, Callable[[fx.GraphModule], object]] = {
    "one removed": remove_one,
    "all removed": remove_all,
    "finalized": fxprune.finalize,
    "trained behind finalize": lambda gm: train(fxprune.finalize(gm)),
    "loaded behind finalize": lambda gm: load(fxprune.finalize(gm)),
    "loaded masks": lambda gm: gm.load_state_dict({n: b.flip(0) for n, b in gm.named_buffers() if "_mask" in n}, strict=False),
    "loaded keep vectors": lambda gm: gm.load_state_dict(
        {n: b.flip(0) for n, b in gm.named_buffers() if "_keep" in n}, strict=False
    ),
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("change", CHANGES)
def test_shrink_keeps_the_results_whatever_became_of_the_masks(change: str, number: int) -> None:
    gm = masked(number)
    CHANGES[change](gm)
    expected = gm(X)
    assert relative_error(fxprune.shrink(copy.deepcopy(gm), verify=False)(X), expected) <= 1e-9
    assert relative_error(fxprune.prune(gm, X, 0.0)(X), expected) <= 1e-9


@pytest.mark.parametrize("number", NUMBERS)
def test_a_trained_unit_keeps_its_correction_and_the_others_go(number: int) -> None:
    gm = masked(number)
    fxprune.finalize(gm)
    before = sum(p.numel() for p in gm.parameters())
    fxprune.shrink(gm)
    assert sum(p.numel() for p in gm.parameters()) < before
    assert not any("keep" in name for name, _ in gm.named_buffers())


@pytest.mark.parametrize("number", NUMBERS)
def test_a_plan_masks_in_addition_to_what_was_baked(number: int) -> None:
    gm = fxprune.finalize(masked(number, 0.25))
    baked = {name: parameter == 0 for name, parameter in gm.named_parameters()}
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    for name, zeros in baked.items():
        orig = dict(gm.named_parameters()).get(f"{name}_orig", dict(gm.named_parameters()).get(name))
        assert orig is not None
        assert bool((orig[zeros] == 0).all())
    expected = gm(X)
    assert relative_error(fxprune.shrink(gm)(X), expected) <= 1e-9


@pytest.mark.parametrize("number", NUMBERS)
def test_another_plan_replaces_the_masks_of_a_plan_and_not_the_baked_ones(number: int) -> None:
    gm = fxprune.finalize(masked(number, 0.25))
    expected = gm(X)
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    assert relative_error(gm(X), expected) > 1e-6
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.0))
    assert relative_error(gm(X), expected) <= 1e-9


@pytest.mark.parametrize("number", NUMBERS)
def test_analyze_sees_past_the_masks_of_a_plan(number: int) -> None:
    expected = groups(captured(number))
    gm = masked(number)
    assert groups(gm) == expected
    fxprune.finalize(gm)
    assert groups(gm) == expected


def test_a_correction_that_is_a_part_of_the_graph_keeps_its_axis_whole() -> None:
    gm = fxprune.finalize(masked(0))
    load(gm)
    why = str(fxprune.analyze(gm).explain("e.weight", 0))
    assert "whole: a mask could not correct what is combined here (sum)" in why
    assert "node 'n'" in why


def test_masks_on_the_meta_device_are_replaced_by_the_next_plan() -> None:
    plans = []
    for amount in (0.5, 0.25):
        gm = fxprune.capture(network(0).to("meta"), X.to("meta"))
        plans.append(fxprune.plan(fxprune.analyze(gm), amount, importance=fxprune.Random()))
    fxprune.mask(gm, plans[0])
    assert REMOVED.get(gm)
    assert BAKED.get(gm) is None
    fxprune.mask(gm, plans[1])
    sizes = {name: tuple(p.shape) for name, p in fxprune.shrink(gm).named_parameters()}
    other = fxprune.shrink(fxprune.mask(fxprune.capture(network(0).to("meta"), X.to("meta")), plans[1]))
    assert sizes == {name: tuple(p.shape) for name, p in other.named_parameters()}


def test_what_was_baked_on_the_meta_device_goes() -> None:
    gm = fxprune.capture(network(0).to("meta"), X.to("meta"))
    fxprune.finalize(fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5, importance=fxprune.Random())))
    assert REMOVED.get(gm) is None
    assert gm.get_parameter("e.weight").shape == (8, 4)
    assert fxprune.shrink(gm).get_parameter("e.weight").shape == (4, 4)


def test_new_flags_leave_the_code_as_it_is() -> None:
    gm = captured(0)
    deps = fxprune.analyze(gm)
    fxprune.mask(gm, fxprune.plan(deps, 0.5))
    forward, keeps = vars(type(gm))["forward"], {name: id(gm.get_buffer(name)) for name in KEEPS[gm]}
    before = gm(X)
    fxprune.mask(gm, fxprune.plan(deps, 0.25))
    assert vars(type(gm))["forward"] is forward
    assert {name: id(gm.get_buffer(name)) for name in KEEPS[gm]} == keeps
    assert not torch.equal(gm(X), before)


def test_a_compiled_graph_is_compiled_once_for_many_plans() -> None:
    gm, times = captured(0), 0

    def count(graph: fx.GraphModule, _: list[Tensor]) -> fx.GraphModule:
        nonlocal times
        times += 1
        return graph

    deps = fxprune.analyze(gm)
    fxprune.mask(gm, fxprune.plan(deps, 0.5))
    torch._dynamo.reset()
    compiled = torch.compile(gm, backend=count)
    for seed in range(4):
        torch.manual_seed(seed)
        fxprune.mask(gm, fxprune.plan(deps, 0.5, importance=fxprune.Random()))
        assert relative_error(compiled(X), gm(X)) <= 1e-9
    torch._dynamo.reset()
    assert times == 1


@pytest.mark.parametrize("seed", range(8))
def test_sequences_of_public_calls(seed: int) -> None:
    made, error = sequence(seed, 6)
    assert not error, f"{made}: {error}"


def test_a_masked_graph_is_compared_with_what_shrink_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = captured(1)
    plan = fxprune.plan(fxprune.analyze(gm), 0.5)
    code, state, expected = gm.code, {n: t.clone() for n, t in gm.state_dict().items()}, gm(X)
    write = Compensation.write
    monkeypatch.setattr(Compensation, "write", lambda self, c: None if isinstance(c, Rescale) else write(self, c))
    with pytest.raises(fxprune.VerificationError, match="the candidate does not compute what the reference does in eval mode"):
        fxprune.mask(gm, plan)
    assert gm.code == code
    assert torch.equal(gm(X), expected)
    assert all(torch.equal(tensor, state[name]) for name, tensor in gm.state_dict().items())
    fxprune.mask(gm, plan, verify=False)
    assert "_mask0" in gm.code


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
@pytest.mark.parametrize("from_zeros", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.Hardswish()])
def test_biases_in_half_precision_take_constants_in(dtype: torch.dtype, from_zeros: bool, activation: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), activation, nn.Linear(16, 12), activation, nn.Linear(12, 3)).to(dtype).eval()
    gm = fxprune.capture(model, X.to(dtype))
    if from_zeros:
        gm.get_parameter("0.weight").data[:8] = 0
    else:
        fxprune.ln_structured(gm, "0.weight", 0.5, n=2, dim=0)
    expected = gm(X.to(dtype))
    fxprune.shrink(gm, from_zeros=from_zeros)
    assert gm.get_parameter("0.weight").shape == (8, 4)
    assert relative_error(gm(X.to(dtype)), expected) <= 0.02


class OfDtype(nn.Sequential):
    """Its graph has a dtype as a constant."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).clamp(min=torch.finfo(input.dtype).min)


@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_biases_in_half_precision_take_constants_in_where_the_graph_holds_a_dtype(frontend: str) -> None:
    torch.manual_seed(0)
    layers = nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 32), nn.Sigmoid(), nn.Linear(32, 3)
    model, x = OfDtype(*layers).to(torch.bfloat16).eval(), X.to(torch.bfloat16)
    gm = fxprune.capture(model, x, frontend=frontend)  # type: ignore[arg-type]
    fxprune.ln_structured(gm, "2.weight", 0.5, n=2, dim=0)
    expected = gm(x)
    fxprune.shrink(gm)
    assert gm.get_parameter("2.weight").shape == (16, 16)
    assert relative_error(gm(x), expected) <= 0.02
    with pytest.raises(fxprune.CaptureError, match="has dtypes as constants"):
        gm.double()


def test_a_wrong_bias_in_half_precision_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 3)).to(torch.bfloat16).eval()
    gm = fxprune.capture(model, X.to(torch.bfloat16))
    fxprune.ln_structured(gm, "0.weight", 0.5, n=2, dim=0)
    code = gm.code
    monkeypatch.setattr("fxprune.passes.shrink.amounts_of", lambda *a: [t + 0.5 for t in amounts_of(*a)])
    with pytest.raises(fxprune.VerificationError):
        fxprune.shrink(gm)
    assert gm.code == code


def by_pickle(gm: fx.GraphModule) -> fx.GraphModule:
    found = pickle.loads(pickle.dumps(gm))
    assert isinstance(found, fx.GraphModule)
    return found


@pytest.mark.parametrize("number", NUMBERS)
def test_a_graph_from_a_pickle_is_analysed_planned_masked_and_shrunk(number: int) -> None:
    gm = by_pickle(captured(number))
    deps = fxprune.analyze(gm)
    assert [str(group) for group in deps.groups] == groups(captured(number))
    fxprune.mask(gm, fxprune.plan(deps, 0.5))
    expected = gm(X)
    small = fxprune.shrink(by_pickle(by_pickle(gm)), example_inputs=X)
    assert relative_error(small(X), expected) <= 1e-9
    assert fxprune.plan(deps, 0.5).flops_before > 0


def test_a_graph_that_carries_no_shapes_is_captured_again_with_inputs() -> None:
    gm = captured(0)
    for node in gm.graph.nodes:
        node.meta.pop("val", None)
    with pytest.raises(fxprune.AnalysisError, match="capture it again with example inputs"):
        fxprune.analyze(gm)
    again = fxprune.capture(gm, X)
    assert groups(again) == groups(captured(0))
