"""Example inputs of any class: their tensors are inputs of the graph, and the example is as it was after a capture."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune


@dataclasses.dataclass
class Batch:
    x: Tensor


@dataclasses.dataclass
class Nested:
    batches: list[Any]


class Plain:
    def __init__(self, x: Tensor) -> None:
        self.x = x


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x: Tensor) -> None:
        self.x = x


class Writes(nn.Module):
    """Writes into the tensor that ``find`` finds in its input."""

    def __init__(self, find: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.l, self.find = nn.Linear(4, 3), find

    def forward(self, batch: Any) -> Tensor:
        self.find(batch).add_(1)
        return self.l(self.find(batch))


class Reads(Writes):
    def forward(self, batch: Any) -> Tensor:
        return self.l(self.find(batch) + 1)


def attribute(batch: Any) -> Tensor:
    return batch.x


MAKERS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "dataclass": (Batch, attribute),
    "nested dataclass": (lambda t: Nested([Plain(t)]), lambda batch: batch.batches[0].x),
    "namespace": (lambda t: types.SimpleNamespace(x=t), attribute),
    "object": (Plain, attribute),
    "slots": (Slotted, attribute),
    "object in a dict": (lambda t: {"a": Plain(t)}, lambda batch: batch["a"].x),
    "deque": (lambda t: collections.deque([t]), lambda batch: batch[0]),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", [Writes, Reads])
def test_a_capture_leaves_the_example_and_follows_other_inputs(name: str, kind: type[Writes]) -> None:
    make, find = MAKERS[name]
    model, x = kind(find).eval(), torch.randn(2, 4)
    held = x.clone()
    example = make(held)
    gm = fxprune.capture(model, (example,))
    assert find(example) is held
    assert torch.equal(held, x)
    other = torch.randn(5, 4)
    assert torch.equal(gm(make(other.clone())), model(make(other.clone())))


class Rebinds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 3)

    def forward(self, batch: Any) -> Tensor:
        batch.x = self.l(batch.x)
        return batch.x * 2


@pytest.mark.filterwarnings("ignore:forward changes its input 'batch'")
@pytest.mark.parametrize("make", [Batch, Plain, lambda t: types.SimpleNamespace(x=t)])
def test_an_attribute_that_forward_rebinds_on_the_example_is_as_before(make: Callable[[Tensor], Any]) -> None:
    example = make(torch.zeros(2, 4))
    held = example.x
    with contextlib.suppress(fxprune.CaptureError):
        fxprune.capture(Rebinds().eval(), (example,))
    assert example.x is held
    assert not held.any()


def test_a_model_that_fails_on_a_dataclass_leaves_it() -> None:
    class Fails(Writes):
        def forward(self, batch: Any) -> Tensor:
            batch.x.add_(1)
            raise ValueError("no")

    example = Batch(torch.zeros(2, 4))
    with pytest.raises(fxprune.InputError, match="no"):
        fxprune.capture(Fails(attribute).eval(), (example,))
    assert not example.x.any()


def test_verify_tries_other_values_of_tensors_in_objects() -> None:
    class Squares(Writes):
        def forward(self, batch: Any) -> Tensor:
            return self.l(batch.x * batch.x + 1)

    one, other, zeros = Reads(attribute).eval(), Squares(attribute).eval(), (Batch(torch.zeros(2, 4)),)
    other.load_state_dict(one.state_dict())
    with pytest.raises(fxprune.VerificationError):
        fxprune.verify(one, fxprune.capture(other, zeros), zeros)
