"""train() and eval() on graphs: what follows them, and the warning for what cannot."""

from __future__ import annotations

import copy
import warnings
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.testing import check_graph
from tests.compare import assert_same, relative_error, run
from tests.nets import DropPath, randomised

FRONTENDS = ("trace", "export")


class Body(nn.Module):
    """One linear layer and a piece of code that depends on the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.rate = 0.4
        self.flag = True
        self.path = DropPath(0.5)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.depends(self.layer(x))

    def depends(self, y: Tensor) -> Tensor:
        raise NotImplementedError


class FunctionalDropout(Body):
    def depends(self, y: Tensor) -> Tensor:
        return F.dropout(y, self.rate, self.training)


class FunctionalDropoutByKeyword(Body):
    def depends(self, y: Tensor) -> Tensor:
        return F.dropout(F.alpha_dropout(y, p=0.2, training=self.training), p=self.rate, training=self.training and self.flag)


class InPlaceDropout(Body):
    def depends(self, y: Tensor) -> Tensor:
        return F.dropout(y * 1, self.rate, self.training, inplace=True)


class DropoutInEvalOnly(Body):
    def depends(self, y: Tensor) -> Tensor:
        return F.dropout(y, self.rate, not self.training)


class AlwaysOnDropout(Body):
    def depends(self, y: Tensor) -> Tensor:
        return F.dropout(y, self.rate, True)


class RateByMode(Body):
    def depends(self, y: Tensor) -> Tensor:
        return F.dropout(y, self.rate if self.training else 0.0)


class AttentionDropout(Body):
    def depends(self, y: Tensor) -> Tensor:
        q = y.unsqueeze(0)
        return F.scaled_dot_product_attention(q, q, q, dropout_p=self.rate if self.training else 0.0).squeeze(0)


class SkippedDropout(Body):
    def depends(self, y: Tensor) -> Tensor:
        if self.training:
            y = F.dropout(y, p=self.rate)
        return y * 2


class SkippedDropoutModule(Body):
    def depends(self, y: Tensor) -> Tensor:
        return self.drop(y) if self.training else y


class StochasticDepth(Body):
    def depends(self, y: Tensor) -> Tensor:
        return y + self.path(y)


class StochasticDepthTwice(Body):
    def depends(self, y: Tensor) -> Tensor:
        y = y + self.path(y)
        return y + self.path(torch.relu(y))


class Arithmetic(Body):
    def depends(self, y: Tensor) -> Tensor:
        return y * (2.0 if self.training else 3.0) + (1 if self.training else 4)


class BranchOnBothSides(Body):
    def depends(self, y: Tensor) -> Tensor:
        y = torch.sin(y) + torch.rand_like(y) if self.training else torch.cos(y) * torch.rand_like(y)
        return y + 1


class ResultUsedTwice(Body):
    def depends(self, y: Tensor) -> Tensor:
        z = torch.tanh(y) * 2 if self.training else y
        return z * y + z


class TwoResults(Body):
    def depends(self, y: Tensor) -> Tensor:
        a, b = (torch.sin(y), torch.cos(y)) if self.training else (y, y + 1)
        return a * b


class SwappedValues(Body):
    def depends(self, y: Tensor) -> Tensor:
        a, b = torch.sin(y), torch.cos(y)
        return a / (b + 3) if self.training else b / (a + 3)


class UsesSizes(Body):
    def depends(self, y: Tensor) -> Tensor:
        if self.training:
            noise = torch.rand_like(y[:, :1]) * y.shape[0]
            y = y.reshape(y.shape[0], 2, 3).flip(1).reshape(y.shape[0], -1) + noise
        return y


class ParameterInBranch(Body):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(6))

    def depends(self, y: Tensor) -> Tensor:
        return y * self.gain.exp() if self.training else y


class Nested(Body):
    def depends(self, y: Tensor) -> Tensor:
        if self.training:
            y = self.path(y * 2) + 1
        return y


class ModeOfParent(Body):
    def depends(self, y: Tensor) -> Tensor:
        return self.helper(y, self.training)

    def helper(self, y: Tensor, training: bool) -> Tensor:
        return F.dropout(y, 0.5, training=training)


KEPT = [
    FunctionalDropout, FunctionalDropoutByKeyword, InPlaceDropout, DropoutInEvalOnly, AlwaysOnDropout, RateByMode,
    AttentionDropout, SkippedDropout, SkippedDropoutModule, StochasticDepth, StochasticDepthTwice, Arithmetic,
    BranchOnBothSides, ResultUsedTwice, TwoResults, SwappedValues, UsesSizes, ParameterInBranch, Nested, ModeOfParent,
]  # fmt: skip


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KEPT)
def test_graph_follows_the_mode_as_the_model_does(kind: type[Body], frontend: Any, training: bool) -> None:
    torch.manual_seed(0)
    model = kind().double().train(training)
    gm = fxprune.capture(model, torch.randn(2, 6, dtype=torch.double), frontend=frontend)
    check_graph(gm)
    for batch in (2, 5):
        assert_same(gm, model, (torch.randn(batch, 6, dtype=torch.double),))
    assert set(gm.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(6),
        nn.BatchNorm1d(6, momentum=None),
        nn.BatchNorm1d(6, affine=False),
        nn.BatchNorm1d(6, track_running_stats=False),
    ],
    ids=repr,
)
def test_batch_norm_updates_its_statistics_in_train_mode_only(norm: nn.Module, frontend: Any) -> None:
    torch.manual_seed(0)
    model = randomised(nn.Sequential(nn.Linear(6, 6), copy.deepcopy(norm))).double()
    if frontend == "export" and isinstance(norm, nn.BatchNorm1d) and norm.momentum is None:
        pytest.skip("the average over all batches needs a number from a buffer, which torch.export cannot follow")
    gm = fxprune.capture(model, torch.randn(4, 6, dtype=torch.double), frontend=frontend)
    if affine := "1.weight" in dict(model.named_parameters()):
        fxprune.identity(gm, "1.weight")
    for _ in range(2):  # masked (the norm written out), then finalized
        ours, theirs = copy.deepcopy(gm), copy.deepcopy(model)
        for training in (True, True, False, True):
            x = torch.randn(3, 6, dtype=torch.double)
            assert relative_error(ours.train(training)(x), theirs.train(training)(x)) <= 1e-9
        for name, buffer in theirs.named_buffers():
            torch.testing.assert_close(ours.get_buffer(name), buffer)
        if affine:
            fxprune.finalize(gm)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_each_module_keeps_a_mode_of_its_own(frontend: Any) -> None:
    torch.manual_seed(0)
    model = randomised(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.BatchNorm1d(6))).train()
    model.get_submodule("1").eval()
    gm = fxprune.capture(model, torch.randn(4, 6), frontend=frontend)
    assert gm.get_submodule("1").training is False
    assert gm.training is True
    ours, theirs = copy.deepcopy(gm), copy.deepcopy(model)
    x = torch.randn(4, 6)
    assert relative_error(run(ours, (x,)), run(theirs, (x,))) <= 1e-6
    frozen = theirs.get_buffer("1.running_mean")
    assert torch.equal(ours.get_buffer("1.running_mean"), frozen)
    ours.get_submodule("3").eval()
    theirs.get_submodule("3").eval()
    assert relative_error(run(ours, (x,)), run(theirs, (x,))) <= 1e-6


class Auxiliary(nn.Module):
    """Gives a second result in train mode, as GoogLeNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.side = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        if self.training:
            return self.main(x), self.side(x)
        return self.main(x)


class OtherLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})

    def forward(self, x: Tensor) -> Tensor:
        key = "a" if self.training else "b"
        return self.inner[key](x)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("training", [True, False])
def test_a_dependence_that_cannot_be_kept_is_named_with_module_and_line(frontend: Any, training: bool) -> None:
    model = nn.Sequential(Auxiliary()).train(training)
    with pytest.warns(fxprune.CaptureWarning, match=r"0 at .*test_merge\.py:\d+") as caught:
        gm = fxprune.capture(model, torch.randn(2, 6), frontend=frontend)
    mode = "train" if training else "eval"
    assert f"the graph does what it does in {mode} mode" in str(caught[0].message)
    x = torch.randn(3, 6)
    assert relative_error(gm(x), model(x)) <= 1e-6
    assert relative_error(gm.train(not training)(x), model(x)) <= 1e-6


class Both(NamedTuple):
    main: Tensor
    side: Tensor


class NamedAuxiliary(Auxiliary):
    def forward(self, x: Tensor) -> Any:
        found = super().forward(x)
        return Both(*found) if isinstance(found, tuple) else found


@pytest.mark.parametrize("frontend", [*FRONTENDS, "auto"])
@pytest.mark.parametrize("kind", [Auxiliary, NamedAuxiliary])
def test_results_that_only_one_mode_gives_are_warned_of(kind: type[nn.Module], frontend: Any) -> None:
    model = kind().eval()
    x = torch.randn(3, 6)
    with pytest.warns(fxprune.CaptureWarning, match="the model returns other results in train mode than in eval mode"):
        gm = fxprune.capture(model, x, frontend=frontend)
    assert relative_error(gm.train()(x), model(x)) <= 1e-6


def test_leaf_modules_that_only_one_mode_calls_are_warned_of_or_kept() -> None:
    model = OtherLayer().eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gm = fxprune.capture(model, torch.randn(2, 6), frontend="trace")
    x = torch.randn(3, 6)
    assert relative_error(gm(x), model(x)) <= 1e-6
    if not any(issubclass(w.category, fxprune.CaptureWarning) for w in caught):
        assert relative_error(gm.train()(x), model.train()(x)) <= 1e-6
    assert set(gm.state_dict()) == set(model.state_dict())
