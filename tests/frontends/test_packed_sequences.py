"""Sequences of different lengths, packed for recurrent layers: what reads lengths is called by the graph and stays whole."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fxprune

pytestmark = pytest.mark.filterwarnings("ignore:amount=0.5 leaves:fxprune.PruneWarning")  # most of these models stays whole

Code = Callable[[Any, Tensor, Tensor], Tensor]
rnn = nn.utils.rnn


class Net(nn.Module):
    def __init__(self, code: Code, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.code = nn.Linear(4, 16), nn.Linear(16, 8), code
        self.lstm, self.gru = nn.LSTM(8, 8, batch_first=True, **options), nn.GRU(8, 8, 2, batch_first=True)
        self.rnn, self.c, self.d = nn.RNN(8, 8), nn.Linear(16 if options else 8, 16), nn.Linear(16, 2)
        self.double()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        h = self.code(self, self.b(torch.relu(self.a(x))), lengths)
        return self.d(torch.relu(self.c(h)))


def padded(net: Any, x: Tensor, lengths: Tensor) -> Tensor:
    packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    out, _ = rnn.pad_packed_sequence(net.lstm(packed)[0], batch_first=True)
    return out


def by_names(net: Any, x: Tensor, lengths: Tensor) -> Tensor:
    out, _ = net.lstm(pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))
    out, sizes = pad_packed_sequence(out, batch_first=True, total_length=x.size(1))
    return out.sum(1) / sizes.unsqueeze(1)


def last_state(net: Any, x: Tensor, lengths: Tensor) -> Tensor:
    packed = rnn.pack_padded_sequence(x, lengths, True, False)
    _, (h, _) = net.lstm(packed)
    return h[-1]


def stacked(net: Any, x: Tensor, lengths: Tensor) -> Tensor:
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    packed, _ = net.lstm(packed)
    packed, h = net.gru(packed)
    return rnn.pad_packed_sequence(packed, batch_first=True)[0] + h[-1].unsqueeze(1)


def length_first(net: Any, x: Tensor, lengths: Tensor) -> Tensor:
    packed, _ = net.rnn(pack_padded_sequence(x.transpose(0, 1), lengths, enforce_sorted=False))
    return rnn.pad_packed_sequence(packed)[0].mean(0)


def data(net: Any, x: Tensor, lengths: Tensor) -> Tensor:
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return torch.relu(packed.data)


CODES: list[Code] = [padded, by_names, last_state, stacked, length_first, data]
X, LENGTHS = torch.randn(3, 5, 4).double(), torch.tensor([3, 5, 2])


def compare(gm: nn.Module, reference: nn.Module, tolerance: float = 1e-9) -> None:
    for x, lengths in ((X, LENGTHS), (torch.randn(4, 5, 4).double(), torch.tensor([5, 1, 1, 4]))):
        for training in (True, False):
            expected = reference.train(training)(x, lengths)
            torch.testing.assert_close(gm.train(training)(x, lengths), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("code", CODES)
def test_packed_sequences(code: Code) -> None:
    model = Net(code).eval()
    gm = fxprune.capture(model, (X, LENGTHS))
    compare(gm, model)
    compare(copy.deepcopy(gm), model)
    compare(pickle.loads(pickle.dumps(gm)), model)
    said = str(fxprune.analyze(gm).explain("b.weight", dim=0))
    assert "cannot be analysed" in said
    assert "rnn.py" not in said
    masked, plan = copy.deepcopy(gm), fxprune.plan(fxprune.analyze(gm), 0.5)
    fxprune.mask(masked, plan)
    fxprune.mask(gm, plan)
    fxprune.shrink(gm)
    compare(gm, masked)
    assert gm.get_parameter("a.weight").shape == (8, 4)
    assert gm.get_parameter("d.weight").shape == (2, 8)
    assert gm.get_parameter("b.weight").shape == (8, 8)


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"bidirectional": True, "num_layers": 2, "dropout": 0.0}])
def test_both_directions(options: Any) -> None:
    model = Net(padded, **options).eval()
    compare(fxprune.capture(model, (X, LENGTHS)), model)
    assert fxprune.prune(model, (X, LENGTHS), 0.5).get_parameter("c.weight").shape == (8, 16)


def test_a_list_of_sequences() -> None:
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.gru, self.c = nn.Linear(4, 16), nn.Linear(16, 8), nn.GRU(8, 8), nn.Linear(8, 2)

        def forward(self, parts: list[Tensor]) -> Tensor:
            made = [self.b(torch.relu(self.a(part))) for part in parts]
            packed, _ = self.gru(rnn.pack_sequence(made, enforce_sorted=False))
            return self.c(rnn.pad_packed_sequence(packed)[0]) + rnn.pad_sequence(made).sum(-1, keepdim=True)

    model, parts = Lists().double().eval(), [torch.randn(n, 4).double() for n in (3, 5, 2)]
    gm = fxprune.capture(model, ([*parts],))
    torch.testing.assert_close(gm(parts), model(parts), rtol=1e-9, atol=1e-9)
    assert fxprune.prune(model, ([*parts],), 0.5).get_parameter("a.weight").shape == (8, 4)


def test_a_packed_input() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.a, self.b = nn.GRU(4, 8), nn.Linear(8, 16), nn.Linear(16, 2)

        def forward(self, packed: PackedSequence) -> Tensor:
            return self.b(torch.relu(self.a(rnn.pad_packed_sequence(self.gru(packed)[0])[0])))

    model, packed = Packed().double().eval(), pack_padded_sequence(X, LENGTHS, batch_first=True, enforce_sorted=False)
    gm = fxprune.capture(model, (packed,))
    torch.testing.assert_close(gm(packed), model(packed), rtol=1e-9, atol=1e-9)
