"""TorchScript inside a model: a layer that stays whole."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune

pytestmark = pytest.mark.filterwarnings("ignore:amount=0.5 leaves:fxprune.PruneWarning")  # most of these models stays whole


class Block(nn.Module):
    """Differs by mode, and assigns another tensor to a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Linear(12, 8)
        self.calls = nn.Buffer(torch.zeros((), dtype=torch.double))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls = self.calls.add(1)  # type: ignore[assignment]
        return self.b(torch.relu(self.n(self.a(x)))).add(self.calls)


def loaded(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    return torch.jit.load(file)


def traced(module: nn.Module) -> Any:
    return torch.jit.trace(module.eval(), torch.randn(3, 8).double())


def inside(module: nn.Module) -> Any:
    return nn.Sequential(torch.jit.script(module))


SCRIPTS: list[Callable[[nn.Module], Any]] = [torch.jit.script, loaded, traced, inside]


class Net(nn.Module):
    def __init__(self, change: Callable[[nn.Module], Any] = lambda module: module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.script, self.c, self.d = (
            nn.Linear(4, 16), nn.Linear(16, 8), change(Block().double()), nn.Linear(8, 16), nn.Linear(16, 2),
        )  # fmt: skip
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.script(torch.relu(self.b(torch.relu(self.a(x)))))
        return self.d(torch.relu(self.c(torch.relu(self.script(h)))))


def same(gm: nn.Module, reference: nn.Module, modes: tuple[bool, ...] = (False, True)) -> None:
    x = torch.randn(5, 4).double()
    gm.load_state_dict(reference.state_dict())
    for training in modes:
        expected, found = reference.train(training)(x), gm.train(training)(x)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for name, tensor in gm.state_dict().items():
        torch.testing.assert_close(tensor, reference.state_dict()[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("change", SCRIPTS)
def test_a_script_is_a_layer_of_the_graph(change: Any) -> None:
    model, x = Net(change).eval(), torch.randn(3, 4).double()
    script = model.script
    before = copy.deepcopy(model.state_dict())
    gm = fxprune.capture(model, x)
    assert model.script is script
    assert list(gm.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert gm.state_dict()[name].data_ptr() == tensor.data_ptr()
    reference = Net(nn.Sequential if change is inside else lambda module: module)
    modes = (False,) if change is traced else (False, True)
    same(gm, copy.deepcopy(reference), modes)
    same(copy.deepcopy(gm), copy.deepcopy(reference), modes)
    same(pickle.loads(pickle.dumps(gm)), copy.deepcopy(reference), modes)


@pytest.mark.parametrize("change", SCRIPTS)
def test_the_rest_is_pruned(change: Any) -> None:
    model, x = Net(change).eval(), torch.randn(3, 4).double()
    gm = fxprune.capture(model, x)
    name = next(name for name in gm.state_dict() if name.startswith("script") and name.endswith("a.weight"))
    said = str(fxprune.analyze(gm).explain(name, dim=0))
    assert "is TorchScript, into which nothing looks" in said
    small, plan = copy.deepcopy(gm), fxprune.plan(fxprune.analyze(gm), 0.5)
    fxprune.mask(gm, plan)
    fxprune.mask(small, plan)
    fxprune.shrink(small)
    sizes = {name: tuple(p.shape) for name, p in small.named_parameters()}
    assert sizes["a.weight"] == (8, 4)
    assert sizes["d.weight"] == (2, 8)
    assert all("script" not in name or sizes[name] == tuple(p.shape) for name, p in gm.named_parameters())
    for training in (False, True, False):
        torch.testing.assert_close(small.train(training)(x), gm.train(training)(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fxprune.to_torchscript(small, x)(x), small(x), rtol=1e-9, atol=1e-9)


def test_gradients_reach_the_parameters_of_a_script() -> None:
    model, x = Net(torch.jit.script).eval(), torch.randn(3, 4).double()
    gm = fxprune.capture(model, x)
    gm(x).sum().backward()
    parameter = model.script.a.weight
    assert parameter.grad is not None
    assert gm.get_parameter("script.a.weight") is parameter


def test_a_script_in_a_wrapper() -> None:
    model = Net(lambda module: nn.DataParallel(torch.jit.script(module))).eval()
    same(fxprune.capture(model, torch.randn(3, 4).double()), Net(nn.DataParallel).eval())


def test_a_script_whose_result_depends_on_a_size_alone() -> None:
    class Sizes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x.size(1) if x.size(0) > 0 else x

    model = nn.Sequential(nn.Linear(4, 16), torch.jit.script(Sizes()), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    x = torch.randn(3, 4).double()
    small = fxprune.prune(model.eval(), x, 0.5)
    assert [tuple(small.get_parameter(f"{n}.weight").shape) for n in (0, 2, 4)] == [(16, 4), (8, 16), (2, 8)]


def test_a_model_that_is_all_script_is_refused() -> None:
    script = torch.jit.script(Net())
    for model in (script, nn.DataParallel(script)):
        with pytest.raises(fxprune.CaptureError, match=r"the model is TorchScript.*capture the module that it was made from"):
            fxprune.capture(model, torch.randn(3, 4).double())


def test_torch_export_does_not_take_scripts() -> None:
    with pytest.raises(fxprune.CaptureError, match="TorchScript, into which nothing looks"):
        fxprune.capture(Net(torch.jit.script).eval(), torch.randn(3, 4).double(), frontend="export")
