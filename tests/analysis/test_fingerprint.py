"""An analysis is used again only for a graph that it holds for."""

from __future__ import annotations

import copy
import gc
import operator
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.analysis.analyze import find_dependencies
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.fingerprint import fingerprint, recall
from fxprune.passes.unmask import unmasked
from fxprune.rules import registry
from fxprune.testing import check_graph


class Net(nn.Module):
    """Convolutions with a residual sum, an index table, a flag of the mode and a counter."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.out = nn.Conv2d(8, 4, 1)
        self.register_buffer("table", torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.a(x)))
        x = self.drop(x + self.b(x))
        return self.out(x[:, self.table])


def _captured() -> fx.GraphModule:
    torch.manual_seed(0)
    return fxprune.capture(Net().eval(), torch.randn(2, 3, 6, 6))


def _carried(gm: fx.GraphModule, base: fx.GraphModule | None = None) -> Dependencies:
    deps = recall(gm, gm if base is None else base)
    assert deps is not None
    return deps


def _drop_the_sum(gm: fx.GraphModule) -> None:
    node = next(node for node in gm.graph.nodes if node.target is operator.add)
    node.replace_all_uses_with(node.all_input_nodes[0])
    gm.graph.erase_node(node)
    gm.recompile()


def _change_an_argument(gm: fx.GraphModule) -> None:
    node = next(node for node in gm.graph.nodes if node.target is operator.add)
    node.args = (node.args[0], node.args[0])
    gm.recompile()


def _swap_a_module(gm: fx.GraphModule) -> None:
    gm.set_submodule("out", nn.Conv2d(8, 4, 3))


def _grow_an_example(gm: fx.GraphModule) -> None:
    next(iter(gm.graph.find_nodes(op="placeholder"))).meta["val"] = torch.randn(4, 3, 6, 6)


def _double(gm: fx.GraphModule) -> None:
    node = next(iter(gm.double().graph.find_nodes(op="placeholder")))
    node.meta["val"] = node.meta["val"].double()


def _tie(gm: fx.GraphModule) -> None:
    gm.get_submodule("b").bias = gm.get_submodule("a").bias


def _share_memory(gm: fx.GraphModule) -> None:
    gm.get_submodule("b").bias = nn.Parameter(gm.get_parameter("a.bias").detach()[:])


def _hook(gm: fx.GraphModule) -> None:
    gm.get_submodule("a").register_forward_hook(lambda module, inputs, output: output.flip(1))


def _load(gm: fx.GraphModule) -> None:
    gm.load_state_dict(gm.state_dict() | {"table": torch.tensor([1, 0, 2, 3, 4, 5, 6, 7])})


def _replace_a_function(gm: fx.GraphModule) -> None:
    next(node for node in gm.graph.nodes if node.target is torch.relu).target = torch.tanh
    gm.recompile()


CHANGES: dict[str, Callable[[Any], object]] = {
    "a node is erased": _drop_the_sum,
    "an argument": _change_an_argument,
    "a function": _replace_a_function,
    "a module": _swap_a_module,
    "an attribute of a module": lambda gm: setattr(gm.get_submodule("b"), "padding_mode", "circular"),
    "an index table in place": lambda gm: gm.table.copy_(torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])),
    "a counter": lambda gm: gm.norm.num_batches_tracked.add_(1),
    "a state dict": _load,
    "the mode": lambda gm: gm.train(),
    "the mode of a module": lambda gm: gm.norm.train(),
    "the dtype": _double,
    "tied parameters": _tie,
    "shared memory": _share_memory,
    "the example": _grow_an_example,
    "a mask of elements": lambda gm: fxprune.mask(gm, {"b.weight": torch.ones(8, 8, 3, 3)}),
    "a hook": _hook,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_graph_is_analysed_again(change: Callable[[Any], object]) -> None:
    gm = _captured()
    deps = fxprune.analyze(gm)
    assert _carried(gm).units is deps.units
    change(gm)
    assert recall(gm, gm) is None


def test_a_rule_of_the_user_counts() -> None:
    gm = _captured()
    fxprune.analyze(gm)
    op = torch.ops.aten.zeta.default if hasattr(torch.ops.aten, "zeta") else torch.ops.aten.special_zeta.default
    fxprune.register_rule(op, "a, a -> a")
    try:
        assert recall(gm, gm) is None
    finally:
        registry.unregister(op)


def test_settings_count() -> None:
    gm = _captured()
    mark = fingerprint(gm)
    assert mark is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert fingerprint(gm) != mark
    with torch.overrides.TorchFunctionMode():
        assert fingerprint(gm) is None
    assert fingerprint(gm) == mark


def _own(x: Tensor) -> Tensor:
    return x


def test_code_of_the_user_has_no_fingerprint() -> None:
    gm = _captured()
    node = next(node for node in gm.graph.nodes if node.target is torch.relu)
    node.target = _own
    gm.recompile()
    assert fingerprint(gm) is None
    fxprune.analyze(gm)
    assert recall(gm, gm) is None


def test_weights_do_not_count() -> None:
    gm = _captured()
    deps = fxprune.analyze(gm)
    with torch.no_grad():
        for parameter in gm.parameters():
            parameter.mul_(2)
    assert _carried(gm).units is deps.units


def test_the_analysis_of_a_masked_graph_is_that_from_before() -> None:
    gm = _captured()
    deps = fxprune.analyze(gm)
    fxprune.mask(gm, fxprune.plan(deps, 0.5))
    baked = unmasked(gm, bake=True).gm
    known = _carried(gm, baked)
    assert known.units is deps.units
    assert known.gm is baked
    assert str(known) == str(find_dependencies(baked))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_shrinking_after_a_change_is_as_without_an_analysis(change: Callable[[Any], object]) -> None:
    """Masked, changed and shrunk, a graph is what a copy, which carries no analysis, becomes."""
    gm = _captured()
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    try:
        change(gm)
    except (StopIteration, AttributeError):  # what it changes is masked
        return
    other = copy.deepcopy(gm)
    results = [_shrunk(graph) for graph in (gm, other)]
    assert results[0] == results[1]


def _shrunk(gm: fx.GraphModule) -> Any:
    try:
        fxprune.shrink(gm, verify=False)
    except fxprune.FxpruneError as error:
        return str(error)
    check_graph(gm)
    return gm.code, {name: (p.shape, p.detach().sum().item()) for name, p in gm.state_dict().items()}


def test_the_analysis_goes_with_the_graph() -> None:
    gm = _captured()
    plan = fxprune.plan(fxprune.analyze(gm), 0.5)
    fxprune.mask(gm, plan)
    units = weakref.ref(_carried(gm, unmasked(gm, bake=True).gm).units)
    assert "_fxprune_analysis" not in vars(copy.deepcopy(gm))
    assert "_fxprune_analysis" not in vars(pickle.loads(pickle.dumps(gm)))
    gc.collect()
    assert units() is not None
    gc.disable()
    try:
        fxprune.shrink(gm, verify=False)
        assert units() is None
    finally:
        gc.enable()


def test_a_graph_that_is_dropped_holds_no_circle_with_its_analysis() -> None:
    gm = _captured()
    parameter = weakref.ref(gm.get_parameter("a.weight"))
    fxprune.analyze(gm)
    graph = gm.graph
    gc.collect()
    gc.disable()
    try:
        del gm, graph
        without = _captured()
        expected = weakref.ref(without.get_parameter("a.weight"))
        del without
        assert (parameter() is None) == (expected() is None)
    finally:
        gc.enable()
