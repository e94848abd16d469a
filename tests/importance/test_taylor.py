"""Taylor against gradients taken by hand, and what it leaves as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import PlanError, PruningTypeError
from fxprune.importance import Criterion, Hessian, Taylor
from fxprune.planning.planner import plan
from tests.importance.nets import deps_of, loss, net, parameters, slices


def products(gm: fx.GraphModule) -> dict[str, Tensor]:
    names, tensors = zip(*gm.named_parameters(), strict=True)
    return {n: (g * p).detach() for n, p, g in zip(names, tensors, torch.autograd.grad(loss(gm), tensors), strict=True)}


def test_squares_of_gradient_times_weight() -> None:
    deps = deps_of(net())
    by_name = products(deps.gm)
    for group in deps.groups:
        expected = torch.tensor([[float(part.sum()) ** 2 for part in member] for member in slices(by_name, group)]).mean(0)
        torch.testing.assert_close(Taylor(loss)(deps, group).float(), expected)


def test_masked_weights_count_as_masked() -> None:
    deps = deps_of(net())
    mask = torch.ones(8, 3, 3, 3)
    mask[[1, 5]] = 0
    baked = net()
    with torch.no_grad():
        baked.stem.weight.mul_(mask)
    expected = deps_of(baked)
    fxprune.mask(deps.gm, {"stem.weight": mask})
    masked = fxprune.analyze(deps.gm)
    for group in expected.groups:
        same = next(g for g in masked.groups if g.size == group.size)
        torch.testing.assert_close(Taylor(loss)(masked, same), Taylor(loss)(expected, group))


def in_train_mode(gm: fx.GraphModule) -> Tensor:
    gm.train()
    torch.randn(3)
    return loss(gm)


@pytest.mark.parametrize("criterion", [Taylor(in_train_mode), Hessian(in_train_mode, samples=2)], ids=["taylor", "hessian"])
def test_the_graph_is_left_as_it_was(criterion: Criterion) -> None:
    deps = deps_of(net())
    gm = deps.gm
    gm.get_parameter("fc.bias").requires_grad_(False)
    gm.get_parameter("fc.weight").grad = given = torch.ones(4, 5, dtype=torch.float64)
    state = {name: (t, t.clone()) for name, t in gm.state_dict(keep_vars=True).items()}
    modes = {name: module.training for name, module in gm.named_modules()}
    random = torch.random.get_rng_state()
    with torch.no_grad():
        plan(deps, 0.5, importance=criterion)
    after = gm.state_dict(keep_vars=True)
    assert all(after[name] is t and torch.equal(t, value) for name, (t, value) in state.items())
    assert {name: module.training for name, module in gm.named_modules()} == modes
    assert torch.equal(random, torch.random.get_rng_state())
    assert not gm.get_parameter("fc.bias").requires_grad
    assert all(p.requires_grad for name, p in gm.named_parameters() if name != "fc.bias")
    assert gm.get_parameter("fc.weight").grad is given
    assert all(p.grad is None for name, p in gm.named_parameters() if name != "fc.weight")


def test_a_failing_loss_leaves_the_graph_as_it_was() -> None:
    def fails(gm: fx.GraphModule) -> Tensor:
        in_train_mode(gm)
        raise RuntimeError("out of data")

    deps = deps_of(net())
    before = deps.gm.get_buffer("norm.running_mean").clone()
    with pytest.raises(RuntimeError, match="out of data"):
        plan(deps, 0.5, importance=Taylor(fails))
    assert torch.equal(before, deps.gm.get_buffer("norm.running_mean"))
    assert not deps.gm.training


@pytest.mark.parametrize("criterion", [Taylor, Hessian])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda gm: 1.0, "loss must return a tensor of one element, not 1.0"),
        (lambda gm: torch.zeros(2, 3), r"loss must return a tensor of one element, not a tensor of shape \[2, 3\]"),
        (lambda gm: torch.zeros(()), "loss must depend on the parameters of the graph it is given"),
        (lambda gm: loss(gm).detach(), "loss must depend on the parameters of the graph it is given"),
        (lambda gm: loss(gm) * torch.nan, "loss must be a finite real number, not nan"),
        (lambda gm: loss(gm) / 0, "loss must be a finite real number, not inf"),
        (lambda gm: loss(gm) * (1 + 1j), "loss must be a finite real number, not .*j"),
        (lambda gm: (loss(gm),), "loss must return a tensor of one element, not .tensor"),
    ],
)
def test_losses_without_a_gradient(criterion: Any, wrong: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan(deps_of(net()), 0.5, importance=criterion(wrong))


def test_parameters_without_a_part_in_the_loss_score_zero() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(2))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x)

    deps = deps_of(Two(), torch.randn(2, 3))
    for criterion in (
        Taylor(lambda gm: gm(torch.ones(2, 3))[0].square().sum()),
        Hessian(lambda gm: gm(torch.ones(2, 3))[0].sum()),
    ):
        assert not criterion(deps, deps.groups[1]).any()
    assert parameters(deps.gm).keys() == dict(deps.gm.named_parameters()).keys()


def test_a_loss_that_runs_backward_leaves_gradients_alone() -> None:
    def backward(gm: fx.GraphModule) -> Tensor:
        loss(gm).backward()
        return loss(gm)

    deps = deps_of(net())
    deps.gm.get_parameter("fc.bias").grad = given = torch.ones(4, dtype=torch.float64)
    for criterion in (Taylor(backward), Hessian(backward, samples=1)):
        plan(deps, 0.5, importance=criterion)
        assert deps.gm.get_parameter("fc.bias").grad is given
        assert torch.equal(given, torch.ones(4, dtype=torch.float64))
        assert deps.gm.get_parameter("fc.weight").grad is None


class Quantized(nn.Module):
    """A weight of integers, with a scale or without."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-9, 9, (6, 3), dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.rand(6)) if scaled else None
        self.last = nn.Parameter(torch.randint(-9, 9, (2, 6), dtype=torch.int8), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = x @ self.weight.float().T
        return (hidden if self.scale is None else hidden * self.scale) @ self.last.float().T + self.bias


@pytest.mark.parametrize("criterion", [Taylor, Hessian])
def test_integers_have_no_gradient(criterion: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3)
    model = Quantized(scaled=True)
    deps = deps_of(model, x)
    wanted = criterion(lambda gm: gm(x).square().sum())
    (group,) = deps.groups
    alone = criterion(lambda gm: gm(x).square().sum(), reduction="max")(deps, group)
    torch.testing.assert_close(wanted(deps, group), alone)  # the scale alone has scores
    assert (alone > 0).all()
    with pytest.raises(PlanError, match=f"{criterion.__name__} has no scores for group 0: 6 units .* no parameter there has"):
        plan(deps_of(Quantized(scaled=False), x), 0.5, importance=wanted)


@pytest.mark.parametrize("criterion", [Taylor, Hessian])
@pytest.mark.parametrize("wrong", [None, 3, "loss", torch.zeros(2)])
def test_a_loss_that_is_no_function(criterion: Any, wrong: Any) -> None:
    with pytest.raises(PruningTypeError, match="loss must be a function from the graph to a tensor of one element, not"):
        criterion(wrong)


def test_nothing_to_rank() -> None:
    deps = deps_of(nn.Linear(3, 2), torch.randn(2, 3))
    for criterion in (Taylor(loss), Hessian(loss)):
        assert plan(deps, 0.5, importance=criterion).choices == ()
