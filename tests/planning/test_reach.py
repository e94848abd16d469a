"""How much of the parameters an amount reaches: where prune says that it is little, and where it does not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Kept(nn.Module):
    """A small part that can be pruned in front of a large part in which something needs all features."""

    def __init__(self, hidden: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.small, self.then = nn.Linear(4, 6), nn.Linear(6, 4)
        self.up, self.down = nn.Linear(4, 32), nn.Linear(32, 4)
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.hidden(self.up(x))) + self.then(self.small(x).relu())


class Chosen(nn.Module):
    """A weight of each sample is one of several, as those of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.gate = nn.Linear(4, 3), nn.Linear(3, 5)
        self.weight = nn.Parameter(torch.randn(5, 4, 9))
        self.last = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        picked = self.weight[self.gate(self.small(x).relu()).argmax(-1)].cumsum(-1)
        return self.last(torch.einsum("bi,bio->bo", x, picked))


def little() -> dict[str, tuple[nn.Module, str]]:
    return {
        "sum along features": (
            Kept(lambda y: y.cumsum(-1)),
            r"amount=0.5 leaves 9\d\.\d% of the model: it reaches 54 of 342 parameters that could lose units; of the others\n  "
            r"288, on up.weight\[0\] and 2 more, stay whole: needs every position along this dimension \(aten.cumsum.default "
            r"in node 'cumsum'\), at .*test_reach.py:\d+",
        ),
        "sorted features": (Kept(lambda y: y.sort(-1).values), r"stay whole: .*\(aten.sort"),
        "picked features": (Kept(lambda y: y.gather(-1, y.argsort(-1))), r"stay whole: .*\(aten.(argsort|gather)"),
        "weights by data": (
            Chosen(),
            r"reaches 30 of 233 parameters .*\n  198, on weight\[2\] and 1 more, stay whole: .*cumsum",
        ),
    }


@pytest.mark.parametrize("name", little())
def test_a_model_most_of_which_stays_whole_warns(name: str) -> None:
    model, message = little()[name]
    with pytest.warns(fxprune.PruneWarning, match=message) as caught:
        fxprune.prune(model.eval(), X, 0.5)
    assert [each.filename for each in caught] == [__file__]


@pytest.mark.parametrize(
    "options", [{"scope": "global"}, {"amount": 2}, {"overrides": {"small": 0.3}}, {"frontend": "export"}], ids=str
)
def test_it_warns_however_the_amount_is_meant(options: dict[str, Any]) -> None:
    with pytest.warns(fxprune.PruneWarning, match="of 342 parameters that could lose units"):
        fxprune.prune(Kept(lambda y: y.cumsum(-1)), X, **{"amount": 0.5, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"amount": 0.5, "ignore": ["up", "down"]},
        {"amount": 0.5, "ignore": (name for name in ("up", "down"))},
        {"amount": 0.5, "overrides": {"up": 0, "down": 0.0}},
        {"amount": 0.0, "overrides": {"small": 0.5}},
        {"max_params": 0.95},
        {"max_flops": 0.95, "scope": "global"},
    ],
    ids=["ignored", "ignored by an iterator", "kept by overrides", "amount 0", "budget", "budget of all groups"],
)
def test_what_nobody_asked_for_is_not_missed(options: dict[str, Any]) -> None:
    fxprune.prune(Kept(lambda y: y.cumsum(-1)), X, **options)


class Features(nn.Module):
    """Gives hidden states: the width of the table and of the blocks is that of the result."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 4), nn.Parameter(torch.randn(1, 9, 4))
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)
        self.unused = nn.Linear(30, 30)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.words(tokens) + self.places[:, : tokens.shape[1]])
        return x + self.down(self.up(x).relu())


class Ends(nn.Module):
    """Convolutions and recurrent layers between input and output, beside a narrow hidden layer."""

    def __init__(self, ends: nn.Module) -> None:
        super().__init__()
        self.ends, self.up, self.down = ends, nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = self.ends(self.down(self.up(x)) + x)
        return found[0] if isinstance(found, tuple) else found


def fixed() -> dict[str, tuple[nn.Module, Tensor]]:
    tokens = torch.randint(0, 50, (2, 5))
    return {
        "hidden states": (Features(), tokens),
        "windows": (Ends(nn.Conv1d(4, 6, 3)), torch.randn(2, 4, 4)),
        "gates": (Ends(nn.GRU(4, 7, batch_first=True)), torch.randn(2, 3, 4)),
        "one hidden layer": (nn.Sequential(nn.Linear(40, 2), nn.Linear(2, 40)), torch.randn(2, 40)),
        "a way around": (Ends(nn.Linear(4, 60)), X),
    }


@pytest.mark.parametrize("name", fixed())
def test_what_inputs_and_outputs_fix_is_not_missed(name: str) -> None:
    model, x = fixed()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxprune.PruneWarning)
        fxprune.prune(model.eval(), x, 0.5)


class Crossed(nn.Module):
    """Eight heads of five places, and a wide layer of which the same places are the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.out, self.wide = nn.Linear(4, 40), nn.Linear(40, 3), nn.Linear(200, 5)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.heads(x[:, :4]).unflatten(-1, (8, 5)) * self.wide(x)[:, None]
        return self.out(heads.flatten(1))


def test_groups_that_cross_those_pruned_are_named() -> None:
    x = torch.randn(2, 200)
    with pytest.warns(
        fxprune.PruneWarning, match=r"reaches 320 of 1,325 .*\n  1,005, on wide.weight\[0\] and 1 more.*: see choose"
    ):
        fxprune.prune(Crossed(), x, 0.5)
    fxprune.prune(Crossed(), x, 0.5, choose="inner")
    fxprune.prune(Crossed(), x, 0.5, ignore="wide")
