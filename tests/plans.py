"""Networks and analyses that the tests of plans share."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group
from fxprune.planning.plan import Plan
from tests.golden.registry import NETS


class Net(nn.Module):
    """Two convolutions, grouped by 2 in the middle, and a classifier."""

    def __init__(self, stem: int = 6, inner: int = 3, outer: int = 5, groups: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, groups * inner, 3, padding=1)
        self.grouped = nn.Conv2d(groups * inner, groups * outer, 3, groups=groups)
        self.fc = nn.Linear(groups * outer, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.grouped(self.stem(x))).mean((2, 3)))


class Chain(nn.Module):
    """Layers one after the other: one group for each hidden width."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(a, b) for a, b in itertools.pairwise(widths)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def deps_of(model: nn.Module, *inputs: Tensor) -> Dependencies:
    return fxprune.analyze(fxprune.capture(model.eval(), inputs))


def chain(*widths: int) -> Dependencies:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return deps_of(Chain(*widths), torch.randn(2, widths[0]))


_GOLDEN: dict[str, Dependencies] = {}


def golden(name: str) -> Dependencies:
    if name not in _GOLDEN:
        net = NETS[name]
        _GOLDEN[name] = fxprune.analyze(fxprune.capture(net.build(), net.inputs(2)))
    return _GOLDEN[name]


def rising(deps: Dependencies, group: Group) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Give the last unit the most."""
    return np.arange(group.size)


def counts(made: Plan) -> list[int]:
    return [len(choice.kept) for choice in made.choices]


IMAGE = torch.randn(2, 3, 8, 8)
