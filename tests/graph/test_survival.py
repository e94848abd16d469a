"""What a masked graph has to live through: copies, pickles, averaging, compilers, other processes."""

from __future__ import annotations

import copy
import datetime
import functools
import io
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune as torch_prune
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import fxprune
from fxprune.testing import check_graph
from tests.compare import assert_same, relative_error, run, tensors_of
from tests.nets import ConvNet, SequenceNet, randomised

FRONTENDS = ("trace", "export")


def conv_inputs(batch: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 3, 6, 6, dtype=torch.double),)


def sequence_inputs(batch: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 11, (batch, 5)),)


NETS: list[tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = [
    (ConvNet, conv_inputs),
    (SequenceNet, sequence_inputs),
]


@functools.cache
def _captured(net: Callable[[], nn.Module], inputs: Callable[[int], tuple[Tensor, ...]], frontend: Any) -> fx.GraphModule:
    torch.manual_seed(0)
    return fxprune.capture(randomised(net()).double(), inputs(2), frontend=frontend)


def masked_graph(net: Callable[[], nn.Module], inputs: Callable[[int], tuple[Tensor, ...]], frontend: Any) -> fx.GraphModule:
    gm = copy.deepcopy(_captured(net, inputs, frontend))
    torch.manual_seed(0)
    names = [name for name, p in gm.named_parameters() if p.dim() > 1]
    fxprune.global_unstructured(gm, names, fxprune.L1Unstructured, amount=0.5)
    fxprune.l1_unstructured(gm, names[0], 0.1)
    return gm


def gradients(model: Any, args: tuple[Tensor, ...]) -> dict[str, Tensor]:
    model.zero_grad()
    sum(t.square().mean() for t in tensors_of(run(model, args))).backward()  # type: ignore[union-attr]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_survived(survivor: nn.Module, original: nn.Module, args: tuple[Tensor, ...]) -> None:
    assert_same(survivor, original, args)
    ours, theirs = gradients(survivor, args), gradients(original, args)
    assert ours.keys() == theirs.keys()
    assert theirs
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12)


def by_pickle(gm: fx.GraphModule) -> Any:
    return pickle.loads(pickle.dumps(gm))


def by_torch_save(gm: fx.GraphModule) -> Any:
    file = io.BytesIO()
    torch.save(gm, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(("net", "inputs"), NETS)
@pytest.mark.parametrize("copier", [copy.deepcopy, by_pickle, by_torch_save])
def test_copies_are_equal_and_independent_and_can_be_finalized(net: Any, inputs: Any, copier: Any, frontend: Any) -> None:
    gm = masked_graph(net, inputs, frontend)
    copied = copier(gm)
    assert copied.code == gm.code
    check_graph(copied)
    assert_survived(copied, gm, inputs(3))
    assert not {id(t) for t in copied.parameters()} & {id(t) for t in gm.parameters()}
    assert str(fxprune.summary(copied)) == str(fxprune.summary(gm))
    fxprune.finalize(gm)
    fxprune.finalize(copied)
    assert copied.code == gm.code
    assert_same(copied, gm, inputs(3))


def test_tied_parameters_stay_tied_in_copies() -> None:
    for copier in (copy.deepcopy, by_pickle):
        copied = copier(masked_graph(SequenceNet, sequence_inputs, "trace"))
        assert copied.get_parameter("out.weight_orig") is copied.get_parameter("embed.weight_orig")
        assert copied.get_buffer("out.weight_mask") is copied.get_buffer("embed.weight_mask")


def test_torchs_own_hook_fails_what_the_graph_survives() -> None:
    """The reason for this test file: see pytorch/pytorch#37322."""
    layer = torch_prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(layer)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_model(use_buffers: bool) -> None:
    gm = masked_graph(ConvNet, conv_inputs, "trace").eval()
    averaged = AveragedModel(gm, use_buffers=use_buffers)
    averaged.update_parameters(gm)
    x = conv_inputs(3)
    assert relative_error(averaged(*x), gm(*x)) <= 1e-9
    with torch.no_grad():
        for parameter in gm.parameters():
            parameter.mul_(3)
    expected = {name: (p / 3 + p) / 2 for name, p in gm.named_parameters()}
    averaged.update_parameters(gm)
    for name, parameter in averaged.module.named_parameters():
        torch.testing.assert_close(parameter, expected[name])
    assert isinstance(averaged.module, fx.GraphModule)
    assert fxprune.is_pruned(averaged.module)
    for name, buffer in gm.named_buffers():
        if name.endswith("_mask"):
            assert torch.equal(averaged.module.get_buffer(name), buffer)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(("net", "inputs"), NETS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled_without_a_graph_break(net: Any, inputs: Any, frontend: Any, training: bool) -> None:
    torch._dynamo.reset()
    gm = masked_graph(net, inputs, frontend).train(training)
    reference = copy.deepcopy(gm)
    # Compilers that take dropout apart draw other random numbers for it; "eager" leaves it whole.
    compiled = torch.compile(gm, fullgraph=True, backend="eager" if training else "aot_eager")
    x = inputs(3)
    assert relative_error(run(compiled, x), run(reference, x)) <= 1e-9
    ours, theirs = gradients(compiled, x), gradients(reference, x)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours["_orig_mod." + name], gradient, rtol=1e-9, atol=1e-12)


X = torch.randn(4, 3, 6, 6, dtype=torch.double, generator=torch.Generator().manual_seed(7))


def _train_in_parallel(rank: int, port: int, file: Path) -> None:
    """Take one step on two of the four samples; save the output and the gradients."""
    timeout = datetime.timedelta(seconds=120)  # for the other process to come
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timeout)
    gm = masked_graph(ConvNet, conv_inputs, "trace").eval()
    parallel = DistributedDataParallel(gm)
    output = parallel(X[rank * 2 : rank * 2 + 2])
    output.square().mean().backward()
    torch.save((output.detach(), {n: p.grad for n, p in gm.named_parameters()}), file)
    dist.barrier()
    os._exit(0)  # the group's destructor may wait for a thread that waits for the interpreter


def test_distributed_data_parallel_with_two_processes(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawned = torch.multiprocessing.get_context("spawn")
    processes = [spawned.Process(target=_train_in_parallel, args=(rank, port, tmp_path / f"{rank}")) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    outputs, grads = zip(*(torch.load(tmp_path / f"{rank}") for rank in range(2)), strict=True)
    gm = masked_graph(ConvNet, conv_inputs, "trace").eval()
    expected = gm(X)
    assert relative_error(torch.cat(outputs), expected) <= 1e-9
    expected.square().mean().backward()
    for name, parameter in gm.named_parameters():
        for gradient in grads:
            torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-9, atol=1e-12)


class Normed(nn.Module):
    """A hidden width that layer norm and softmax mix: a plan's masks come with corrections."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 12), nn.LayerNorm(12), nn.Linear(12, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.norm(self.first(x)).relu()).softmax(-1))


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(
    "average",
    [
        {},
        {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
        {"multi_avg_fn": get_ema_multi_avg_fn(0.333)},
        {"avg_fn": get_ema_avg_fn(0.99)},
        {"avg_fn": lambda averaged, new, _: (averaged + new) / 2},
    ],
    ids=["swa", "ema", "quick ema", "ema by tensor", "half"],
)
def test_flags_of_a_plan_are_not_blended_by_an_average_of_buffers(average: dict[str, Any], frontend: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.double)
    gm = fxprune.capture(randomised(Normed()).double(), x, frontend=frontend)

    def planned(seed: int) -> fxprune.Plan:
        generator = torch.Generator().manual_seed(seed)
        by_chance = lambda deps, group: torch.rand(group.size, generator=generator)  # noqa: E731
        return fxprune.plan(fxprune.analyze(gm), 0.25, importance=by_chance)

    fxprune.mask(gm, planned(0))
    averaged = AveragedModel(gm, use_buffers=True, **average)
    removed = [flags(gm)]
    for seed in (0, 1, 1, 2):
        averaged.update_parameters(gm)
        fxprune.mask(gm, planned(seed))
        removed.append(flags(gm))
        with torch.no_grad():
            for parameter in gm.parameters():
                parameter.mul_(1.1)
    averaged.update_parameters(gm)
    mean = averaged.module
    assert isinstance(mean, fx.GraphModule)
    ever = {name: functools.reduce(torch.minimum, [each[name] for each in removed]) for name in removed[0]}
    assert any(not torch.equal(flags(gm)[name], one) for name, one in ever.items())
    for name, one in flags(mean).items():
        assert torch.equal(one, ever[name]), name  # a unit that an earlier plan removed stays away
    expected = mean.eval()(x)
    slim = fxprune.shrink(copy.deepcopy(mean))
    assert relative_error(slim(x), expected) <= 1e-9
    assert slim.get_parameter("first.weight").shape[0] < 9


def flags(gm: nn.Module) -> dict[str, Tensor]:
    """Return the flags of a graph's masks and corrections."""
    return {name: b.clone() for name, b in gm.named_buffers() if "_mask" in name or "keep" in name}


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_moving_to_another_dtype_and_loading_a_state_dict(frontend: Any) -> None:
    gm = masked_graph(ConvNet, conv_inputs, frontend)
    state = {k: v.clone() for k, v in gm.state_dict().items()}
    single = copy.deepcopy(gm).float()
    assert single(conv_inputs(3)[0].float()).dtype is torch.float32
    assert all(b.dtype is torch.int8 for n, b in single.named_buffers() if n.endswith("_mask"))
    other = masked_graph(ConvNet, conv_inputs, frontend)
    with torch.no_grad():
        for tensor in [*other.parameters(), *other.buffers()]:
            tensor.zero_()
    other.load_state_dict(state)
    assert_same(other, gm, conv_inputs(3))
