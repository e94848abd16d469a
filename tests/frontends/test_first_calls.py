"""First calls: inputs that may be omitted, outputs of the model's own classes, errors that say what to do."""

from __future__ import annotations

import collections
import copy
import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def net(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


class Optional(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, flag: bool = False, **rest: Any) -> Tensor:
        y = self.net(x) * (scale if not flag else 1.0)
        return y if mask is None else y * mask


@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.parametrize(
    "given",
    [{"mask": None}, {"flag": True}, {"mask": None, "flag": False}, {"scale": 2.0, "flag": False}, {"mask": None, "note": "a"}],
)
def test_plain_inputs_of_the_example_may_be_omitted(frontend: Any, given: dict[str, Any]) -> None:
    model, x = Optional().eval(), torch.randn(2, 4)
    try:
        gm = fxprune.capture(model, x, given, frontend=frontend)
    except fxprune.CaptureError:
        assert ("note" in given, frontend) == (True, "export")
        return
    for graph in (gm, copy.deepcopy(gm), pickle.loads(pickle.dumps(gm))):
        assert torch.equal(graph(x), model(x, **given))
        assert torch.equal(graph(x, **given), model(x, **given))
    if "mask" in given:
        with pytest.raises(RuntimeError, match="'mask' was None"):
            gm(x, mask=torch.ones(3))
    small = fxprune.prune(model, x, 0.5, given, frontend=frontend)
    assert small(x).shape == (2, 3)
    assert fxprune.verify(gm, copy.deepcopy(gm), x) == 0


def test_an_input_before_a_tensor_is_given() -> None:
    gm = fxprune.capture(Optional().eval(), (torch.randn(2, 4), torch.ones(3), 3.0), frontend="export")
    assert gm(torch.randn(5, 4), torch.ones(3)).shape == (5, 3)
    with pytest.raises(TypeError, match="mask"):
        gm(torch.randn(5, 4))


@dataclasses.dataclass
class Result:
    logits: Tensor
    hidden: Tensor | None = None


@dataclasses.dataclass
class Output(collections.OrderedDict):  # type: ignore[type-arg]
    """A dict that is a dataclass, whose items are the fields that are given."""

    logits: Any = None
    loss: Any = None
    hidden: Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) is not None:
                super().__setitem__(field.name, value)


Pair = collections.namedtuple("Pair", ["logits", "hidden"])

pytree.register_pytree_node(
    Output, lambda o: (list(o.values()), list(o)), lambda v, names: Output(**dict(zip(names, v, strict=True))),
    serialized_type_name="tests.Output",
)  # fmt: skip


@pytest.mark.parametrize("kind", [Result, Output, Pair])
@pytest.mark.parametrize("step", ["capture", "prune"])
def test_outputs_keep_their_class(kind: Any, step: str) -> None:
    class Returns(Net):
        def forward(self, x: Tensor) -> Any:
            y = self.net(x)
            return kind(logits=y, hidden=y * 2)

    model, x = Returns().eval(), torch.randn(2, 4)
    gm = fxprune.capture(model, x, frontend="trace") if step == "capture" else fxprune.prune(model, x, 0.5, frontend="trace")
    out = gm(x)
    assert type(out) is kind
    assert out.logits.shape == (2, 3)
    assert torch.equal(out.hidden, out.logits * 2)
    if step == "capture":
        assert torch.equal(out.logits, model(x).logits)


class Cache:
    def __init__(self, x: Tensor) -> None:
        self.x = x


@pytest.mark.parametrize("frontend", ["trace", "export", "auto"])
def test_an_object_that_no_graph_returns_is_named(frontend: Any) -> None:
    class Returns(Net):
        def forward(self, x: Tensor) -> Any:
            return self.net(x), Cache(x)

    with pytest.raises(fxprune.CaptureError, match=r"of class .*Cache, which no graph holds: let the model"):
        fxprune.capture(Returns().eval(), torch.randn(2, 4), frontend=frontend)


def test_arrays_are_refused_with_advice() -> None:
    for example in (np.ones((2, 4), np.float32), {"x": np.ones((2, 4))}):
        with pytest.raises(fxprune.InputError, match=r"example input 'x' is or holds a NumPy array: give a tensor"):
            fxprune.capture(Optional().eval(), (example,))


def test_the_class_of_a_criterion() -> None:
    deps = fxprune.analyze(fxprune.capture(Optional().eval(), torch.randn(2, 4)))
    for kind in (fxprune.LAMP, fxprune.Magnitude, fxprune.FPGM):
        given: Any = kind
        assert fxprune.plan(deps, 0.5, importance=given).to_json() == fxprune.plan(deps, 0.5, importance=kind()).to_json()
    needs_loss: Any = fxprune.Taylor
    with pytest.raises(fxprune.PruningError, match=r"not its class: Taylor.*loss"):
        fxprune.plan(deps, 0.5, importance=needs_loss)
