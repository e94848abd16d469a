"""A capture is never silently wrong: odd models are captured exactly, warned of or refused, and left as they were."""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from tests.compare import assert_same, relative_error, run
from tests.nets import ConvNet

FRONTENDS = ("trace", "export")


class Net(nn.Module):
    """Two layers for the models below."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.m = nn.Linear(4, 4), nn.Linear(4, 4)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def x(batch: int = 3) -> Tensor:
    return torch.randn(batch, 4)


class BranchOnBatchRange(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.l(x * 2 if x.shape[0] > 2 else x)


class BranchOnSingleSample(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.l(x * 2 if x.shape[0] == 1 else x)


class BranchOnEvenBatch(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.l(x * 2 if x.shape[0] % 2 == 0 else x)


@pytest.mark.parametrize("kind", [BranchOnBatchRange, BranchOnSingleSample, BranchOnEvenBatch])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_a_branch_on_the_batch_size_fixes_the_batch_size_and_says_so(kind: type[Net], batch: int) -> None:
    model = kind()
    with pytest.warns(fxprune.CaptureWarning, match="the model fixes its batch size"):
        gm = fxprune.capture(model, x(batch))
    assert relative_error(gm(y := x(batch)), model(y)) == 0
    with pytest.raises(RuntimeError, match="does not have the shape that the graph was captured with"):
        gm(x(batch + 1))


class UsesModeOfChild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.bn.running_mean, self.bn.running_var, training=self.bn.training)


class GivesModeToChild(Net):
    class Child(nn.Module):
        def forward(self, x: Tensor, training: bool) -> Tensor:
            return F.dropout(x, 0.5, training)

    def __init__(self) -> None:
        super().__init__()
        self.child = self.Child()

    def forward(self, x: Tensor) -> Tensor:
        return self.child(self.l(x), self.training)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_the_flag_that_is_read_is_that_of_the_module_that_the_model_asks(frontend: Any) -> None:
    model = UsesModeOfChild().train()
    model.bn.eval()
    gm = fxprune.capture(model, x(), frontend=frontend)
    assert relative_error(copy.deepcopy(gm)(y := x()), copy.deepcopy(model)(y)) <= 1e-6
    other = GivesModeToChild().train()
    other.child.eval()
    gm = fxprune.capture(other, x(), frontend=frontend)
    assert relative_error(run(gm, (y,)), run(other, (y,))) == 0
    assert relative_error(gm.eval()(y), other.eval()(y)) == 0


@pytest.mark.parametrize("context", [torch.no_grad, lambda: torch.autocast("cpu", dtype=torch.bfloat16)])
def test_regions_without_gradients_or_with_autocast_keep_their_meaning(context: Any) -> None:
    class Region(Net):
        def forward(self, x: Tensor) -> Tensor:
            with context():
                x = self.l(x)
            return self.m(x.float())

    model = Region()
    gm = fxprune.capture(model, x())
    assert relative_error(gm(y := x()), model(y)) == 0
    expected = torch.autograd.grad(model(y).sum(), list(model.parameters()), allow_unused=True)
    found = torch.autograd.grad(gm(y).sum(), list(gm.parameters()), allow_unused=True)
    assert [g is None for g in found] == [g is None for g in expected]


class InPlaceByFlag(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.l(x)
        if self.training:
            F.relu(x, inplace=True)
        return self.m(x)


class InPlaceByPosition(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.l(x)
        if self.training:
            F.relu(x, True)
        return self.m(x)


class InPlaceModule(Net):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.l(x)
        if self.training:
            self.relu(x)
        return self.m(x)


class InPlaceOut(Net):
    def forward(self, x: Tensor) -> Tensor:
        a = x + 1
        if self.training:
            torch.mul(x, 3, out=a)
        return self.l(a)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [InPlaceByFlag, InPlaceByPosition, InPlaceModule, InPlaceOut])
def test_in_place_effects_of_one_mode_are_kept(kind: type[Net], training: bool, frontend: Any) -> None:
    model = kind().train(training)
    gm = fxprune.capture(model, x(), frontend=frontend)
    assert_same(gm, model, (x(),), tolerance=1e-6)


class RebindsBuffer(Net):
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return self.l(x) * self.count


def test_a_buffer_that_forward_assigns_anew_is_updated_by_the_graph() -> None:
    model = RebindsBuffer()
    gm = fxprune.capture(model, x())
    ours, theirs = copy.deepcopy(gm), copy.deepcopy(model)
    for _ in range(3):
        y = x()
        assert relative_error(ours(y), theirs(y)) <= 1e-6
    with pytest.raises(fxprune.CaptureError, match="forward assigns a new tensor to count"):
        fxprune.capture(model, x(), frontend="trace")


def test_python_state_is_warned_of() -> None:
    class Counts(Net):
        step = 0

        def __init__(self) -> None:
            super().__init__()
            self.step = 0

        def forward(self, x: Tensor) -> Tensor:
            self.step += 1
            return self.l(x) * self.step

    model = Counts()
    with pytest.warns(fxprune.CaptureWarning, match="forward changes the Python value step"):
        fxprune.capture(model, x())
    assert model.step == 0


@pytest.mark.parametrize(("name", "draw"), [("random", random.random), ("numpy.random", np.random.rand)])
def test_random_numbers_of_other_generators_are_warned_of_and_not_consumed(name: str, draw: Any) -> None:
    class Draws(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.l(x) * draw()

    before = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fxprune.capture(Draws(), x())
        except fxprune.CaptureError:
            return
        finally:
            assert random.getstate() == before[0]
            assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    assert any(f"the model draws numbers from {name};" in str(w.message) for w in caught)


class WithoutGradients(nn.Module):
    """Computes something within a region without gradients, as rotary embeddings do."""

    angles: Tensor

    def __init__(self, compute: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.l = nn.Linear(4, 4)
        self.register_buffer("angles", torch.rand(4))
        self.compute = compute

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        y = self.l(x)
        with torch.no_grad():
            found = self.compute(self, y, places)
        return y * found


@pytest.mark.parametrize(
    "compute",
    [
        lambda m, y, places: (places[:, None] * m.angles.to(device=y.device, dtype=y.dtype)).cos(),
        lambda m, y, places: torch.arange(y.shape[1], dtype=torch.float) * places.sum(),
    ],
)
def test_a_region_without_gradients_in_which_nothing_could_have_any_is_traced(compute: Any) -> None:
    model, inputs = WithoutGradients(compute), (x(), torch.arange(3))
    gm = fxprune.capture(model, inputs, frontend="trace")
    expected = torch.autograd.grad(model(*inputs).sum(), list(model.parameters()))
    found = torch.autograd.grad(gm(*inputs).sum(), list(gm.parameters()))
    assert relative_error(found, expected) == 0


@pytest.mark.parametrize(
    "compute",
    [
        lambda m, y, places: y.sigmoid(),
        lambda m, y, places: m.l.weight.sum(0),
        lambda m, y, places: m.l(y),
        lambda m, y, places: y.mul_(2).sum(),
        lambda m, y, places: m.angles.mul_(y.detach().mean(0)),
    ],
)
def test_a_region_without_gradients_in_which_something_would_have_some_is_not_traced(compute: Any) -> None:
    model, places = WithoutGradients(compute), torch.arange(3)
    with pytest.raises(fxprune.CaptureError, match="switches gradients"):
        fxprune.capture(model, (x(), places), frontend="trace")


def test_an_input_may_ask_for_gradients() -> None:
    model = WithoutGradients(lambda m, y, places: places.cos())
    with pytest.raises(fxprune.CaptureError, match="switches gradients"):
        fxprune.capture(model, (x(), torch.rand(3, 1)), frontend="trace")
    fxprune.capture(model, (x(), torch.arange(3)[:, None]), frontend="trace")


def test_a_mode_that_was_mistraced_is_noticed() -> None:
    class AsksForType(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.l(x)
            return y * 2 if self.training and isinstance(y, Tensor) else y

    model = AsksForType().eval()
    gm = fxprune.capture(model, x())
    assert_same(gm, model, (x(),), tolerance=1e-6)


def test_a_mode_switch_that_does_more_than_set_the_flag_is_warned_of() -> None:
    class Merges(Net):
        merged: Tensor | None = None

        def train(self, mode: bool = True) -> Merges:
            super().train(mode)
            self.merged = None if mode else self.l.weight.detach() * 1.0
            return self

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.l.weight if self.merged is None else self.merged)

    with pytest.warns(fxprune.CaptureWarning, match=r"Merges\.train\(\) of module '\(the model itself\)' changes merged"):
        fxprune.capture(Merges().eval(), x())


def test_a_mode_switch_that_asks_for_values_is_looked_at() -> None:
    class Asks(Net):
        largest = 0.0

        def train(self, mode: bool = True) -> Asks:
            self.largest = self.l.weight.abs().max().item()
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            return self.l(x)

    model = Asks().eval()
    with pytest.warns(fxprune.CaptureWarning, match=r"Asks\.train\(\) of module .* changes largest, where"):
        fxprune.capture(model, x())


def test_a_mode_switch_is_tried_on_a_copy_without_values() -> None:
    devices = []

    class Looks(Net):
        def train(self, mode: bool = True) -> Looks:
            devices.append(self.l.weight.device.type)
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            return self.l(x)

    model = Looks().eval()
    devices.clear()
    fxprune.capture(model, x())
    assert devices == ["meta", "meta"]


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_copies_keep_the_names_of_the_state(frontend: Any) -> None:
    class Names(Net):
        table: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.ones(4), persistent=False)
            self.again = self.l
            self.gain = nn.Parameter(torch.ones(4))
            self.tied = self.gain

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.l(x)) * self.table * self.gain * self.tied + torch.tensor([1.0, 2.0, 3.0, 4.0])

    model = Names()
    gm = fxprune.capture(model, x(), frontend=frontend)
    copied = copy.deepcopy(gm)
    assert list(copied.state_dict()) == list(gm.state_dict()) == list(model.state_dict())
    copied.load_state_dict(model.state_dict())
    assert copied.get_parameter("tied") is copied.get_parameter("gain")
    assert_same(copied, model, (x(),), tolerance=1e-6)


class ChangesItsInput(Net):
    def forward(self, x: Tensor) -> Tensor:
        x.add_(1)
        return self.l(x)


class ChangesItsParameters(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.l.weight.clamp_(-0.01, 0.01)
        return self.l(x)


class ChangesItsParameterData(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.l.weight.data.clamp_(-0.01, 0.01)
        return self.l(x)


class Renormalises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4, max_norm=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed((x > 0).long())


class ChangesAPlainTensor(Net):
    def __init__(self) -> None:
        super().__init__()
        self.plain = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        self.plain.add_(1)
        return self.l(x) * self.plain


@pytest.mark.parametrize(
    "kind", [ChangesItsInput, ChangesItsParameters, ChangesItsParameterData, Renormalises, ChangesAPlainTensor]
)
def test_capture_changes_neither_inputs_nor_tensors_of_the_model(kind: type[nn.Module]) -> None:
    model, y = kind(), x()
    values, before = {n: t.clone() for n, t in model.state_dict().items()}, y.clone()
    try:
        gm: Any = fxprune.capture(model, y)
    except fxprune.CaptureError:
        gm = None
    assert torch.equal(y, before)
    assert all(torch.equal(t, values[n]) for n, t in model.state_dict().items())
    if isinstance(model, ChangesAPlainTensor):
        assert torch.equal(model.plain, torch.ones(4))
    elif gm is not None:
        assert relative_error(copy.deepcopy(gm)(y.clone()), copy.deepcopy(model)(y.clone())) <= 1e-6


def test_scripted_modules_are_refused_by_export() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(4, 4))
    with pytest.raises(fxprune.CaptureError, match="export: CaptureError: the module is TorchScript"):
        fxprune.capture(nn.Sequential(nn.Linear(4, 4), scripted), x(), frontend="export")


def test_captures_in_several_threads() -> None:
    models = [ConvNet().eval() for _ in range(3)]
    captured: dict[int, Any] = {}

    def work(index: int) -> None:
        try:
            captured[index] = fxprune.capture(models[index], torch.randn(2, 3, 6, 6))
        except BaseException as error:
            captured[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, model in enumerate(models):
        assert isinstance(captured[index], nn.Module), captured[index]
        assert_same(captured[index], model, (torch.randn(2, 3, 6, 6),), tolerance=1e-5)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_an_example_of_one_sample(frontend: Any) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x.unsqueeze(1))[0]

    model = Recurrent()
    gm = fxprune.capture(model, x(1), frontend=frontend)
    for batch in (1, 3):
        assert relative_error(gm(y := x(batch)), model(y)) <= 1e-6


def test_a_model_that_runs_in_one_mode_only() -> None:
    class NeedsTargets(Net):
        def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
            if self.training:
                assert targets is not None
                return F.mse_loss(self.l(x), targets)
            return self.l(x)

    model = NeedsTargets().eval()
    with pytest.warns(fxprune.CaptureWarning, match="in train mode the model could not be captured"):
        gm = fxprune.capture(model, x())
    assert relative_error(gm(y := x()), model(y)) == 0


@dataclasses.dataclass
class Inputs:
    a: Tensor
    b: Tensor
    scale: float = 2.0


def test_dataclass_inputs() -> None:
    class Takes(Net):
        def forward(self, inputs: Inputs) -> Tensor:
            return self.l(inputs.a) + inputs.b * inputs.scale

    model = Takes()
    gm = fxprune.capture(model, Inputs(x(), x()))
    y = Inputs(x(5), x(5))
    assert relative_error(gm(y), model(y)) == 0


def test_capture_under_no_grad_and_inference_mode() -> None:
    class Constant(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.l(x) + torch.tensor([1.0, 2.0, 3.0, 4.0])

    model = Constant()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            gm = fxprune.capture(model, x())
        gm(x()).sum().backward()
        assert not any(t.is_inference() for t in gm.buffers())


def test_models_pruned_by_torch_are_masked_in_the_graph_and_stay_pruned() -> None:
    from torch.nn.utils import prune

    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    prune.l1_unstructured(model[0], "weight", 0.3)
    prune.random_unstructured(model[0], "weight", 0.2)
    prune.ln_structured(model[2], "weight", 0.5, n=2, dim=0)
    prune.identity(model[2], "bias")
    model(x())
    before = {name: dict(vars(m)) for name, m in model.named_modules()}
    gm = fxprune.capture(model, x())
    assert {n: dict(vars(m)) for n, m in model.named_modules()}.keys() == before.keys()
    assert prune.is_pruned(model)
    assert set(gm.state_dict()) == set(model.state_dict())
    for name, mask in model.named_buffers():
        assert torch.equal(gm.get_buffer(name).float(), mask)
    y = x()
    assert relative_error(gm(y), model(y)) <= 1e-6
    rows = {row.name: row.method for row in fxprune.summary(gm).rows}
    assert rows["0.weight"] == "L1Unstructured, RandomUnstructured"
    assert rows["2.weight"] == "LnStructured"
    fxprune.remove(gm, "0.weight")
    fxprune.l1_unstructured(gm, "2.weight", 0.5)
    assert fxprune.is_pruned(gm)


def test_a_pruned_lstm_is_left_as_it_was() -> None:
    from torch.nn.utils import prune

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    model = Recurrent()
    prune.l1_unstructured(model.lstm, "weight_ih_l0", 0.5)
    y = torch.randn(3, 2, 4)
    expected = model(y)
    flat = list(model.lstm._flat_weights)
    gm = fxprune.capture(model, y)
    assert all(a is b for a, b in zip(model.lstm._flat_weights, flat, strict=True))
    assert relative_error(gm(y), expected) <= 1e-6


def test_a_train_method_that_keeps_a_part_in_eval_mode_is_warned_of() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self.norm.eval()
            return self

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)

    for training in (True, False):
        with pytest.warns(fxprune.CaptureWarning, match=r"Frozen\.train\(\) .* changes not the mode of 'norm'"):
            fxprune.capture(Frozen().train(training), x())


class AverageInTrainMode(Net):
    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.l(x)
        if self.training:
            with torch.no_grad():
                self.average.mul_(0.9).add_(y.mean(0), alpha=0.1)
        return y


@pytest.mark.parametrize("frontend", ["auto", "export"])
@pytest.mark.parametrize("training", [True, False])
def test_a_buffer_updated_without_gradients_in_train_mode(frontend: Any, training: bool) -> None:
    model = AverageInTrainMode().train(training)
    gm = fxprune.capture(model, x(), frontend=frontend)
    assert_same(gm, model, (x(5),), tolerance=1e-6)
    assert fxprune.to_torchscript(gm, x(), method="script") is not None


@pytest.mark.parametrize("training", [True, False])
def test_transformer_encoder_with_a_causal_mask(training: bool) -> None:
    class Language(nn.Module):
        mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x, mask=self.mask)

    model = Language().train(training)
    gm = fxprune.capture(model, torch.randn(2, 4, 8))
    assert_same(gm, model, (torch.randn(3, 4, 8),), tolerance=1e-5)


def test_baking_leaves_another_parameter_of_the_same_memory_alone() -> None:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.out.weight = nn.Parameter(self.embed.weight)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.embed(tokens))

    gm = fxprune.capture(Shares(), tokens := torch.randint(0, 7, (5,)))
    fxprune.l1_unstructured(gm, "out.weight", 0.5)
    masked = gm(tokens)
    fxprune.finalize(gm)
    assert relative_error(gm(tokens), masked) == 0


def test_parameters_that_cannot_be_written_in_place_are_baked() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(torch.randn(1, 3).expand(3, 3))
    gm = fxprune.capture(model, y := torch.randn(4, 3))
    fxprune.mask(gm, {"0.weight": torch.eye(3), "1.weight": torch.eye(3)})
    masked = gm(y)
    fxprune.finalize(gm)
    assert relative_error(gm(y), masked) == 0


def test_different_masks_for_one_tied_parameter_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    gm = fxprune.capture(model, torch.randn(4, 3))
    code = gm.code
    with pytest.raises(fxprune.PruningError, match=r"'1\.weight' and '0\.weight' are one tied parameter"):
        fxprune.mask(gm, {"0.weight": torch.ones(3, 3), "1.weight": torch.zeros(3, 3)})
    assert gm.code == code
    assert not fxprune.is_pruned(gm)


def test_pruning_under_inference_mode_leaves_a_graph_that_trains() -> None:
    gm = fxprune.capture(nn.Sequential(nn.Linear(3, 3)), y := torch.randn(4, 3))
    with torch.inference_mode():
        fxprune.l1_unstructured(gm, "0.weight", 0.5)
    gm(y).sum().backward()
    with torch.inference_mode():
        fxprune.finalize(gm)
    gm(y).sum().backward()


def test_statistics_that_the_graph_does_not_synchronise_are_warned_of() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4)).eval()
    with pytest.warns(
        fxprune.CaptureWarning, match="1: in train mode the graph computes batch statistics in each process alone"
    ):
        gm = fxprune.capture(model, y := torch.randn(2, 3, 5, 5))
    fxprune.l1_unstructured(gm, "1.weight", 0.5)
    masked = gm(y)
    fxprune.finalize(gm)
    assert relative_error(gm(y), masked) == 0


def test_a_single_sample_that_the_model_cannot_train_on() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    for frontend in FRONTENDS:
        gm = fxprune.capture(model, x(1), frontend=frontend)  # type: ignore[arg-type]
        assert_same(gm, model, (x(3),), tolerance=1e-5)


@functools.wraps(torch.relu)
def doubled_relu(t: Tensor) -> Tensor:
    return torch.relu(t) * 2


fx.wrap("doubled_relu")


def test_a_function_that_goes_by_the_name_of_one_of_torchs() -> None:
    class Model(Net):
        def forward(self, t: Tensor) -> Tensor:
            return self.m(doubled_relu(self.l(t)))

    model = Model()
    with pytest.raises(fxprune.CaptureError, match=r"function at .*test_attempt.py:\d+ goes by the name of torch's relu"):
        fxprune.capture(model, x(), frontend="trace")
    gm = fxprune.capture(model, x())  # torch.export looks into it
    inputs = x(5)
    assert torch.equal(gm(inputs), model(inputs))
    assert fx.symbolic_trace(Net().l) is not None  # no name is left behind that the next trace would look for
