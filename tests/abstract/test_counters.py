"""Counters that move on in one mode only: one node that goes by a live flag."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxprune
from fxprune.functional import layers
from fxprune.graph.parts import ByMode
from fxprune.testing import check_graph
from tests.compare import assert_same
from tests.nets import randomised

pytestmark = [
    # TorchScript is deprecated but is one of the formats that graphs are shipped in.
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning"),
]

both = pytest.mark.parametrize("frontend", ["trace", "export"])
in_each_mode = pytest.mark.parametrize("training", [True, False])


class Counting(nn.Module):
    """Counts its calls in train mode, in two ways, and those in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 6)
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("hours", torch.tensor(0.25))
        self.register_buffer("answers", torch.tensor(0))
        self.steps: Tensor
        self.hours: Tensor
        self.answers: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps.add_(1)
            self.hours.add_(0.5)
        else:
            self.answers.add_(2)
        return self.second(torch.relu(self.first(x)))


class Norm(nn.BatchNorm1d):
    """A batch norm with a forward of its own, which is traced."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps
        )


class Read(Counting):
    """Its result depends on the counter."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.steps


class Indexed(Counting):
    """Takes the channel that the counter says."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.training:
            self.steps.add_(1)
        return self.second(torch.relu(y)) * y.index_select(1, self.steps.reshape(1).remainder(8))


class Several(nn.Module):
    """Counts each channel: no single number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("seen", torch.zeros(6))
        self.seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.add_(1)
        return self.layer(x)


def normed() -> nn.Module:
    return randomised(nn.Sequential(nn.Linear(6, 8), Norm(8), nn.ReLU(), nn.Linear(8, 6), Norm(6)))


NETS: list[Callable[[], nn.Module]] = [Counting, normed, Read, Indexed]


def captured(build: Callable[[], nn.Module], frontend: Any, training: bool) -> tuple[nn.Module, Any]:
    """Return a model and its graph, which share tensors, as on every call."""
    copied = copy.deepcopy(_captured(build, frontend, training))
    torch.manual_seed(0)
    return copied


@functools.cache
def _captured(build: Callable[[], nn.Module], frontend: Any, training: bool) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = build().double().train(training)
    return model, fxprune.capture(model, torch.randn(4, 6, dtype=torch.double), frontend=frontend)


def assert_counts_alike(ours: nn.Module, theirs: nn.Module) -> None:
    """Outputs and buffers are the same after calls in both modes, and a call writes what the mode writes."""
    ours, theirs = copy.deepcopy(ours), copy.deepcopy(theirs)
    for training in (True, False, True, True):
        x = torch.randn(3, 6, dtype=torch.double)
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
        for name, buffer in theirs.named_buffers():
            assert torch.equal(ours.get_buffer(name), buffer), name


@both
@in_each_mode
@pytest.mark.parametrize("build", NETS)
def test_counts_as_the_model_does_by_a_flag(build: Callable[[], nn.Module], frontend: Any, training: bool) -> None:
    model, gm = captured(build, frontend, training)
    check_graph(gm)
    assert_same(gm, model, (torch.randn(5, 6, dtype=torch.double),))
    assert_counts_alike(gm, model)
    assert not any(isinstance(module, ByMode) for module in gm.modules())
    assert gm.graph.find_nodes(op="call_function", target=layers.add_if_)


def test_text_of_a_counter() -> None:
    _, gm = captured(lambda: nn.Sequential(Norm(6)), "trace", training=False)
    lines = [line.partition(";")[0].strip() for line in gm.code.splitlines() if "tracked" in line or "training" in line]
    assert lines == [
        '_0_num_batches_tracked = getattr(self, "0").num_batches_tracked',
        '_0_training = getattr(self, "0").training',
        "add_if_ = fxprune_functional_layers_add_if_(_0_num_batches_tracked, 1, _0_training)",
        "batch_norm = torch.nn.functional.batch_norm(input_1, _0_running_mean, _0_running_var, weight = _0_weight, "
        "bias = _0_bias, training = _0_training, momentum = 0.1, eps = 1e-05)",
    ]


@both
def test_each_module_counts_in_its_own_mode(frontend: Any) -> None:
    model, gm = captured(normed, frontend, training=True)
    model, gm = copy.deepcopy(model), copy.deepcopy(gm)
    x = torch.randn(4, 6, dtype=torch.double)
    for net in (model, gm):
        net.train()
        net.get_submodule("1").eval()
        net(x)
    assert int(gm.get_buffer("1.num_batches_tracked")) == 0
    assert int(gm.get_buffer("4.num_batches_tracked")) == 1
    assert_counts_alike(gm, model)


class _Writes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@both
@in_each_mode
def test_nothing_is_written_in_the_other_mode(frontend: Any, training: bool) -> None:
    _, gm = captured(Counting, frontend, training)
    for mode, writes in ((True, 2), (False, 1)):
        with _Writes() as watch:
            gm.train(mode)(torch.randn(4, 6, dtype=torch.double))
        assert watch.seen == ["aten.add_.Tensor"] * writes


@both
@pytest.mark.parametrize("build", NETS)
def test_copies_and_pickles_count(build: Callable[[], nn.Module], frontend: Any) -> None:
    model, gm = captured(build, frontend, training=False)
    for other in (copy.deepcopy(gm), pickle.loads(pickle.dumps(gm))):
        check_graph(other)
        assert other.code == gm.code
        assert_counts_alike(other, model)


@both
@in_each_mode
@pytest.mark.parametrize("build", NETS)
def test_exported_forms_count_as_the_graph_does(build: Callable[[], nn.Module], frontend: Any, training: bool) -> None:
    model, gm = captured(build, frontend, training)
    x = torch.randn(4, 6, dtype=torch.double)
    script = fxprune.to_torchscript(copy.deepcopy(gm), x)
    saved = io.BytesIO()
    torch.jit.save(script, saved)
    saved.seek(0)
    exported = torch.export.export(copy.deepcopy(gm), (x,)).module()
    forms = [script, torch.jit.load(saved), exported, torch.compile(copy.deepcopy(gm), fullgraph=True, backend="eager")]
    expected = model(x)
    for form in forms:
        torch.testing.assert_close(form(x), expected)
        buffers = {name.removeprefix("_orig_mod."): buffer for name, buffer in form.named_buffers()}
        for name, buffer in model.named_buffers():
            assert torch.equal(buffers[name], buffer), name


@both
@pytest.mark.parametrize("build", NETS)
def test_masked_and_shrunk_graphs_count(build: Callable[[], nn.Module], frontend: Any) -> None:
    _, gm = captured(build, frontend, training=False)
    if build is Indexed:  # a channel that is chosen by a value cannot go
        assert "first.weight" not in {m.name for group in fxprune.analyze(gm).groups for m in group.members}
        return
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    masked = copy.deepcopy(gm)
    fxprune.shrink(gm)
    check_graph(gm)
    assert gm.graph.find_nodes(op="call_function", target=layers.add_if_)
    for training in (True, False, True):
        x = torch.randn(4, 6, dtype=torch.double)
        torch.testing.assert_close(gm.train(training)(x), masked.train(training)(x))
    counters = [name for name, buffer in masked.named_buffers() if buffer.dim() == 0 and not name.endswith("_mask")]
    assert counters
    for name in counters:
        assert torch.equal(gm.get_buffer(name), masked.get_buffer(name)), name


@both
def test_analysis_does_not_count_in_a_mode_that_does_not(frontend: Any) -> None:
    _, gm = captured(Counting, frontend, training=False)
    before = copy.deepcopy(gm.state_dict())
    for training in (True, False):
        fxprune.analyze(gm.train(training))
    torch.testing.assert_close(gm.state_dict(), before)


@both
def test_what_is_not_a_single_number_keeps_two_versions(frontend: Any) -> None:
    model, gm = captured(Several, frontend, training=False)
    assert any(isinstance(module, ByMode) for module in gm.modules())
    assert_counts_alike(gm, model)
