"""Wrappers that compile a module or run it in parallel, and code in place of a module's forward."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import fxprune

FRONTENDS = ["trace", "export"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b, self.width = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 8), 8

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.n(self.a(x))))


class Net(nn.Module):
    def __init__(self, change: Callable[[nn.Module], nn.Module] = lambda module: module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.block, self.last = nn.Linear(4, 8), change(Block()), nn.Linear(8, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.block(torch.relu(self.first(x)))))


class Quiet(nn.DataParallel[nn.Module]):
    """Changes nothing about the call."""


class Doubled(nn.DataParallel[nn.Module]):
    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        return 2 * self.module(*inputs, **kwargs)


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


def compiled_in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


def on_devices(module: nn.Module) -> nn.Module:
    """As on a machine with two accelerators, where the call scatters its inputs."""
    wrapper = nn.DataParallel(module)
    wrapper.device_ids = [0, 1]
    return wrapper


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def result_of(module: nn.Module, x: Tensor) -> Any:
    """Return what a module computes, and leave its buffers as they are."""
    state = copy.deepcopy(module.state_dict())
    with torch.compiler.set_stance("force_eager"):
        result = module(x)
    module.load_state_dict(state)
    return result


def check(model: nn.Module, reference: nn.Module, frontend: Any) -> torch.fx.GraphModule:
    """Capture and prune a wrapped model; its graph computes what ``reference`` does."""
    x, kinds, modes = torch.randn(3, 4).double(), [type(m) for m in model.modules()], [m.training for m in model.modules()]
    gm = fxprune.capture(model, x, frontend=frontend)
    assert [type(m) for m in model.modules()] == kinds
    assert [m.training for m in model.modules()] == modes
    for training in (True, False):
        expected, found = (result_of(module.train(training), x) for module in (reference, gm))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    if frontend == "trace":
        small = fxprune.prune(model, x, 0.5)
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in gm.parameters()) * 0.7
    return gm


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("wrap", [compiled, on_devices, Quiet, compiled_in_place])
def test_wrappers_around_a_model_and_inside(wrap: Any, frontend: Any) -> None:
    reference = Net().eval()
    gm = check(wrap(Net()).eval(), reference, frontend)
    assert list(gm.state_dict()) == list(reference.state_dict())
    model = Net(wrap).eval()
    gm = check(model, reference, frontend)
    assert list(gm.state_dict()) == list(model.state_dict())
    gm.load_state_dict(model.state_dict())


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("wrap", [lambda m: compiled(nn.DataParallel(m)), lambda m: nn.DataParallel(compiled(m))])
def test_wrappers_in_wrappers(wrap: Any, frontend: Any) -> None:
    model = Net(wrap).eval()
    gm = check(model, Net().eval(), frontend)
    assert list(gm.state_dict()) == list(model.state_dict())
    assert list(check(wrap(Net()).eval(), Net().eval(), frontend).state_dict()) == list(Net().state_dict())


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_distributed_data_parallel(frontend: Any, processes: None) -> None:
    reference = Net().eval()
    gm = check(nn.parallel.DistributedDataParallel(Net()).eval(), reference, frontend)
    assert list(gm.state_dict()) == list(reference.state_dict())
    check(Net(nn.parallel.DistributedDataParallel).eval(), reference, frontend)


def test_a_wrapper_in_two_places_stays_one_module() -> None:
    wrapper = compiled(Block())
    model = nn.Sequential(nn.Linear(4, 8), wrapper, wrapper, nn.Linear(8, 2)).eval().double()
    assert model[1] is model[2]
    gm = fxprune.capture(model, torch.randn(3, 4).double())
    assert model[1] is model[2] is wrapper
    assert list(gm.state_dict()) == list(model.state_dict())


def test_code_reads_attributes_of_the_module_inside_a_compiled_one() -> None:
    class Reads(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * int(self.block.width)  # type: ignore[arg-type]

    check(Reads(compiled).eval(), Reads().eval(), "trace")


def test_a_wrapper_with_code_of_its_own_is_no_wrapper() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(2 * self.block(torch.relu(self.first(x)))))

    check(Net(Doubled).eval(), Twice().eval(), "trace")


def test_hooks_on_wrappers_take_part_in_the_result() -> None:
    def double(module: nn.Module, args: Any, result: Any) -> Any:
        return 2 * result

    model = Net(nn.DataParallel).eval()
    model.block.register_forward_hook(double)
    with pytest.raises(fxprune.HookError, match=r"block \(.*double.*del model.get_submodule\('block'\)._forward_hooks"):
        fxprune.capture(model, torch.randn(3, 4).double())
    whole = nn.DataParallel(Net()).eval()
    whole.register_forward_hook(double)
    with pytest.raises(fxprune.HookError, match=r"double.*del model._forward_hooks"):
        fxprune.capture(whole, torch.randn(3, 4).double())


def test_a_failed_capture_leaves_wrappers_in_place() -> None:
    model = Net(compiled).eval()
    block = model.block
    with pytest.raises(fxprune.InputError):
        fxprune.capture(model, torch.randn(3, 5).double())
    assert model.block is block
    assert block.training is False


def replaced_by(forward: Callable[[nn.Module], Any]) -> Callable[[nn.Module], nn.Module]:
    def change(module: nn.Module) -> nn.Module:
        vars(module)["forward"] = forward(module)
        return module

    return change


REPLACED = [
    lambda module: torch.compile(module.forward, backend="eager"),
    lambda module: types.MethodType(lambda self, x: 2 * type(self).forward(self, x), module),
    lambda module: functools.update_wrapper(functools.partial(type(module).forward, module), module.forward),
]


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("forward", REPLACED)
def test_a_forward_on_the_instance_is_the_code(forward: Any, frontend: Any) -> None:
    change = replaced_by(forward)
    check(change(Net()).eval(), change(Net()).eval(), frontend)
    check(Net(change).eval(), Net(change).eval(), frontend)

    def layer_changed(block: nn.Module) -> nn.Module:
        change(block.a)  # type: ignore[arg-type]
        return block

    check(Net(layer_changed).eval(), Net(layer_changed).eval(), frontend)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_compiled_functions_and_methods(frontend: Any) -> None:
    activate = torch.compile(lambda x: torch.relu(x) * 2, backend="eager")

    class Calls(Net):
        @torch.compile(backend="eager")
        def forward(self, x: Tensor) -> Tensor:
            return self.last(activate(self.block(torch.relu(self.first(x)))))

    class Plain(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.block(torch.relu(self.first(x)))) * 2)

    check(Calls().eval(), Plain().eval(), frontend)
