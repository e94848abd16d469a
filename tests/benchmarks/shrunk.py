"""How fast a shrunk network is, next to one that was built narrow by hand."""

from __future__ import annotations

import copy
import functools
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fxprune
from tests.zoo import shim

_ROUNDS = {1: 300, 16: 25}  # how many calls of each model, by batch size


def narrow_by_hand(model: nn.Module, slim: nn.Module) -> nn.Module:
    """Return a copy of a model whose own code runs layers of the sizes that a shrunk graph of it has, with its weights."""
    narrow = copy.deepcopy(model)
    for name, layer in list(narrow.named_modules()):
        if name and not list(layer.children()) and list(layer.parameters()):
            owner, _, attribute = name.rpartition(".")
            setattr(narrow.get_submodule(owner), attribute, copy.deepcopy(slim.get_submodule(name)))
    return narrow


def measured(models: Sequence[nn.Module], x: Tensor, rounds: int) -> list[list[float]]:
    """Return the seconds of ``rounds`` calls of each model, taken in turn, so that a slow spell meets all of them alike."""
    order = random.Random(0)
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for model in models:
            model(x)
        for _ in range(rounds):
            for i in order.sample(range(len(models)), len(models)):
                start = time.perf_counter()
                models[i](x)
                times[i].append(time.perf_counter() - start)
    return times


def compared(whole: Sequence[float], shrunk: Sequence[float], hand: Sequence[float]) -> dict[str, float]:
    """Return the medians of seconds taken in turn, and the medians of their ratios round by round."""
    return {
        "whole ms": 1e3 * statistics.median(whole),
        "shrunk ms": 1e3 * statistics.median(shrunk),
        "narrow by hand ms": 1e3 * statistics.median(hand),
        "shrunk / by hand": statistics.median(a / b for a, b in zip(shrunk, hand, strict=True)),
        "speedup": statistics.median(a / b for a, b in zip(whole, shrunk, strict=True)),
    }


def latency(
    name: str = "resnet50",
    size: int = 224,
    rounds: Mapping[int, int] = _ROUNDS,
) -> list[dict[str, Any]]:
    """Time a torchvision model, its shrunk graph at half of the channels, and the class at the same widths, on one thread."""
    shim.install()
    from torchvision import models

    torch.manual_seed(0)
    model = getattr(models, name)().eval()
    slim = fxprune.prune(model, torch.randn(1, 3, size, size), 0.5)
    narrow = narrow_by_hand(model, slim).eval()
    rows = []
    for batch, calls in rounds.items():
        x = torch.randn(batch, 3, size, size)
        with torch.inference_mode():
            torch.testing.assert_close(slim(x), narrow(x))
        times = measured((model, slim, narrow), x, calls)
        rows.append({"model": name, "batch": batch, **compared(*times)})
    return rows


tiny = functools.partial(latency, "resnet18", 32, {2: 3})
