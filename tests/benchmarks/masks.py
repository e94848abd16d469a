"""Masks: how long it takes to choose them, what they cost in a training step, and how much memory they take."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

import fxprune
from tests.benchmarks.analysis import Block
from tests.benchmarks.memory import peak_from_here, status
from tests.zoo import shim
from tests.zoo.apart import NoAnswerError, call_apart

_PARTS = 10
_LIMIT_GIB = 22  # of the address space: more would end the process instead of failing
_SECONDS = 600.0
_AMOUNT = 0.5

# -- global selection ------------------------------------------------------------------------------------------------------


class Weights(nn.Module):
    """Parameters of normal values, as many elements as asked for, in equal parts."""

    def __init__(self, elements: int, dtype: torch.dtype) -> None:
        super().__init__()
        rows = math.isqrt(elements // _PARTS)
        shape = (rows, elements // _PARTS // rows)
        self.parts = nn.ParameterList(nn.Parameter(torch.empty(shape, dtype=dtype).normal_()) for _ in range(_PARTS))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = x + part[0, 0]
        return x


def _selected_by_fxprune(model: Weights) -> int:
    gm = fxprune.capture(model, torch.ones(2))
    names = [name for name, _ in gm.named_parameters()]
    fxprune.global_unstructured(gm, names, fxprune.L1Unstructured, amount=_AMOUNT)
    return sum(buffer.nbytes for buffer in gm.buffers())


def _selected_by_torch(model: Weights) -> int:
    parameters = [(model.parts, str(i)) for i in range(_PARTS)]
    torch_prune.global_unstructured(parameters, torch_prune.L1Unstructured, amount=_AMOUNT)
    return sum(buffer.nbytes for buffer in model.buffers())


def _select(what: str) -> dict[str, float]:
    side, elements, dtype = what.split()
    resource.setrlimit(resource.RLIMIT_AS, (_LIMIT_GIB << 30, _LIMIT_GIB << 30))
    torch.set_num_threads(1)
    model = Weights(int(elements), getattr(torch, dtype))
    work = {"fxprune": _selected_by_fxprune, "torch": _selected_by_torch}[side]
    work(Weights(1000, torch.float32))  # imports and the like
    size = sum(p.nbytes for p in model.parameters())
    before, start = peak_from_here(), time.perf_counter()
    masks = work(model)
    seconds = time.perf_counter() - start
    return {"s": seconds, "extra": (status("VmHWM") - before - masks) / size, "masks": masks / size}


def selection(
    sizes: Mapping[str, tuple[int, ...]] = {"float32": (10**7, 10**8, 10**9), "bfloat16": (10**8, 10**9, 2**31 + 2**22)},
    most_for_torch: int = 10**8,
    rounds: int = 3,
) -> list[dict[str, Any]]:
    """Time the choice of half of all elements by magnitude, each run in a process of its own, in turn.

    The extra memory is the peak beyond the parameters and the masks, as a share of the parameters' bytes.
    """
    rows = []
    for dtype, elements in ((dtype, n) for dtype, all_n in sizes.items() for n in all_n):
        row: dict[str, Any] = {"dtype": dtype, "million elements": elements / 1e6}
        found: dict[str, list[dict[str, float]]] = {"fxprune": [], "torch": []}
        for _ in range(rounds if elements <= most_for_torch else 1):
            for side, results in found.items():
                with contextlib.suppress(NoAnswerError):
                    results.append(call_apart(_select, f"{side} {elements} {dtype}", _SECONDS))
        for side, results in found.items():
            for key, unit in (("s", ""), ("extra", " memory %"), ("masks", " %")):
                values = [result[key] for result in results]
                scale = 1 if key == "s" else 100
                row[f"{side} {key}{unit}"] = scale * statistics.median(values) if values else None
        if found["torch"] and found["fxprune"]:
            row["ratio"] = row["fxprune s"] / row["torch s"]
        rows.append(row)
    return rows


# -- a training step -------------------------------------------------------------------------------------------------------


class _Masked(nn.Module):
    """A parametrization that multiplies by a mask."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def _weights(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield module, name


def _variants(model: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    """Return a model dense, and masked in each way by the same masks."""
    masked = fxprune.capture(copy.deepcopy(model), x)
    structured = fxprune.capture(copy.deepcopy(model), x)
    hooks, parametrized = copy.deepcopy(model), copy.deepcopy(model)
    for module, name in _weights(model):
        fxprune.l1_unstructured(masked, f"{name}.weight", _AMOUNT)
        mask = masked.get_buffer(f"{name}.weight_mask").to(module.get_parameter("weight").dtype)
        torch_prune.custom_from_mask(hooks.get_submodule(name), "weight", mask)
        parametrize.register_parametrization(parametrized.get_submodule(name), "weight", _Masked(mask))
    fxprune.mask(structured, fxprune.plan(fxprune.analyze(structured), _AMOUNT))
    ways = ("dense", "masked graph", "torch hooks", "parametrize", "structured graph")
    return dict(zip(ways, (model, masked, hooks, parametrized, structured), strict=True))


def _stepper(model: nn.Module, x: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return step


def _resnet18(size: int = 224) -> tuple[nn.Module, Tensor]:
    shim.install()
    from torchvision import models

    return models.resnet18(), torch.randn(8, 3, size, size)


def _transformer(layers: int = 6, width: int = 512, length: int = 128) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(*(Block(width, 8) for _ in range(layers))), torch.randn(8, length, width)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"resnet18": _resnet18, "transformer of 6 layers": _transformer}


def training_step(
    models: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]] = MODELS, rounds: int = 15
) -> list[dict[str, Any]]:
    """Time a training step of batch 8, all ways of masking in turn; the ratios are medians over the rounds."""
    rows = []
    for name, build in models.items():
        torch.manual_seed(0)
        model, x = build()
        steps = {way: _stepper(variant.train(), x) for way, variant in _variants(model, x).items()}
        times: dict[str, list[float]] = {way: [] for way in steps}
        order = random.Random(0)
        for step in steps.values():
            step()
        for _ in range(rounds):
            for way in order.sample(list(steps), len(steps)):
                start = time.perf_counter()
                steps[way]()
                times[way].append(time.perf_counter() - start)

        def ratio(one: str, other: str, times: dict[str, list[float]] = times) -> float:
            return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))

        rows.append(
            {
                "model": name,
                **{f"{way} ms": 1e3 * statistics.median(seconds) for way, seconds in times.items()},
                "masked / hooks": ratio("masked graph", "torch hooks"),
                "masked / parametrize": ratio("masked graph", "parametrize"),
                "masked / dense": ratio("masked graph", "dense"),
                "structured / dense": ratio("structured graph", "dense"),
            }
        )
    return rows


# -- memory ----------------------------------------------------------------------------------------------------------------


def mask_memory(name: str = "resnet50", size: int = 64) -> list[dict[str, Any]]:
    """Compare the bytes of structured masks of half the channels with those of ``ln_structured`` on every convolution."""
    shim.install()
    from torchvision import models

    model = getattr(models, name)()
    gm = fxprune.capture(model, torch.randn(2, 3, size, size))
    before = sum(buffer.nbytes for buffer in gm.buffers())
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), _AMOUNT))
    ours = sum(buffer.nbytes for buffer in gm.buffers()) - before
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            torch_prune.ln_structured(module, "weight", _AMOUNT, 2, 0)
    theirs = sum(buffer.nbytes for buffer in model.buffers()) - before
    return [{"model": name, "fxprune kB": ours / 1e3, "ln_structured kB": theirs / 1e3, "ratio": ours / theirs}]


tiny_selection = functools.partial(selection, {"bfloat16": (10**5,)}, rounds=1)
