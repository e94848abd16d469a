"""Tests of graphs whose code is made when they are first called."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.frontends.capture import Frontend
from fxprune.frontends.model.snapshot import ModelSnapshot
from fxprune.graph.captured import CapturedModule, compile_all, compiled_later
from fxprune.torch_internals.graphs import has_code


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y: Tensor = self.fc(x)
        return y if scale is None else y * scale


X = torch.ones(2, 4)


@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_an_uncompiled_graph_has_its_signature_and_compiles_when_called(frontend: Frontend) -> None:
    gm = fxprune.capture(Net(), X, frontend=frontend)
    with compiled_later():
        later = copy.deepcopy(gm)
    assert not has_code(later)
    assert inspect.signature(later.forward) == inspect.signature(gm.forward)
    with compiled_later():
        later = copy.deepcopy(gm)
    assert torch.equal(later(X), gm(X))
    assert later.code == gm.code


@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_an_uncompiled_graph_stays_one_that_runs_when_it_is_put_back(frontend: Frontend) -> None:
    gm = fxprune.capture(Net(), X, frontend=frontend)
    with compiled_later():
        later = copy.deepcopy(gm)
    assert fxprune.verify(gm, later, X) == 0.0  # runs both several times and gives them their attributes back
    assert torch.equal(later(X), gm(X))
    with compiled_later():
        later = copy.deepcopy(gm)
    with ModelSnapshot(later).untouched():
        later(X)
    assert has_code(later)
    assert torch.equal(later(X), gm(X))


def test_variadic_inputs_and_defaults_are_in_the_signature() -> None:
    graph = torch.fx.Graph()
    graph.output([graph.placeholder("x"), graph.placeholder("y", default_value=2), graph.placeholder("*rest")])
    with compiled_later():
        gm = CapturedModule(nn.Module(), graph)
    assert str(inspect.signature(gm.forward)) == "(x, y=2, *rest)"
    assert gm(1, 3, 4, 5) == [1, 3, (4, 5)]


def test_compile_all_makes_code_that_is_missing() -> None:
    with compiled_later():
        gm = fxprune.capture(Net(), X)
    assert not has_code(gm)
    compile_all(gm)
    assert has_code(gm)
    assert gm.code == fxprune.capture(Net(), X).code


def test_what_prune_returns_is_compiled_even_if_nothing_was_removed() -> None:
    assert has_code(fxprune.prune(Net(), X, 0, verify=False))


def test_a_shallow_copy_has_a_graph_and_modules_of_its_own_and_shares_the_tensors() -> None:
    x = torch.randn(X.shape)
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)).eval()
    gm = fxprune.capture(net, X)
    code, before = gm.code, gm(x)
    copied = copy.copy(gm)
    assert isinstance(copied, CapturedModule)
    assert all(a is b for a, b in zip(gm.parameters(), copied.parameters(), strict=True))
    fxprune.mask(copied, fxprune.plan(fxprune.analyze(copied), 0.5))
    masked = copied(x)
    fxprune.shrink(copied)
    assert torch.allclose(copied(x), masked, atol=1e-6)
    gm.recompile()
    assert gm.code == code
    assert torch.equal(gm(x), before)
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    shallow = copy.copy(gm)
    fxprune.finalize(shallow)
    assert fxprune.is_pruned(gm)
    fxprune.shrink(gm)
