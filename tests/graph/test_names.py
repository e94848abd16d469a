"""Names of attributes that mean something in Python, in torch.fx or in a graph."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune

CHILDREN = (
    "class",
    "lambda",
    "None",
    "self",
    "torch",
    "example",
    "fxprune",
    "input",
    "forward_pass",
    "weight_mask",
    "fx_pytree",
)


class Child(nn.Module):
    def __init__(self, name: str, inside: bool) -> None:
        super().__init__()
        self.first, self.inside, self.name = nn.Linear(4, 8), nn.ModuleDict(), name
        (self.inside if inside else self).add_module(name, nn.Linear(8, 8))
        self.last, self.is_inside = nn.Linear(8, 3), inside

    def forward(self, x: Tensor) -> Tensor:
        child = self.inside[self.name] if self.is_inside else getattr(self, self.name)
        return self.last(torch.relu(child(torch.tanh(self.first(x)))) + torch.zeros_like(x).sum())


class Tensors(nn.Module):
    """Parameters and buffers with such names."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.first, self.last, self.name = nn.Linear(4, 8), nn.Linear(8, 3), name
        self.register_parameter(name, nn.Parameter(torch.randn(8)))
        self.first.register_buffer(name, torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)) * getattr(self, self.name) + getattr(self.first, self.name))


def works(model: nn.Module, frontend: Any) -> None:
    x = torch.randn(3, 4)
    gm = fxprune.capture(model, x, frontend=frontend)
    assert list(gm.state_dict()) == list(model.state_dict())
    for graph in (gm, copy.deepcopy(gm), pickle.loads(pickle.dumps(gm))):
        assert torch.equal(graph(x), model(x))
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    masked = gm(x)
    assert torch.allclose(fxprune.to_torchscript(gm, x)(x), masked)
    assert torch.allclose(fxprune.shrink(gm)(x), masked, atol=1e-6)


@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.parametrize("name", CHILDREN)
@pytest.mark.parametrize("inside", [False, True])
def test_submodules(name: str, inside: bool, frontend: str) -> None:
    torch.manual_seed(0)
    works(Child(name, inside).eval(), frontend)


@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.parametrize("name", ["class", "self", "torch", "example", "input"])
def test_tensors(name: str, frontend: str) -> None:
    torch.manual_seed(0)
    works(Tensors(name).eval(), frontend)


@pytest.mark.parametrize("name", ["graph", "code"])
def test_names_that_a_graph_has_for_itself(name: str) -> None:
    with pytest.raises(fxprune.CaptureError, match=f"called '{name}', a name that torch.fx.GraphModule has for itself"):
        fxprune.capture(Child(name, inside=False).eval(), torch.randn(3, 4))
    works(Child(name, inside=True).eval(), "trace")


@pytest.mark.parametrize("name", ["weight_orig", "weight_mask"])
def test_a_parameter_is_not_masked_over_another_attribute(name: str) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
            self.a.register_parameter(name, nn.Parameter(torch.ones(8)))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)) * getattr(self.a, name))

    gm = fxprune.capture(Own().eval(), torch.randn(2, 4))
    code, state = gm.code, {k: v.clone() for k, v in gm.state_dict().items()}
    with pytest.raises(fxprune.PruningError, match=f"cannot be masked: the name '{name}' is taken .* give that another name"):
        fxprune.l1_unstructured(gm, "a.weight", 0.5)
    assert gm.code == code
    assert all(torch.equal(value, state[key]) for key, value in gm.state_dict().items())
    fxprune.l1_unstructured(gm, "b.weight", 0.5)
