"""Threads at work on different models: each finds what it finds alone, and no setting of the process is left changed."""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import gc
import logging
import math
import operator
import random
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch._dynamo  # an export imports them, which sets attributes of torch
import torch._inductor
import torch.onnx
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import transformer

import fxprune
from fxprune.importance import Activation


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.one(x)))
        return self.head(self.drop(F.gelu(self.two(y))).mean((2, 3)))


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, 0.2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(tokens))).softmax(-1)


class ReadsItsMode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.third = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.one(x))
        if self.training:
            y = y * 2 + 0.5
        y = torch.sigmoid(self.two(y))
        return self.third(F.dropout(y, 0.2, self.training))


class Job(NamedTuple):
    """A model to capture by a front end, in eval mode or as it trains."""

    model: nn.Module
    x: Tensor
    frontend: Any


def jobs() -> list[Job]:
    """Return the jobs, with equal weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.randn(2, 3, 8, 8)
        return [
            Job(Convolutions().train(), image, "trace"),
            Job(Attends().eval(), torch.randint(20, (2, 5)), "export"),
            Job(Convolutions().eval(), image, "export"),
            Job(ReadsItsMode().train(), torch.randn(3, 5), "trace"),
        ]


def work(job: Job) -> tuple[dict[str, str], nn.Module, nn.Module]:
    """Prune a model, step by step; return what each step says, the masked graph and the smaller one."""
    model, x, frontend = job
    gm = fxprune.capture(model, x, frontend=frontend)
    texts = {"graph": gm.code, "values": str([node.meta.get("val") for node in gm.graph.nodes])}
    deps = fxprune.analyze(gm)
    texts["groups"], texts["points"] = str(deps), str([(p.node, p.kind, p.dim) for p in deps.mixing_points])
    plan = fxprune.plan(deps, 0.5)
    texts["plan"] = plan.to_json()
    texts["by activation"] = fxprune.plan(deps, 0.5, importance=Activation([x])).to_json()
    fxprune.mask(gm, plan)
    texts["masked"] = gm.code
    masked = copy.deepcopy(gm)
    fxprune.shrink(gm, example_inputs=x)
    texts["smaller"], texts["shapes"] = gm.code, str({name: tuple(p.shape) for name, p in gm.named_parameters()})
    texts["error"] = str(fxprune.verify(masked, gm, x, gradients=True))
    texts["summary"] = str(fxprune.summary(model, gm, x, layers=True, latency=False, file=None))
    return texts, masked, gm


class Found(NamedTuple):
    """What a job comes to: texts, and outputs of the masked and the smaller graph."""

    texts: dict[str, str]
    outputs: list[Tensor]


def found(job: Job, texts: dict[str, str], *graphs: nn.Module) -> Found:
    with torch.no_grad():
        return Found(texts, [graph.eval()(job.x) for graph in graphs])


def settings() -> dict[str, Any]:
    """Return what belongs to the process, or to the thread that asks, and that someone switches on the way."""
    cuda = torch.backends.cuda
    read = {
        "fast path of attention": torch.backends.mha.get_fastpath_enabled(),
        "kernels of attention": (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()),
        "oneDNN": torch.backends.mkldnn.enabled,
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        "cuDNN": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "garbage collector": (gc.isenabled(), gc.get_threshold()),
        "default dtype": torch.get_default_dtype(),
        "threads of torch": torch.get_num_threads(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "modes of dispatch": torch._C._len_torch_dispatch_stack(),
        "compiling": (
            torch.compiler.is_compiling(),
            torch.compiler.is_exporting(),
            torch.fx._symbolic_trace.is_fx_symbolic_tracing(),
        ),
        "warnings": ([*warnings.filters], warnings.showwarning),
        "logging": logging.root.manager.disable,
        "levels": {name: logging.getLogger(name).level for name in ("", "torch", "torch._subclasses.fake_tensor", "torch.fx")},
        "random numbers": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
        "hooks of modules": nn.modules.module._has_any_global_hook(),
    }
    # Attributes that are replaced for a time: training on nn.Module, tolist and numpy of Tensor, functions that torch.fx wraps.
    replaced = {owner.__name__: dict(vars(owner)) for owner in (nn.Module, Tensor, F, transformer, math, operator, torch)}
    return read | {f"{owner}.{name}": id(value) for owner, names in replaced.items() for name, value in names.items()}


@pytest.fixture
def _often() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(of: Sequence[Job]) -> list[Found]:
    """Do each job in a thread of its own, all at a time."""
    start = threading.Barrier(len(of))

    def begin(job: Job) -> Any:
        start.wait()
        return work(job)

    with concurrent.futures.ThreadPoolExecutor(len(of)) as threads:
        made = list(threads.map(begin, of))
    return [found(job, *one) for job, one in zip(of, made, strict=True)]


@functools.cache
def alone() -> list[Found]:
    return [found(job, *work(job)) for job in jobs()]


# All at a time comes first, before anything is known of operators.
@pytest.mark.usefixtures("_often")
@pytest.mark.parametrize("places", [(0, 1, 2, 3), (1, 2)])
def test_threads_find_what_each_finds_alone(places: tuple[int, ...]) -> None:
    before = settings()
    results = together([jobs()[place] for place in places])
    after = settings()
    assert {name: value for name, value in after.items() if before.get(name) != value} == {}
    assert before.keys() == after.keys()
    for place, one in zip(places, results, strict=True):
        assert one.texts == alone()[place].texts
        assert len(one.outputs) == 2
        assert all(map(torch.equal, one.outputs, alone()[place].outputs))


class OneWay(ReadsItsMode):
    """Trains with a layer that it does not have otherwise, which no graph follows."""

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.two(self.one(x))) if self.training else self.third(self.one(x))


class Waits(nn.Module):
    """Says when it runs first, and stays there until something has happened, or for a while."""

    def __init__(self, until: threading.Event) -> None:
        super().__init__()
        self.l, self.runs, self.until = nn.Linear(5, 4), threading.Event(), until

    def forward(self, x: Tensor) -> Tensor:
        if not self.runs.is_set():
            self.runs.set()
            self.until.wait(0.5)
        return self.l(x)


def test_what_one_thread_warns_of_is_not_hidden_by_another_that_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    x, captured, warned = torch.randn(3, 5), threading.Event(), threading.Event()
    waits = Waits(warned)

    def compile_all(gm: nn.Module) -> None:
        captured.set()
        assert waits.runs.wait(10)

    def verify() -> float:
        assert captured.wait(10)
        return fxprune.verify(waits, waits, x)

    monkeypatch.setattr(sys.modules["fxprune.capture"], "compile_all", compile_all)  # the package has a function of its name
    with warnings.catch_warnings(record=True) as caught, concurrent.futures.ThreadPoolExecutor(1) as threads:
        warnings.simplefilter("always")
        other = threads.submit(verify)
        fxprune.capture(OneWay().train(), x, frontend="trace")
        warned.set()
        assert other.result() == 0
    (warning,) = caught
    assert "module 'two'" in str(warning.message)


@pytest.mark.usefixtures("_often")
def test_a_thread_that_runs_a_model_does_not_show_in_what_another_traces() -> None:
    model, x = Convolutions().eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
    done = threading.Event()

    def run_on_and_on() -> int:
        runs = 0
        with torch.no_grad():
            while not done.is_set() or not runs:
                assert torch.equal(model(x), expected)
                runs += 1
        return runs

    (job,) = jobs()[3:]
    code = fxprune.capture(*job[:2], frontend="trace").code
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        other = threads.submit(run_on_and_on)
        try:
            assert [fxprune.capture(*job[:2], frontend="trace").code for _ in range(10)] == [code] * 10
        finally:
            done.set()
        assert other.result() > 0
