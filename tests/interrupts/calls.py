"""Public calls to interrupt, each with what it may leave changed."""

from __future__ import annotations

import collections
import copy
import dataclasses
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.graph.captured import CapturedModule


class Convolutions(nn.Module):
    """Convolutions with statistics, dropout and state in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(6, 4)
        self.config, self.seen = types.SimpleNamespace(scale=2.0), collections.deque([1])
        self.table, self.calls = np.ones(3), {"inner": {"number": 0}}

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.one(x)))
        y = F.gelu(self.two(y)).mean((2, 3)) * self.config.scale
        return self.head(self.drop(y))


class Attends(nn.Module):
    """A transformer layer, which traces through the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 12, 0.2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) + torch.zeros(x.shape[0], 1, 8)
        return self.head(y * (2 if self.training else 1))


@dataclasses.dataclass
class Subject:
    """A model, an example, a graph that may change, and the call to interrupt."""

    model: nn.Module
    example: Tensor
    graph: CapturedModule | None
    call: Callable[[], Any]


def _model(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().eval(), torch.randn(2, 3, 8, 8) if kind is Convolutions else torch.randn(2, 5, 8)


_READY: dict[Any, Any] = {}


def _ready(kind: type[nn.Module], masked: bool) -> tuple[nn.Module, Tensor, CapturedModule, Any]:
    """Return a model, inputs, a graph of its own tensors, and a plan for it."""
    if (kind, masked) not in _READY:
        model, x = _model(kind)
        gm = fxprune.capture(model, x)
        deps = fxprune.analyze(gm)
        plan = fxprune.plan(deps, 0.5)
        if masked:
            fxprune.mask(gm, plan)
        _READY[kind, masked] = model, x, gm, plan
    model, x, gm, plan = _READY[kind, masked]
    copied = copy.deepcopy(gm)
    copied.code  # noqa: B018 (made here, not within the call)
    return model, x, copied, plan


def _on_model(frontend: Any, kind: type[nn.Module], call: Callable[..., Any]) -> Subject:
    model, x = _model(kind)
    return Subject(model, x, None, lambda: call(model, x, frontend))


def _on_graph(kind: type[nn.Module], masked: bool, call: Callable[..., Any]) -> Subject:
    model, x, gm, plan = _ready(kind, masked)
    return Subject(model, x, gm, lambda: call(gm, plan, x))


def _l1(gm: CapturedModule, plan: Any, x: Tensor) -> None:
    fxprune.l1_unstructured(gm, "head.weight", 0.5)


def _importance(gm: CapturedModule, plan: Any, x: Tensor) -> None:
    fxprune.plan(fxprune.analyze(gm), 0.5, importance=fxprune.Taylor(lambda graph: graph(x).sum()))


def _subjects() -> dict[str, Callable[[], Subject]]:
    made: dict[str, Callable[[], Subject]] = {}
    for kind in (Convolutions, Attends):
        for frontend in ("trace", "export", "auto"):
            if (kind, frontend) != (Attends, "trace"):
                made[f"capture {kind.__name__} {frontend}"] = lambda k=kind, f=frontend: _on_model(  # type: ignore[misc]
                    f, k, lambda model, x, front: fxprune.capture(model, x, frontend=front)
                )
        made[f"prune {kind.__name__}"] = lambda k=kind: _on_model(  # type: ignore[misc]
            "auto", k, lambda model, x, frontend: fxprune.prune(model, x, 0.5)
        )
        on_graph: dict[str, tuple[bool, Callable[..., Any]]] = {
            "plan by gradients": (False, _importance),
            "analyze": (False, lambda gm, plan, x: fxprune.analyze(gm)),
            "mask": (False, lambda gm, plan, x: fxprune.mask(gm, plan)),
            "l1_unstructured": (False, _l1),
            "finalize": (True, lambda gm, plan, x: fxprune.finalize(gm)),
            "shrink": (True, lambda gm, plan, x: fxprune.shrink(gm, example_inputs=x)),
            "verify": (True, lambda gm, plan, x: fxprune.verify(gm, gm, x)),
        }
        for name, (masked, call) in on_graph.items():
            made[f"{name} {kind.__name__}"] = lambda k=kind, m=masked, c=call: _on_graph(k, m, c)  # type: ignore[misc]
    made["summary"] = lambda: _on_graph(
        Convolutions, False, lambda gm, plan, x: fxprune.summary(gm, gm, x, latency=False, file=None)
    )
    made["to_exported_program"] = lambda: _on_graph(
        Convolutions, True, lambda gm, plan, x: fxprune.to_exported_program(gm, (x,))
    )
    return made


SUBJECTS = _subjects()
