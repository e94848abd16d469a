"""How much accuracy is kept after pruning, next to Torch-Pruning: same model, criterion, parameters left and training."""

from __future__ import annotations

import copy
import math
import statistics
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from tests.benchmarks import peers
from tests.benchmarks.classifiers import TASKS, Data, Task

_BATCH = 32
_SHARE = 0.25  # of the parameters that is left
_SEEDS = range(5)
_ORDERS = 3  # in which a pruned model is trained; the accuracies are averaged, since one training alone says little
_COARSE, _FINE = 16, 8  # amounts that the other side is tried with
_FAIRNESS = 5.0  # how much more it matters that both sides have the same number of parameters than that it is the share

Scope = Literal["local", "global"]


def train(model: nn.Module, task: Task, data: Data, epochs: int, seed: int) -> None:
    """Train a model in place and leave it in eval mode.

    Args:
        model: the model.
        task: what it learns.
        data: the data.
        epochs: how often the data is gone through.
        seed: gives the order of the samples, and how they are changed.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    steps = epochs * math.ceil(len(data.x) / _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, task.rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(data.x), generator=generator).split(_BATCH):
            optimizer.zero_grad()
            found = model(task.augmented(data.x[batch], generator))
            F.cross_entropy(found, data.y[batch], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """Return how many of the test samples a model classifies correctly, in percent."""
    right = [(model(x).argmax(1) == y) for x, y in zip(data.test_x.split(500), data.test_y.split(500), strict=True)]
    return 100 * torch.cat(right).double().mean().item()


def parameters(model: nn.Module) -> int:
    """Return the elements of all parameters."""
    return sum(p.numel() for p in model.parameters())


def pruned_alike(model: nn.Module, x: Tensor, scope: Scope = "local", share: float = _SHARE) -> dict[str, nn.Module]:
    """Return a model pruned by each side, with nearly the same number of parameters left, on our side never the greater.

    Both can only leave certain numbers. Torch-Pruning takes a share of channels. Many are tried; of those that leave about
    ``share`` of the parameters the one is taken whose number fxprune, given it as the budget, comes closest to.

    Args:
        model: the model; left as it is.
        x: inputs.
        scope: "local" or "global".
        share: how many of the parameters are to be left.

    Returns:
        The pruned models by the names of the sides.
    """
    deps = fxprune.analyze(fxprune.capture(model, x))
    wanted = share * parameters(model)
    tried: dict[float, tuple[float, int, nn.Module]] = {}

    def attempt(amount: float) -> None:
        small = peers.torch_pruned(copy.deepcopy(model), (x,), {}, amount, scope == "global")
        budget = parameters(small)
        reached = fxprune.plan(deps, max_params=budget, scope=scope).params_after
        tried[amount] = _FAIRNESS * (1 - reached / budget) + abs(budget / wanted - 1), budget, small

    for step in range(1, _COARSE):
        attempt(step / _COARSE)
    near = min(tried, key=lambda amount: abs(tried[amount][1] - wanted))
    for step in range(1 - _FINE, _FINE):
        attempt(near + step / (_COARSE * _FINE))
    _, budget, small = min(tried.values(), key=lambda found: found[0])
    # Of a copy, since parameters that lose nothing stay the model's, and training one side must not change what comes next.
    ours = fxprune.prune(copy.deepcopy(model), x, max_params=budget, scope=scope)
    return {"fxprune": ours, "torch-pruning": small}


def compared(name: str, task: Task, seed: int, scopes: Iterable[Scope], samples: int | None = None) -> list[dict[str, Any]]:
    """Train a model, prune it by both sides and train what is left, all from one seed.

    Args:
        name: what to call the model.
        task: the model and what it learns.
        seed: gives initial weights, the split of the data, and orders of samples.
        scopes: of pruning.
        samples: how many to train and to test with; all unless given.

    Returns:
        A row for each scope.
    """
    torch.manual_seed(seed)
    data = task.data(seed).few(samples)
    model = task.build()
    train(model, task, data, task.epochs, seed)
    rows = []
    for scope in scopes:
        row: dict[str, Any] = {"model": name, "scope": scope, "seed": seed, "whole %": accuracy(model, data)}
        for side, small in pruned_alike(model, data.x[:2], scope).items():
            row[f"{side} left %"] = 100 * parameters(small) / parameters(model)
            row[f"{side} pruned %"] = accuracy(small.eval(), data)
            row[f"{side} tuned %"] = statistics.mean(tuned(small, task, data, _ORDERS * seed + i) for i in range(_ORDERS))
        rows.append(row)
    return rows


def tuned(small: nn.Module, task: Task, data: Data, order: int) -> float:
    """Return the accuracy of a copy of a pruned model after training.

    Args:
        small: the pruned model; left as it is.
        task: what it learns.
        data: the data.
        order: a number that gives the order of the samples.
    """
    small = copy.deepcopy(small)
    train(small, task, data, task.tuning, 1000 + order)
    return accuracy(small, data)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one row of the means over those of all seeds, and of the paired differences with their standard errors.

    Args:
        rows: what :func:`compared` gives for one model and scope, a row a seed.
    """
    found: dict[str, Any] = {"model": rows[0]["model"], "scope": rows[0]["scope"], "seeds": len(rows)}
    for key in list(rows[0])[3:]:
        found[key] = statistics.mean(row[key] for row in rows)
    for key in ("pruned", "tuned"):
        differences = [row[f"fxprune {key} %"] - row[f"torch-pruning {key} %"] for row in rows]
        found[f"difference, {key}"] = statistics.mean(differences)
        if len(rows) > 1:
            found[f"error, {key}"] = statistics.stdev(differences) / math.sqrt(len(rows))
    found["seeds below"] = sum(difference < 0 for difference in differences)
    found["difference, tuned, of each seed"] = " ".join(f"{difference:+.1f}" for difference in differences)
    return found


def kept(
    tasks: Mapping[str, Task] = TASKS,
    seeds: Iterable[int] = _SEEDS,
    scopes: tuple[Scope, ...] = ("local", "global"),
    samples: int | None = None,
) -> list[dict[str, Any]]:
    """Compare the accuracy after pruning by group magnitude, without and with training after it, on every model.

    What is pruned depends on the seed alone; trainings differ a little from run to run, since sums of convolutions do.

    Args:
        tasks: the models and what they learn.
        seeds: each gives initial weights, a split of the data and orders of samples; both sides get the same model.
        scopes: "local" takes the same share of every group, "global" ranks all groups together.
        samples: how many of the samples to use, to train and to test with; all unless given.

    Returns:
        A row for each model and scope. The row of each seed is printed when it is there.
    """
    rows: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Torch-Pruning's, about layers that it leaves alone
        for name, task in tasks.items():
            for seed in seeds:
                for row in compared(name, task, seed, scopes, samples):
                    print(row, flush=True)
                    rows.append(row)
    return [
        summary(same)
        for name in tasks
        for scope in scopes
        if (same := [row for row in rows if (row["model"], row["scope"]) == (name, scope)])
    ]
