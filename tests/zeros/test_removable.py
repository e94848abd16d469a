"""What can go though no plan masked it, and what has to stay."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.steps import Step
from fxprune.passes.shrink import shrunk_copy
from fxprune.zeros.by_operator import results_of
from fxprune.zeros.by_pattern import Known, nothing_of
from fxprune.zeros.removable import masked_slices, removable, zero_slices
from fxprune.zeros.slice_states import SliceState, added, finite, is_constant, met, multiplied, of_numbers
from tests.compare import relative_error, run, tensors_of
from tests.nets import randomised
from tests.properties.laws import captured
from tests.properties.networks import network

IMAGE, VECTOR = torch.randn(2, 3, 8, 8).double(), torch.randn(3, 5).double()


def masked(gm: fx.GraphModule, *names: str, dim: int = 0, count: int = 3) -> fx.GraphModule:
    """Mask the first slices of some parameters, element by element."""
    for name in names:
        mask = torch.ones_like(gm.get_parameter(name))
        mask.movedim(dim, 0)[:count] = 0
        fxprune.custom_from_mask(gm, name, mask)
    return gm


def zeroed(gm: fx.GraphModule, *names: str, dim: int = 0, count: int = 3) -> fx.GraphModule:
    """Make the first slices of some parameters zero without any mask."""
    with torch.no_grad():
        for name in names:
            gm.get_parameter(name).movedim(dim, 0)[:count] = 0
    return gm


def check(gm: fx.GraphModule, *inputs: Tensor, from_zeros: bool = False) -> fx.GraphModule:
    """Return what shrink makes of a graph of float64, which computes the same in both modes."""
    reference = copy.deepcopy(gm)
    small = fxprune.shrink(gm, from_zeros=from_zeros)
    fxprune.verify(reference, small, inputs, tolerance=1e-9)
    for training in (False, True):
        ours, theirs = copy.deepcopy(small).train(training), copy.deepcopy(reference).train(training)
        if not any(isinstance(m, nn.Dropout) for m in theirs.modules()):
            assert relative_error(run(ours, inputs), run(theirs, inputs)) < 1e-9
    return small


def shape(gm: nn.Module, name: str) -> tuple[int, ...]:
    return tuple(gm.get_parameter(name).shape)


def convs(*between: nn.Module, last: nn.Module | None = None, bias: bool = True) -> nn.Sequential:
    """Return a convolution to 8 channels, something, and a convolution without a border."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=bias), *between, last or nn.Conv2d(8, 4, 3))
    randomised(model.double().eval(), seed=1)
    return model


def with_positive_bias(model: nn.Sequential) -> nn.Sequential:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.uniform_(0.5, 1.0)
    return model


def linears(*between: nn.Module, bias: bool = True) -> nn.Sequential:
    return with_positive_bias(nn.Sequential(nn.Linear(5, 8), *between, nn.Linear(8, 4, bias=bias)).double())


# Masks of torch's own kind.


@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_channels_of_ln_structured_go(frontend: str) -> None:
    gm = fxprune.capture(convs(nn.ReLU(), bias=False), IMAGE, frontend=frontend)  # type: ignore[arg-type]
    fxprune.ln_structured(gm, "0.weight", 0.5, n=2, dim=0)
    small = check(gm, IMAGE)
    assert shape(small, "0.weight") == (4, 3, 3, 3)
    assert shape(small, "2.weight") == (4, 4, 3, 3)


def test_channels_behind_a_norm_go_with_its_scale_and_shift() -> None:
    gm = fxprune.capture(convs(nn.BatchNorm2d(8), nn.ReLU(inplace=True)), IMAGE)
    fxprune.ln_structured(gm, "0.weight", 0.5, n=1, dim=0)
    dead = np.flatnonzero(masked_slices(gm)["0.weight", 0])
    mask = torch.ones(8).double()
    mask[torch.from_numpy(dead)] = 0
    for name in ("1.weight", "1.bias"):
        fxprune.custom_from_mask(gm, name, mask.clone())
    small = check(gm, IMAGE)
    assert shape(small, "0.weight") == (4, 3, 3, 3)
    assert small.get_buffer("1.running_mean").shape == (4,)


def test_channels_behind_a_norm_stay_without() -> None:
    gm = masked(fxprune.capture(convs(nn.BatchNorm2d(8), nn.ReLU()), IMAGE), "0.weight", "0.bias")
    text = gm.code
    small = check(gm, IMAGE)
    assert shape(small, "0.weight") == (8, 3, 3, 3)
    assert small.code != text  # the masks are baked
    assert not fxprune.is_pruned(small)


def test_channels_go_where_the_running_mean_has_forgotten_them() -> None:
    model = convs(nn.BatchNorm2d(8), nn.ReLU(), bias=False)
    model[1].running_mean[:2] = 0.0  # type: ignore[operator]
    small = check(masked(fxprune.capture(model, IMAGE), "0.weight"), IMAGE)
    assert shape(small, "0.weight") == (6, 3, 3, 3)


def test_a_checkpoint_of_torch_prune_goes() -> None:
    model = convs(nn.ReLU())
    pruned = copy.deepcopy(model)
    for name in ("weight", "bias"):
        torch_prune.identity(pruned[0], name)
    pruned[0].weight_mask[1:4] = 0  # type: ignore[operator]
    pruned[0].bias_mask[1:4] = 0  # type: ignore[operator]
    gm = fxprune.capture(model, IMAGE)
    for name in ("0.weight", "0.bias"):
        fxprune.identity(gm, name)
    gm.load_state_dict(pruned.state_dict())
    small = check(gm, IMAGE)
    assert shape(small, "0.weight") == (5, 3, 3, 3)
    assert relative_error(small(IMAGE), pruned(IMAGE)) < 1e-9


def test_a_model_with_hooks_of_torch_prune_goes() -> None:
    model = convs(nn.ReLU())
    torch_prune.ln_structured(model[0], "weight", 0.25, n=2, dim=0)
    torch_prune.ln_structured(model[2], "weight", 0.25, n=2, dim=1)
    small = check(fxprune.capture(model, IMAGE), IMAGE)
    assert shape(small, "0.weight")[0] in (4, 5, 6)  # two on either side, perhaps the same


# Zeros that nobody masked.


@pytest.mark.parametrize("bias", [True, False])
def test_zero_rows_go_from_zeros(bias: bool) -> None:
    gm = zeroed(fxprune.capture(convs(nn.ReLU(), bias=bias), IMAGE), "0.weight")
    assert shape(check(copy.deepcopy(gm), IMAGE), "0.weight") == (8, 3, 3, 3)
    assert shape(check(gm, IMAGE, from_zeros=True), "0.weight") == (5, 3, 3, 3)


def test_what_nobody_looks_at_goes() -> None:
    small = check(zeroed(fxprune.capture(linears(nn.Dropout()), VECTOR), "2.weight", dim=1), VECTOR, from_zeros=True)
    assert shape(small, "0.weight") == (5, 5)


def test_trained_zeros_of_a_norm_do_not_count_by_themselves() -> None:
    model = convs(nn.BatchNorm2d(8), nn.ReLU())
    nn.init.zeros_(model[1].weight)  # type: ignore[arg-type]
    gm = fxprune.capture(model, IMAGE)
    assert shape(check(masked(gm, "0.weight"), IMAGE), "0.weight") == (8, 3, 3, 3)


def test_one_channel_stays_where_all_could_go() -> None:
    for gm in (
        masked(fxprune.capture(linears(nn.ReLU()), VECTOR), "0.weight", count=8),
        masked(fxprune.capture(linears(nn.ReLU()), VECTOR), "2.weight", dim=1, count=8),
    ):
        assert shape(check(gm, VECTOR), "0.weight") == (1, 5)


def test_partly_dead_units_stay() -> None:
    gm = fxprune.capture(linears(nn.ReLU()), VECTOR)
    mask = torch.ones(8, 5).double()
    mask[:3, 1:] = 0
    fxprune.custom_from_mask(gm, "0.weight", mask)
    assert shape(check(gm, VECTOR), "0.weight") == (8, 5)


def test_nothing_happens_without_zeros() -> None:
    gm = fxprune.capture(linears(nn.ReLU()), VECTOR)
    text = gm.code
    small = check(gm, VECTOR, from_zeros=True)
    assert small.code == text
    assert shape(small, "0.weight") == (8, 5)


def test_a_plan_and_other_masks_go_together() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 4)).double()
    gm = fxprune.capture(model, VECTOR)
    plan = fxprune.plan(fxprune.analyze(gm), 0.5, ignore=["4"])
    small = check(masked(fxprune.mask(gm, plan), "4.weight", dim=1), VECTOR)
    assert shape(small, "2.weight") == (5, 4)


def test_a_plan_wins_over_a_constant() -> None:
    """What a plan removes counts as gone, not as the constant that zeros become behind a sigmoid."""
    gm = fxprune.capture(linears(nn.Sigmoid()), VECTOR)
    plan = fxprune.plan(fxprune.analyze(gm), 0.5)
    mask = torch.zeros(8, 5).double()
    mask[torch.from_numpy(plan.provenance("0.weight", 0))] = 1
    fxprune.custom_from_mask(gm, "0.weight", mask)
    small = check(fxprune.mask(gm, plan), VECTOR)
    assert shape(small, "0.weight") == (4, 5)


# What has to stay, because it is counted.


class MeanOverChannels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)


@pytest.mark.parametrize(
    "between",
    [
        (nn.ReLU(), nn.LayerNorm(8)),
        (nn.ReLU(), nn.Softmax(1)),
        (nn.ReLU(), nn.Dropout(0.3)),
        (nn.ReLU(), nn.Sequential(nn.Dropout(0.3), nn.Identity())),
    ],
    ids=["layer norm", "softmax", "dropout", "dropout in a block"],
)
@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_constants_that_are_counted_or_dropped_stay(between: tuple[nn.Module, ...], frontend: str) -> None:
    gm = fxprune.capture(linears(*between).eval(), VECTOR, frontend=frontend)  # type: ignore[arg-type]
    assert shape(check(masked(gm, "0.weight"), VECTOR), "0.weight") == (8, 5)


@pytest.mark.parametrize("between", [nn.Dropout(0.9), nn.Dropout(1.0), nn.Dropout1d(0.3)])
def test_zeros_stay_zero_when_they_are_dropped(between: nn.Module) -> None:
    gm = fxprune.capture(linears(between).eval(), VECTOR)
    assert shape(check(masked(gm, "0.weight", "0.bias"), VECTOR), "0.weight") == (5, 5)


def test_zeros_that_a_mean_counts_stay() -> None:
    gm = fxprune.capture(convs(MeanOverChannels(), last=nn.Conv2d(1, 2, 3)), IMAGE)
    assert shape(check(masked(gm, "0.weight", "0.bias"), IMAGE), "0.weight") == (8, 3, 3, 3)


class DropPath(nn.Module):
    """Drops numbers while training; a constant is none then."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.empty_like(x).bernoulli_(0.5)


def test_what_differs_by_mode_counts_in_both() -> None:
    for count, *names in ((8, "0.weight"), (5, "0.weight", "0.bias")):
        gm = fxprune.capture(linears(nn.ReLU(), DropPath()).eval(), VECTOR, frontend="export")
        assert "by_mode" in gm.code
        small, _ = shrunk_copy(masked(gm, *names))
        assert shape(small, "0.weight") == (count, 5)


# Random networks.


def random_zeros(seed: int, gm: fx.GraphModule, deps: Dependencies) -> dict[str, Tensor]:
    """Return masks that take out all, or some sides, of some units of some groups."""
    source, masks = random.Random(seed), dict[str, Tensor]()
    for group in source.sample(deps.groups, min(len(deps.groups), source.randint(1, 4))):
        units = source.sample(range(group.size), source.randint(1, group.size))
        side = source.choice(("all", "producers", "consumers", "some"))
        for member in group.members:
            parameter = None if member.is_buffer else gm.get_parameter(member.parameter)
            if parameter is None or not parameter.is_floating_point():
                continue
            chosen = {"all": True, "producers": member.dim == 0, "consumers": member.dim > 0, "some": source.random() < 0.5}
            if chosen[side]:
                mask = masks.setdefault(member.parameter, torch.ones_like(parameter))
                mask.movedim(member.dim, 0)[torch.from_numpy(member.positions[units].reshape(-1).copy())] = 0
    return masks


def is_finite(gm: fx.GraphModule, inputs: Iterable[Tensor]) -> bool:
    with torch.no_grad():
        outputs = [copy.deepcopy(gm).train(training)(*inputs) for training in (False, True)]
    return all(bool(t.isfinite().all()) for t in tensors_of(outputs))


def test_random_networks_with_random_zeros_compute_the_same() -> None:
    went = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(24):
            program = network(seed)
            gm, deps = captured(program)
            for name, mask in random_zeros(seed, gm, deps).items():
                if seed % 2:
                    gm.get_parameter(name).data.mul_(mask)
                else:
                    fxprune.custom_from_mask(gm, name, mask)
            if is_finite(gm, program.arguments()):
                small, smaller = shrunk_copy(gm, from_zeros=bool(seed % 2))
                fxprune.verify(gm, small, program.arguments(), tolerance=1e-8)
                went += smaller
    assert went > 10


# The parts.


def test_removable_names_the_units() -> None:
    gm = zeroed(fxprune.capture(linears(nn.ReLU()).train(), VECTOR), "0.weight")
    deps = fxprune.analyze(gm)
    removed, folds = removable(gm, deps, zero_slices(gm), np.zeros(deps.units.count, bool))
    assert removed[deps.groups[0].units].tolist() == [True] * 3 + [False] * 5
    (fold,) = folds
    bias = gm.get_parameter("0.bias").detach().double().numpy()
    assert fold.bias == "2.bias"
    assert np.allclose(fold.numbers, np.where(np.arange(8) < 3, bias, 0))


def test_removable_leaves_out_what_goes_anyhow() -> None:
    gm = zeroed(fxprune.capture(linears(nn.ReLU()).train(), VECTOR), "0.weight")
    deps = fxprune.analyze(gm)
    gone = np.zeros(deps.units.count, bool)
    gone[deps.groups[0].units[:2]] = True
    removed, folds = removable(gm, deps, zero_slices(gm), gone)
    assert removed.sum() == 1
    assert np.count_nonzero(folds[0].numbers) == 1


def test_slices_meet_add_and_multiply() -> None:
    numbers = np.where([True, True, False, True], of_numbers(np.array([0.0, 2.0, 2.0, np.inf])), finite([4]))
    assert numbers["state"].tolist() == [SliceState.ZERO, SliceState.CONSTANT, SliceState.FINITE, SliceState.UNKNOWN]
    other = of_numbers(np.array([3.0, 2.0, 2.0, 1.0]))
    assert met([numbers, other])["state"].tolist() == [
        SliceState.FINITE,
        SliceState.CONSTANT,
        SliceState.FINITE,
        SliceState.UNKNOWN,
    ]
    total = added([numbers, other])
    assert total["state"].tolist() == [SliceState.CONSTANT, SliceState.CONSTANT, SliceState.FINITE, SliceState.UNKNOWN]
    assert total["value"].tolist() == [3.0, 4.0, 0.0, 0.0]
    assert multiplied([numbers, other])["state"].tolist() == [
        SliceState.ZERO,
        SliceState.FINITE,
        SliceState.FINITE,
        SliceState.UNKNOWN,
    ]


class Everything(nn.Module):
    """Calls one operator on a constant channel."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = eval(self.text, {"torch": torch, "F": F, "x": x})
        return result


@pytest.mark.parametrize(
    "text",
    [
        "x.view(2, 2, 4, 4, 6)",
        "x.view(2, 8, 24)",
        "x.permute(0, 2, 3, 1).reshape(8, 6, 8)",
        "x.flatten(1)",
        "x[:, 1:7:2]",
        "x.flip(1).roll(3, 1)",
        "x.unbind(2)[0]",
        "torch.cat([x, x * 2 + 1], 1)",
        "torch.cat([x, x.sigmoid()], 2)",
        "x.repeat(1, 2, 1, 1)",
        "x.repeat_interleave(2, 1)",
        "F.pad(x, (1, 1, 0, 0, 2, 1))",
        "F.pad(x, (1, 1), value=0.5)",
        "F.max_pool2d(x, 2, padding=1)",
        "F.avg_pool2d(x, 2, padding=1)",
        "F.avg_pool2d(x, 2)",
        "F.adaptive_avg_pool2d(x, 3)",
        "F.interpolate(x, scale_factor=2.0, mode='bilinear')",
        "F.channel_shuffle(x, 2)",
        "F.pixel_shuffle(x, 2)",
        "F.pixel_unshuffle(x, 2)",
        "x.mean((2, 3))",
        "x.amax(2)",
        "x.std((2, 3))",
        "x.cumsum(1)",
        "x.sort(1)[0]",
        "x.softmax(1)",
        "x.softmax(2)",
        "torch.where(x > 0, x.exp(), x)",
        "x.clamp(0.1, 0.4) ** 2",
        "x.unsqueeze(1).expand(2, 3, 8, 4, 6).sum(1)",
        "F.group_norm(x, 4)",
        "F.layer_norm(x, [4, 6])",
        "F.glu(x, 1)",
        "1 / x",
        "x.tril()",
        "torch.roll(x, 5)",
        "x.type_as(torch.ones(1, dtype=torch.int32)).type_as(x)",
        "x.type_as(torch.ones(1, dtype=torch.int32)).to(x)",
        "x.type_as(torch.ones(1, dtype=torch.bool)).double()",
        "x.type_as(torch.ones(1, dtype=torch.double)) * 2",
    ],
)
def test_what_is_said_of_slices_is_true(text: str) -> None:
    """Each slice that is said to be zero or one number is, for two inputs that have nothing else in common."""
    numbers = torch.tensor([0.0, 0.7, 0.3, 0.0, 0.9, 0.0, 0.0, 0.0]).double()
    known = np.array([True, True, False, True, True, False, True, True])
    inputs = [torch.rand(2, 8, 4, 6).double() for _ in range(2)]
    for x in inputs:
        x[:, torch.from_numpy(known)] = numbers[torch.from_numpy(known)].view(1, -1, 1, 1)
    gm = fxprune.capture(Everything(text), inputs[0])
    deps = fxprune.analyze(gm)
    # One of several calls at a time: what goes in is known of the input alone.
    found = _said_of_output(deps, (None, np.where(known, of_numbers(numbers.numpy()), finite([8])), None, None))
    results = [tensors_of(gm(x))[0] for x in inputs]
    for d, slices in enumerate(found):
        for p in np.flatnonzero(is_constant(slices)) if slices is not None else ():
            assert slices is not None
            picked = torch.stack([result.select(d, int(p)) for result in results])
            assert torch.allclose(picked, torch.full_like(picked, float(slices["value"][p])), atol=1e-12), (d, p)


def _said_of_output(deps: Dependencies, given: Known) -> Known:
    known = {id(deps.values["x"].axes): given}

    def operands(step: Step) -> list[Known]:
        assert step.call is not None
        return [() if o is None else known.get(id(o.axes), nothing_of(o.shape)) for o in step.call.operands]

    for step in deps.steps:
        if step.call is not None:
            for label, result in zip(step.results, results_of(step.call, operands(step)), strict=True):
                known[id(label.axes)] = result
    output = deps.values["output"]
    label = output[0] if isinstance(output, list | tuple) else output
    return known.get(id(label.axes), nothing_of(label.shape))


def test_most_operators_say_something() -> None:
    numbers = np.where(np.arange(8) < 2, of_numbers(np.array([0.0, 0.5, 1.0, 0, 0, 0, 0, 0])), finite([8]))
    for text in ("x.view(2, 8, 24)", "F.max_pool2d(x, 2)", "x.relu() + 1", "x.permute(1, 0, 2, 3)", "x.mean((2, 3))"):
        deps = fxprune.analyze(fxprune.capture(Everything(text), torch.rand(2, 8, 4, 6).double()))
        found = _said_of_output(deps, (None, numbers, None, None))
        assert sum(int(is_constant(s).sum()) for s in found if s is not None) == 2, text


class Scaled(nn.Module):
    def __init__(self, by: str) -> None:
        super().__init__()
        self.first, self.second, self.by = nn.Linear(5, 8), nn.Linear(8, 2), by

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.sigmoid(self.first(x))
        return self.second(eval(self.by, {"y": y}))


@pytest.mark.parametrize(
    ("by", "width"), [("y * y.numel()", 8), ("y + y.shape[0]", 8), ("y / (y.size(0) * 2)", 8), ("y * y.shape[1] ** -0.5", 5)]
)
@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_a_number_that_depends_on_the_batch_size_leaves_no_constant(by: str, width: int, frontend: str) -> None:
    gm = fxprune.capture(randomised(Scaled(by)).double().eval(), VECTOR, frontend=frontend)  # type: ignore[arg-type]
    masked(gm, "first.weight")
    before = gm(VECTOR), gm(VECTOR[:2])
    small = fxprune.shrink(gm)
    assert small.get_parameter("first.weight").shape[0] == width
    assert all(relative_error(small(x), result) < 1e-9 for x, result in zip((VECTOR, VECTOR[:2]), before, strict=True))
