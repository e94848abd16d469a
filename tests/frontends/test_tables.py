"""Tables that a model makes in its first call, and assigns in place of those that it has."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune

X = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)


class Net(nn.Module):
    """Makes a table of positions for the length of the input."""

    table: Tensor

    def __init__(self, as_buffer: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.n, self.b = nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)
        if as_buffer:
            self.register_buffer("table", torch.zeros(1, 1))
        else:
            self.table = torch.zeros(1, 1)
        self.calls = 0
        self.double()

    def positions(self, x: Tensor) -> Tensor:
        return torch.arange(x.shape[1], dtype=torch.double)[:, None] / 10

    def forward(self, x: Tensor) -> Tensor:
        if self.table.shape[0] != x.shape[1]:
            self.table = self.positions(x)
        return self.b(torch.relu(self.n((self.a(x) + self.table).transpose(1, 2)).transpose(1, 2)))


class Eager(Net):
    """Asks for the length as a number that only a real tensor has."""

    def positions(self, x: Tensor) -> Tensor:
        return torch.tensor([i / 10 for i in range(int(x.shape[1]))], dtype=torch.double)[:, None]


def note(is_made: bool) -> Any:
    """Expect the note on a table that is kept as a constant; ``torch.export`` computes one that is no buffer each time."""
    expected = "forward assigns tensors to table; the graph has those of the example inputs as constants"
    return pytest.warns(fxprune.CaptureWarning, match=expected) if is_made else contextlib.nullcontext()


@pytest.mark.parametrize("kind", [Net, Eager])
@pytest.mark.parametrize("as_buffer", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_graph_has_the_tables_of_a_first_call(kind: type[Net], as_buffer: bool, training: bool) -> None:
    model = kind(as_buffer).train(training)
    table, mean, count = model.table, model.n.running_mean, model.n.num_batches_tracked
    with note(as_buffer):
        gm = fxprune.capture(model, X)
    assert model.table is table
    assert mean is not None
    assert count is not None
    assert not mean.any()
    assert not count.any()
    with note(as_buffer):
        small = fxprune.prune(model.eval(), X, 0.5)
    assert small.get_parameter("a.weight").shape == (8, 4)
    for mode in (False, True):
        expected = kind(as_buffer).train(mode)(X)
        state = {name: tensor.clone() for name, tensor in gm.state_dict().items()}
        torch.testing.assert_close(gm.train(mode)(X), expected, rtol=1e-9, atol=1e-9)
        gm.load_state_dict(state)
    with pytest.raises(RuntimeError, match="does not have the shape that the graph was captured with"):
        gm(torch.randn(3, 5, 4).double())


def test_after_a_first_call_nothing_is_said(recwarn: Any) -> None:
    model = Net(False).eval()
    model(X)
    fxprune.capture(model, X)
    assert not recwarn.list


def test_tensors_that_each_call_assigns_are_refused() -> None:
    class State(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.table = self.table * 0.9 + self.a(x).mean()
            return self.b(torch.relu(self.a(x) + self.table))

    class Flag(Net):
        def forward(self, x: Tensor) -> Tensor:
            if not self.calls:
                self.table, self.calls = x.mean((0, 1)).mean()[None], 1
            return self.b(torch.relu(self.a(x) + self.table))

    for kind in (State, Flag):
        model = kind(False).eval()
        table = model.table
        with pytest.raises(fxprune.CaptureError, match="assigns a new tensor to table"):
            fxprune.capture(model, X, frontend="trace")
        assert model.table is table
        assert model.calls == 0
