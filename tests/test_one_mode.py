"""Lists of what a graph calls in one mode: equal where that is certain, and never otherwise."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.frontends import attempt
from fxprune.frontends.merge import _Merge
from fxprune.frontends.one_mode import calls_in_mode, same_calls
from tests.test_counters import Counting
from tests.test_modes import (
    BranchOnBothSides,
    FunctionalDropout,
    Nested,
    ResultUsedTwice,
    StochasticDepthTwice,
    SwappedValues,
    TwoResults,
    UsesSizes,
)  # fmt: skip

NETS = [BranchOnBothSides, FunctionalDropout, Nested, ResultUsedTwice, StochasticDepthTwice, SwappedValues, TwoResults]


def captured(build: Callable[[], nn.Module], training: bool) -> Any:
    return fxprune.capture(build().train(training), torch.randn(4, 6), frontend="trace")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("build", [*NETS, UsesSizes, Counting])
def test_graphs_captured_in_either_mode_call_the_same(build: type[nn.Module], training: bool) -> None:
    one, other = (calls_in_mode(captured(build, mode), training) for mode in (True, False))
    assert same_calls(one, other)


@pytest.mark.parametrize("build", NETS)
def test_modes_call_different_operators(build: type[nn.Module]) -> None:
    gm = captured(build, training=True)
    assert not same_calls(calls_in_mode(gm, True), calls_in_mode(gm, False))


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (1, 1.0), (0, False), ((1,), [1]), ({"a": 1}, {"a": 1.0}), ([1, 2], [1])]
)
def test_values_of_other_types_are_not_the_same(one: Any, other: Any) -> None:
    assert same_calls(one, one)
    assert not same_calls(one, other)


def test_arguments_order_and_number_of_calls_count() -> None:
    def calls(*lines: tuple[Callable[..., Any], Any]) -> Any:
        graph = torch.fx.Graph()
        x = y = graph.placeholder("x")
        for function, number in lines:
            y = graph.call_function(function, (y, number))
        graph.output((x, y))
        return calls_in_mode(torch.fx.GraphModule(nn.Module(), graph), True)

    first = calls((operator.add, 1), (operator.mul, 2))
    assert same_calls(first, calls((operator.add, 1), (operator.mul, 2)))
    assert not same_calls(first, calls((operator.mul, 2), (operator.add, 1)))
    assert not same_calls(first, calls((operator.add, 1), (operator.mul, 3)))
    assert not same_calls(first, calls((operator.add, 1)))
    # In place on an input that may be a number: no counter.
    assert not same_calls(calls((operator.iadd, 1)), calls())


def test_arguments_by_name_count_for_sizes() -> None:
    def calls(dim: int) -> Any:
        graph = torch.fx.Graph()
        graph.output(graph.call_method("size", (graph.placeholder("x"),), {"dim": dim}))
        return calls_in_mode(torch.fx.GraphModule(nn.Module(), graph), True)

    assert same_calls(calls(0), calls(0))
    assert not same_calls(calls(0), calls(1))


class Moving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (2.0 if self.training else 3.0)


class WholeInTrain(Moving):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (2 if self.training else 3.5)


@pytest.mark.parametrize("training", [True, False])
def test_a_graph_that_is_known_already_is_not_checked_again(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    check = attempt._check_if_possible

    def checked(example: Any, gm: Any) -> None:
        modes.append(gm.training)
        check(example, gm)

    monkeypatch.setattr(attempt, "_check_if_possible", checked)
    captured(Moving, training)
    assert modes == [not training]
    modes.clear()
    captured(WholeInTrain, training)  # where it was 2 it is 2.0 now
    assert modes == ([False, True] if training else [True])


@pytest.mark.parametrize("training", [True, False])
def test_a_merge_that_spoils_the_mode_of_the_capture_is_found_out(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_mode(self: _Merge, user: Any, in_train: Any, in_eval: Any) -> Any:
        return in_eval if self.training else in_train

    monkeypatch.setattr(_Merge, "_choose", other_mode)
    with pytest.raises(fxprune.CaptureError, match="does not give the model's result"):
        captured(Moving, training)
