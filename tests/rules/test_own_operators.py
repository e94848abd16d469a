"""Operators of a user's own, with all that a card can say of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import RuleError
from fxprune.functional import over_kept
from fxprune.rules import OverKept, Places, Work, registered
from fxprune.rules.registry import unregister
from tests.compare import relative_error


@torch.library.custom_op("fxprune_tests::standardise", mutates_args=())
def standardise(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Let the channels of each group have mean zero and variance one."""
    return torch.nn.functional.group_norm(x, groups) * weight


@torch.library.custom_op("fxprune_tests::affine", mutates_args=())
def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a linear layer."""
    return torch.nn.functional.linear(x, weight, bias)


@torch.library.custom_op("fxprune_tests::scaled", mutates_args=())
def scaled(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply by a weight that a user calls the scale of a batch norm."""
    return x * weight


for _op in (standardise, scaled):
    _op.register_fake(lambda x, *rest: torch.empty_like(x))
affine.register_fake(lambda x, weight, bias=None: x.new_empty(*x.shape[:-1], weight.shape[0]))


def standardise_kept(x: Tensor, weight: Tensor, groups: int, keeps: list[Tensor], keep_dims: list[int]) -> Tensor:
    """Do as ``standardise`` does, over the kept channels."""
    return over_kept.group_norm_of_kept(x, groups, weight, None, 1e-5, keeps, keep_dims)


STANDARDISE: dict[str, Any] = {
    "pattern": "b (g [c]), (g [c]) -> b (g [c])",
    "zeros": "0*1",
    "mixed_zeros": "n*1",
    "mixes": "normalize",
    "sizes": lambda call: {"g": call["groups"]},
    "size_arguments": lambda call, results, left: {"groups": left.size(call.axes["g"])},
    "over_kept": OverKept(standardise_kept, ("x", "weight"), ("groups",)),
    "work": lambda call: [Work.of_products(call.axes.values())],
}


@pytest.fixture
def register() -> Iterator[Callable[..., None]]:
    ops = []

    def registered(op: Any, pattern: str, **facts: Any) -> None:
        fxprune.register_rule(op, pattern, **facts)
        ops.append(op)

    yield registered
    for op in ops:
        unregister(op)


class Net(nn.Module):
    def __init__(self, middle: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.middle = nn.Linear(4, 12), nn.Linear(12, 2), middle
        self.scale = nn.Parameter(torch.rand(12) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.tanh(self.middle(self.up(x), self.scale)))
        return y


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()


def three_groups(x: Tensor, weight: Tensor) -> Tensor:
    """Standardise in three groups."""
    y: Tensor = torch.ops.fxprune_tests.standardise(x, weight, 3)
    return y


@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.parametrize(("choose", "shape", "groups"), [("outer", (8, 4), 2), ("inner", (6, 4), 3)])
def test_an_operator_with_a_whole_card(
    register: Callable[..., None], frontend: Any, choose: Any, shape: tuple[int, int], groups: int
) -> None:
    register(torch.ops.fxprune_tests.standardise.default, **STANDARDISE)
    gm = fxprune.capture(Net(three_groups).double().eval(), X, frontend=frontend)
    deps = fxprune.analyze(gm)
    plan = fxprune.plan(deps, 0.5 if choose == "inner" else 1, choose=choose)
    masked = fxprune.mask(gm, plan)
    small = fxprune.shrink(copy.deepcopy(masked))
    fxprune.verify(masked, small, X)
    assert small.get_parameter("up.weight").shape == shape
    assert relative_error(small(X), masked(X)) < 1e-12
    (node,) = [node for node in small.graph.nodes if "standardise" in str(node.target)]
    assert node.args[2] == groups
    assert ("standardise_kept" in masked.code) == (choose == "inner")
    # Two for each element of each sample, beside those of the linear layers.
    assert plan.flops_before == 5 * 2 * (4 * 12 + 12 + 12 * 2)
    assert plan.flops_after == 5 * 2 * (shape[0] * 4 + shape[0] + shape[0] * 2)


def test_a_normalisation_without_a_form_over_kept_positions_keeps_whole(register: Callable[..., None]) -> None:
    facts = {name: fact for name, fact in STANDARDISE.items() if name != "over_kept"}
    register(torch.ops.fxprune_tests.standardise.default, **facts)
    deps = fxprune.analyze(fxprune.capture(Net(three_groups).double().eval(), X))
    assert [group.size for group in deps.groups] == [3]  # groups alone
    assert "a mask could not correct what is combined here (normalize)" in str(deps.explain("up.weight", 0))


def test_a_form_that_takes_what_the_operator_has_not() -> None:
    facts = {**STANDARDISE, "over_kept": OverKept(standardise_kept, ("x", "gain"), ("groups",))}
    with pytest.raises(RuleError, match=r"has no argument 'gain' that its form .* takes, only \['x', 'weight', 'groups'\]"):
        fxprune.register_rule(torch.ops.fxprune_tests.standardise.default, **facts)
    assert torch.ops.fxprune_tests.standardise.default not in registered()


def test_a_layer_of_ones_own_takes_constants_into_its_bias(register: Callable[..., None]) -> None:
    pattern, zeros = "b [i], o [i], o -> b o", "0*1+2"
    register(torch.ops.fxprune_tests.affine.default, pattern, zeros=zeros, places=Places(0, 1, 2))

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.weight, self.bias = nn.Linear(4, 6), nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(2))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.ops.fxprune_tests.affine(torch.sigmoid(self.up(x)), self.weight, self.bias)
            return y

    torch.manual_seed(0)
    model = Constant().double().eval()
    torch.nn.utils.prune.ln_structured(model.up, "weight", 0.5, n=2, dim=0)
    small = fxprune.shrink(fxprune.capture(model, X))
    assert small.get_parameter("up.weight").shape == (3, 4)
    assert relative_error(small(X), model(X)) < 1e-12


def test_the_scale_of_a_batch_norm_of_ones_own_is_scored(register: Callable[..., None]) -> None:
    op = torch.ops.fxprune_tests.scaled.default
    register(op, "b c, c -> b c", zeros="0*1", batch_norm_scale=1)
    net = Net(lambda x, weight: op(x, weight)).double().eval()
    deps = fxprune.analyze(fxprune.capture(net, X))
    (group,) = deps.groups
    scores = fxprune.BatchNormScale(normalizer="none").prepare(deps)(group)
    assert torch.equal(scores, net.scale.detach().abs())
