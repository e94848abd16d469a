"""Nodes that run several operators are run without values, which tells what they give on the positions that are left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.compare import relative_error


def check(model: nn.Module, inputs: Any, frontend: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Prune half of everything, and compare with the masked graph and the shapes given by name."""
    gm = fxprune.capture(model.double().eval(), inputs, frontend=frontend)
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    masked = gm(*inputs)
    small = fxprune.shrink(gm)
    assert {name: tuple(small.get_parameter(name).shape) for name in shapes} == shapes
    assert relative_error(small(*inputs), masked) < 1e-9


class Spectra(nn.Module):
    def __init__(self, combine: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3)
        self.phase = nn.Parameter(torch.randn(16, dtype=torch.complex128))
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        f, g = (torch.fft.rfft(layer(x), dim=1) for layer in (self.a, self.b))
        y: Tensor = self.out(torch.fft.irfft(self.combine(self, f, g), n=x.shape[1], dim=1))
        return y


_COMBINED: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "product": lambda m, f, g: f * torch.conj(g),
    "method": lambda m, f, g: g.conj() * f,
    "both": lambda m, f, g: g.conj() + f.conj(),
    "einsum": lambda m, f, g: torch.einsum("blc,blc->blc", f, g.conj()),
    "adjoint": lambda m, f, g: f @ (g.mH @ f),
    "view": lambda m, f, g: f * g.conj().reshape(g.shape[0], -1, 4, 4).reshape(g.shape),
    "pieces": lambda m, f, g: f * torch.cat([g.conj()[..., :8], g.conj()[..., 8:]], -1),
    "in place": lambda m, f, g: (f * 1).mul_(g.conj()),
    "where": lambda m, f, g: torch.where(f.real > 0, f, g.conj()),
    "negative": lambda m, f, g: torch.complex(f.conj().imag, g.real),
    "negative, doubled": lambda m, f, g: torch.complex(f.conj().imag * 2, g.real),
}


@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.parametrize("name", _COMBINED)
def test_conjugates_and_negatives_that_are_marks_alone(name: str, frontend: Any) -> None:
    check(Spectra(_COMBINED[name]), (torch.randn(2, 8, 6).double(),), frontend, {"a.weight": (8, 6), "b.weight": (8, 6)})


@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_a_conjugate_of_a_parameter(frontend: Any) -> None:
    model = Spectra(lambda m, f, g: f * m.phase.conj())
    check(model, (torch.randn(2, 8, 6).double(),), frontend, {"a.weight": (8, 6), "phase": (8,)})


class Bags(nn.Module):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = nn.EmbeddingBag(20, 16, **options), nn.Linear(16, 2)

    def forward(self, *inputs: Any) -> Tensor:
        y: Tensor = self.out(torch.relu(self.table(*inputs)))
        return y


_ROWS, _FLAT, _STARTS = torch.arange(24).view(4, 6) % 20, torch.arange(12), torch.tensor([0, 3, 5, 9])
_WEIGHTS = torch.linspace(0.5, 1.5, 24).double()


@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.parametrize(
    ("options", "inputs"),
    [
        *(({"mode": mode}, inputs) for mode in ("mean", "sum", "max") for inputs in ((_ROWS,), (_FLAT, _STARTS))),
        ({"mode": "sum"}, (_ROWS, None, _WEIGHTS.view(4, 6))),
        ({"mode": "sum"}, (_FLAT, _STARTS, _WEIGHTS[:12])),
        ({"include_last_offset": True}, (_FLAT, torch.tensor([0, 3, 5, 9, 12]))),
        ({"padding_idx": 3, "sparse": True}, (_ROWS,)),
    ],
)
@pytest.mark.filterwarnings("ignore:the graph takes only batches")
def test_bags_of_embeddings(options: dict[str, Any], inputs: Any, frontend: Any) -> None:
    gm = fxprune.capture(Bags(options).double().eval(), inputs, frontend=frontend)
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    masked = gm(*inputs)
    small = fxprune.shrink(gm)
    assert small.get_parameter("table.weight").shape == (20, 8)
    assert relative_error(small(*inputs), masked) < 1e-9


class Middle(nn.Module):
    def __init__(self, middle: Callable[[Any, Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.middle = nn.Linear(4, 8), nn.Linear(width, 2), middle
        self.register_buffer("times", torch.tensor([2, 1, 1, 3, 2]))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.middle(self, torch.tanh(self.a(x))))
        return y


_X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
_REPEATED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "method": lambda m, y: y.repeat_interleave(m.times, dim=0),
    "function": lambda m, y: torch.repeat_interleave(y, m.times, 0),
    "size": lambda m, y: torch.repeat_interleave(y, m.times, 0, output_size=9),
    "one for all": lambda m, y: y.repeat_interleave(torch.tensor([2]), dim=0),
    "twice": lambda m, y: y.repeat_interleave(m.times, dim=0).repeat_interleave(torch.tensor([2]), dim=0),
    "its numbers": lambda m, y: y[torch.repeat_interleave(m.times)],
}


@pytest.mark.filterwarnings("ignore:the graph takes only batches")
@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.parametrize("name", _REPEATED)
def test_rows_that_are_repeated_by_a_tensor(name: str, frontend: Any) -> None:
    check(Middle(_REPEATED[name]), (_X,), frontend, {"a.weight": (4, 4), "b.weight": (2, 4)})


@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_channels_that_are_repeated_by_a_tensor_stay(frontend: Any) -> None:
    model = Middle(lambda m, y: y[:, :5].repeat_interleave(m.times, dim=1), 9)
    gm = fxprune.capture(model.double().eval(), _X, frontend=frontend)
    reason = str(fxprune.analyze(gm).explain("a.weight", 0))
    assert "needs every position along this dimension (aten.repeat_interleave.Tensor" in reason


@pytest.mark.parametrize(
    "middle",
    [
        lambda m, y: torch.cov(y.T).mean(0),
        lambda m, y: torch.cov(y.T, correction=0, fweights=m.times, aweights=m.times / 2).sum(1),
        lambda m, y: y @ torch.corrcoef(y.mT),
    ],
)
def test_covariances_of_channels(middle: Any) -> None:
    check(Middle(middle), (_X,), "trace", {"a.weight": (4, 4), "b.weight": (2, 4)})


def test_a_single_channel_has_no_matrix_of_covariances() -> None:
    with pytest.warns(fxprune.PruneWarning, match="gives a number, and no matrix, for the single row that would be left"):
        small = fxprune.prune(Middle(lambda m, y: torch.cov(y.T).mean(0)).double().eval(), _X, 0.9)
    assert small.get_parameter("a.weight").shape == (8, 4)


def test_channels_that_covariances_run_over_stay() -> None:
    gm = fxprune.capture(Middle(lambda m, y: torch.cov(y), 5).double().eval(), _X, frontend="trace")
    assert "needs every position along this dimension (aten.cov.default" in str(fxprune.analyze(gm).explain("a.weight", 0))
