"""The benchmark of steps runs, in a short form; nothing here looks at times."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from tests.benchmarks import steps


def test_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    inputs = torch.randn(1, 3, 6, 6)
    monkeypatch.setitem(steps.MODELS, "small", lambda: (model, (inputs,), {}))
    (row,) = steps.steps(["small"], rounds=1)
    assert row["model"] == "small"
    assert all(row[f"steps / {other}"] > 0 for other in ("masked part", "part", "prune"))
    pruned = fxprune.prune(model, inputs, 0.5)
    assert row["parameters left"] == sum(p.numel() for p in pruned.parameters())
