"""in_place: ``x += y`` of the model's code overwrites x again in a shrunk graph, where that is safe."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.graph.captured import CapturedModule

X = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(2, 5)


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.one, self.two, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        h = self.two(self.one(x).relu())
        if self.kind == "plain":
            h = h + x
        elif self.kind == "sum":
            h += x
        elif self.kind == "product":
            h *= x
        elif self.kind == "difference and quotient":
            h -= x
            h /= 2.0
        elif self.kind == "read twice":
            h += h.tanh()
        elif self.kind == "twice itself":
            h += h
        elif self.kind == "alias":
            h = self.drop(h)
            h += x
        elif self.kind == "view":
            h = h.unflatten(1, (-1, 1)).flatten(1)
            h += x
        return self.head(h)


def shrunk(kind: str) -> tuple[CapturedModule, Net]:
    torch.manual_seed(0)
    model = Net(kind).double()
    return fxprune.prune(model, X, 0.5), model


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("plain", "add = two + relu"),
        ("sum", "two += relu;  add = two"),
        ("product", "two *= relu;  mul = two"),
        ("difference and quotient", "two -= relu;  sub = two"),
        ("difference and quotient", "truediv = sub / 2.0"),  # a sum's memory could be another value's
        ("read twice", "add = two + tanh"),
        ("twice itself", "add = two + two"),
        ("alias", "add = drop + relu"),
        ("view", "add = flatten + relu"),
    ],
)
def test_sums_overwrite_the_new_result_of_a_layer(kind: str, line: str) -> None:
    gm, _ = shrunk(kind)
    assert line in gm.code.replace("relu_1", "relu").replace("(self.one(stem))", "relu")


def test_the_captured_graph_has_no_writes() -> None:
    assert "+=" not in fxprune.capture(Net("sum").double(), (X,)).code


@pytest.mark.filterwarnings("ignore:The TorchScript type system", "ignore:.*torch.jit.script.* is deprecated")
def test_a_graph_that_writes_survives() -> None:
    gm, _ = shrunk("sum")
    expected = gm(X)
    exported = torch.export.export(gm, (X,)).module()
    for other in (copy.deepcopy(gm), pickle.loads(pickle.dumps(gm)), torch.jit.script(gm), exported):
        torch.testing.assert_close(other(X), expected, rtol=0, atol=0)
    gm(X).sum().backward()
    assert gm.get_parameter("stem.weight").grad is not None
    smaller = fxprune.prune(gm, X, 0.5)
    assert smaller.get_parameter("stem.weight").shape == (2, 5)
    assert "two += relu" in smaller.code
