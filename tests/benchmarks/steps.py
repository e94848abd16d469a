"""How long mask and shrink take step by step, next to what prune takes for the same after capture, analysis and plan."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

import fxprune
from fxprune.analysis.analyze import find_dependencies
from fxprune.graph.captured import compile_all, compiled_later
from fxprune.pipeline import without
from fxprune.torch_internals.switches import uncollected
from tests.benchmarks.pipeline import build

Model = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
_ROUNDS = 7
_AMOUNT = 0.5


def _bert_small() -> Model:
    import transformers

    config = transformers.BertConfig(hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048)
    config._attn_implementation = "eager"
    return transformers.BertModel(config).eval(), (), {"input_ids": torch.randint(0, config.vocab_size, (1, 128))}


MODELS: dict[str, Callable[[], Model]] = {
    "resnet50": lambda: build("torchvision/resnet50"),
    "mobilenet_v2": lambda: build("torchvision/mobilenet_v2"),
    "bert small": _bert_small,
}


def _timed(work: Callable[[], object]) -> float:
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _step_by_step(model: nn.Module, args: Any, kwargs: Any) -> tuple[float, int]:
    gm = fxprune.capture(model, args, kwargs)
    plan = fxprune.plan(fxprune.analyze(gm), _AMOUNT)
    seconds = _timed(lambda: fxprune.shrink(fxprune.mask(gm, plan, verify=False), verify=False))
    return seconds, sum(p.numel() for p in gm.parameters())


def _inside(model: nn.Module, args: Any, kwargs: Any, masked_too: bool) -> float:
    with compiled_later():
        gm = fxprune.capture(model, args, kwargs)
    deps = find_dependencies(gm)
    removed = fxprune.plan(deps, _AMOUNT).removed(deps)

    def work() -> None:
        with uncollected(), compiled_later():
            graphs = without(gm, deps, removed, masked_too=masked_too)
        for graph in filter(None, graphs):
            compile_all(graph)

    return _timed(work)


def steps(names: Iterable[str] = MODELS, rounds: int = _ROUNDS) -> list[dict[str, Any]]:
    """Return a row for each model: medians of the rounds, in which all ways take turns.

    ``steps`` is mask and shrink, unverified, after capture, analyze and plan; ``masked part`` is what prune does after these
    when it verifies, up to the comparison: mask, bake and shrink; ``part`` is what it does when it does not: shrink alone;
    ``prune`` is all of prune, unverified.
    """
    torch.set_num_threads(1)
    rows = []
    for name in names:
        model, args, kwargs = MODELS[name]()
        rows.append({"model": name} | _measured(model, args, kwargs, rounds))
    return rows


def _measured(model: nn.Module, args: Any, kwargs: Any, rounds: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {"steps": [], "masked part": [], "part": [], "prune": []}
    left = 0
    for _ in range(rounds + 1):
        seconds, left = _step_by_step(model, args, kwargs)
        times["steps"].append(seconds)
        times["masked part"].append(_inside(model, args, kwargs, masked_too=True))
        times["part"].append(_inside(model, args, kwargs, masked_too=False))
        times["prune"].append(_timed(lambda: fxprune.prune(model, args, _AMOUNT, example_kwargs=kwargs, verify=False)))
    medians = {what: statistics.median(seconds[1:]) for what, seconds in times.items()}
    ratios = {f"steps / {what}": medians["steps"] / seconds for what, seconds in medians.items() if what != "steps"}
    return {f"{what} s": seconds for what, seconds in medians.items()} | ratios | {"parameters left": left}
