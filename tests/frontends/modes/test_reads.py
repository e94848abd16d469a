"""Which modes a graph follows: those of modules with two names, those that forward sets, and those of odd batch sizes."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from tests.compare import assert_same, relative_error


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Twice(nn.Module):
    """Its batch norm, its dropout or its own code has two names; the sum keeps symbolic tracing out."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(4, 6), shared)
        self.b = nn.Sequential(nn.Linear(6, 6), shared)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + torch.zeros(x.shape[0], 6)


class Doubles(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x


class InAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(4)
        self.every = nn.ModuleList([norm, norm])
        self.again = norm

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.every:
            x = layer(x)
        return self.again(x) + torch.zeros(x.shape[0], 4)


@pytest.mark.parametrize(
    "make", [lambda: Twice(nn.BatchNorm1d(6)), lambda: Twice(Doubles()), lambda: Twice(nn.RReLU()), InAList]
)
@pytest.mark.parametrize("training", [False, True])
def test_exported_modules_with_two_names_follow_the_mode(make: Any, training: bool) -> None:
    model, x = make().train(training), torch.randn(5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = fxprune.capture(model, x, frontend="export")
    assert_same(gm, model, (x,), tolerance=1e-6)


def test_a_module_with_two_names_keeps_a_mode_of_its_own() -> None:
    model, x = Twice(Doubles()).eval(), torch.randn(5, 4)
    gm = fxprune.capture(model, x, frontend="export")
    ours, theirs = copy.deepcopy(gm), copy.deepcopy(model)
    ours.get_submodule("a.1").train()
    theirs.a[1].train()
    assert relative_error(ours(x), theirs(x)) <= 1e-6
    assert relative_error(theirs(x), model(x)) > 0.1


class FrozenStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l, self.norm, self.drop = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.norm.eval()
        return self.norm(self.l(x))


class FrozenByFlag(FrozenStatistics):
    def forward(self, x: Tensor) -> Tensor:
        self.norm.training = False
        return self.norm(self.l(x))


class FrozenInside(FrozenStatistics):
    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            part.train(False)
        return self.drop(self.norm(self.l(x)))


class FrozenForAWhile(FrozenStatistics):
    def forward(self, x: Tensor) -> Tensor:
        mode = self.norm.training
        self.norm.train(not mode)
        y: Tensor = self.norm(self.l(x))
        self.norm.train(mode)
        return y


@pytest.mark.parametrize("kind", [FrozenStatistics, FrozenByFlag, FrozenInside, FrozenForAWhile])
@pytest.mark.parametrize("training", [False, True])
def test_modes_that_forward_sets_are_followed(kind: Any, training: bool) -> None:
    model, x = kind().train(training), torch.randn(5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = fxprune.capture(model, x)
    assert all(module.training is training for module in model.modules())
    for mode in (True, False, True):
        ours, theirs = copy.deepcopy(gm).train(mode), copy.deepcopy(model).train(mode)
        assert relative_error(ours(x), theirs(x)) <= 1e-6
        for name, buffer in theirs.named_buffers():
            assert relative_error(ours.get_buffer(name), buffer) <= 1e-6


class RandomAlways(FrozenStatistics):
    def forward(self, x: Tensor) -> Tensor:
        self.drop.train()
        return self.drop(self.l(x))


@pytest.mark.parametrize("training", [False, True])
def test_dropout_that_forward_switches_on_is_on_in_both_modes(training: bool) -> None:
    gm = fxprune.capture(RandomAlways().train(training), torch.randn(5, 4))
    for mode in (False, True):
        assert 0.2 < (gm.train(mode)(torch.randn(200, 4)) == 0).double().mean() < 0.8


def test_one_front_end_alone_warns_of_modes_that_forward_sets() -> None:
    with pytest.warns(fxprune.CaptureWarning, match=r"forward sets the mode of modules \(that of norm at .*test_reads.py:"):
        fxprune.capture(FrozenStatistics().eval(), torch.randn(5, 4), frontend="trace")


class ReadsUnseen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if vars(self)["training"] else x


def test_a_mode_that_is_read_unseen_is_compared() -> None:
    with pytest.warns(fxprune.CaptureWarning, match="in train mode the graph does not give the model's result"):
        fxprune.capture(ReadsUnseen().eval(), torch.randn(5, 4), frontend="export")


class OneSampleInTrainMode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] == 1:
            return self.l(x) * 2
        return F.relu(self.l(x))


class OneSampleInEvalMode(OneSampleInTrainMode):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.l(x)) if self.training or x.shape[0] > 1 else self.l(x) * 2


@pytest.mark.parametrize("kind", [OneSampleInTrainMode, OneSampleInEvalMode])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frontend", ["auto", "trace", "export"])
def test_a_branch_on_one_sample_in_either_mode_is_never_lost_in_silence(kind: Any, training: bool, frontend: Any) -> None:
    model = kind().train(training)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            gm = fxprune.capture(model, torch.randn(3, 4), frontend=frontend)
        except fxprune.CaptureError:
            return
    x = torch.randn(1, 4)
    same = (
        all(relative_error(gm.train(mode)(x), model.train(mode)(x)) <= 1e-6 for mode in (True, False)) if not caught else True
    )
    assert same


class NoSamples(OneSampleInTrainMode):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_ones(1, 4) if x.shape[0] == 0 else self.l(x)


class NoSamplesInTrainMode(OneSampleInTrainMode):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_ones(1, 4) if self.training and len(x) < 1 else self.l(x)


@pytest.mark.parametrize("kind", [NoSamples, NoSamplesInTrainMode])
@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_a_branch_on_no_samples_is_warned_of(kind: Any, frontend: Any) -> None:
    with pytest.warns(fxprune.CaptureWarning, match="with a batch of no samples|fixes its batch size|in train mode"):
        fxprune.capture(kind().eval(), torch.randn(3, 4), frontend=frontend)
