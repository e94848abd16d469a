"""How fast a shrunk network is, next to one that was built narrow by hand."""

from __future__ import annotations

import copy
import functools
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

import fxprune
from tests.zoo import shim

_SECONDS = 0.5  # one measurement


def narrow_by_hand(model: nn.Module, slim: nn.Module) -> nn.Module:
    """Return a copy of a model whose own code runs layers of the sizes that a shrunk graph of it has, with its weights."""
    narrow = copy.deepcopy(model)
    for name, layer in list(narrow.named_modules()):
        if name and not list(layer.children()) and list(layer.parameters()):
            owner, _, attribute = name.rpartition(".")
            setattr(narrow.get_submodule(owner), attribute, copy.deepcopy(slim.get_submodule(name)))
    return narrow


def measured(models: Sequence[nn.Module], x: Tensor, rounds: int, seconds: float) -> list[float]:
    """Return the median seconds of a call of each model, measured in turn so that a slow spell meets all of them."""
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        timers = [Timer("model(x)", globals={"model": model, "x": x}, num_threads=1) for model in models]
        for timer in timers:
            timer.timeit(1)
        for number in range(rounds):
            pairs = list(zip(timers, times, strict=True))
            for timer, found in pairs if number % 2 == 0 else reversed(pairs):
                found.append(timer.blocked_autorange(min_run_time=seconds).median)
    return [statistics.median(found) for found in times]


def latency(
    name: str = "resnet50",
    size: int = 224,
    batches: Sequence[int] = (1, 16),
    rounds: int = 7,
    seconds: float = _SECONDS,
) -> list[dict[str, Any]]:
    """Time a torchvision model, its shrunk graph at half of the channels, and the class at the same widths, on one thread."""
    shim.install()
    from torchvision import models

    torch.manual_seed(0)
    model = getattr(models, name)().eval()
    slim = fxprune.prune(model, torch.randn(1, 3, size, size), 0.5)
    narrow = narrow_by_hand(model, slim).eval()
    rows = []
    for batch in batches:
        x = torch.randn(batch, 3, size, size)
        with torch.inference_mode():
            torch.testing.assert_close(slim(x), narrow(x))
        whole, shrunk, hand = measured((model, slim, narrow), x, rounds, seconds)
        rows.append(
            {
                "model": name,
                "batch": batch,
                "whole ms": 1e3 * whole,
                "shrunk ms": 1e3 * shrunk,
                "narrow by hand ms": 1e3 * hand,
                "shrunk / by hand": shrunk / hand,
                "speedup": whole / shrunk,
            }
        )
    return rows


tiny = functools.partial(latency, "resnet18", 32, (2,), 1, 0.01)
