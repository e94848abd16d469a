"""Which of crossing groups are pruned: "outer" takes whole heads, however the code lays out and turns their places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from tests.plans import deps_of, rising

WIDTH, HEADS, PLACES = 6, 8, 4
_ANGLES = torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.1])


def steps_of_two(x: Tensor) -> Tensor:
    """Turn pairs of neighbours."""
    cos, sin = _ANGLES.cos().repeat_interleave(2, -1), _ANGLES.sin().repeat_interleave(2, -1)
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return x * cos + turned * sin


def unflattened(x: Tensor) -> Tensor:
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = _ANGLES.cos(), _ANGLES.sin()
    return torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), -1).flatten(3)


def complex_numbers(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(_ANGLES), _ANGLES)).flatten(3).type_as(x)


def halves(x: Tensor) -> Tensor:
    cos, sin = torch.cat((_ANGLES, _ANGLES), -1).cos(), torch.cat((_ANGLES, _ANGLES), -1).sin()
    one, two = x.chunk(2, -1)
    return x * cos + torch.cat((-two, one), -1) * sin


def a_part(x: Tensor) -> Tensor:
    """Turn the first two places of each head."""
    cos, sin = _ANGLES[:, :1].cos(), _ANGLES[:, :1].sin()
    one, two = x[..., 0:1], x[..., 1:2]
    return torch.cat((one * cos - two * sin, one * sin + two * cos, x[..., 2:]), -1)


ROTARY = (steps_of_two, unflattened, complex_numbers, halves, a_part)


class Attention(nn.Module):
    """An attention with rotary embeddings; ``layout`` says where queries, keys and values are in the projections."""

    def __init__(self, turn: Callable[[Tensor], Tensor], layout: str) -> None:
        super().__init__()
        self.turn, self.layout, self.shared = turn, layout, 2 if layout == "shared keys" else 1
        wide, few = HEADS * PLACES, HEADS // self.shared * PLACES
        if layout in ("separate", "shared keys"):
            self.q, self.k, self.v = nn.Linear(WIDTH, wide), nn.Linear(WIDTH, few), nn.Linear(WIDTH, few)
        else:
            self.qkv = nn.Linear(WIDTH, 3 * wide)
        self.out = nn.Linear(wide, WIDTH)

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each of shape (batch, heads, length, places)."""
        if self.layout in ("separate", "shared keys"):
            q, k, v = (each(x).unflatten(-1, (-1, PLACES)).transpose(1, 2) for each in (self.q, self.k, self.v))
            return q, k.repeat_interleave(self.shared, 1), v.repeat_interleave(self.shared, 1)
        y = self.qkv(x)
        if self.layout == "thirds":
            q, k, v = (part.unflatten(-1, (HEADS, PLACES)).transpose(1, 2) for part in y.chunk(3, -1))
        elif self.layout == "three outermost":
            q, k, v = y.unflatten(-1, (3, HEADS, PLACES)).permute(2, 0, 3, 1, 4)
        elif self.layout == "heads outermost":
            q, k, v = y.unflatten(-1, (HEADS, 3 * PLACES)).transpose(1, 2).chunk(3, -1)
        elif self.layout == "three innermost":
            q, k, v = y.unflatten(-1, (HEADS, PLACES, 3)).permute(4, 0, 2, 1, 3)
        else:
            raise ValueError(self.layout)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projected(x)
        mixed = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        return self.out(mixed.transpose(1, 2).flatten(2))


LAYOUTS = ("separate", "shared keys", "thirds", "three outermost", "heads outermost", "three innermost")
CASES = [(turn, "separate", "trace") for turn in ROTARY]
CASES += [(turn, layout, "trace") for turn in (steps_of_two, halves) for layout in LAYOUTS[1:]]
CASES += [(complex_numbers, "shared keys", "export"), (unflattened, "heads outermost", "export")]


def are_whole(places: Any, heads: int, each: int = PLACES) -> bool:
    """Tell whether positions are those of a number of heads, each with all of its places."""
    return len(places) == heads * each and bool((places.reshape(-1, each) % each == np.arange(each)).all())


@pytest.mark.parametrize(("turn", "layout", "frontend"), CASES)
def test_outer_takes_whole_heads(turn: Callable[[Tensor], Tensor], layout: str, frontend: Any) -> None:
    torch.manual_seed(0)
    model, x = Attention(turn, layout).eval(), torch.randn(2, 5, WIDTH)
    deps = fxprune.analyze(fxprune.capture(model, x, frontend=frontend))
    outer, inner, usual = (
        fxprune.plan(deps, 0.5, importance=rising, choose=choose).kept["out.weight", 1] for choose in ("outer", "inner", None)
    )
    assert are_whole(outer, HEADS // model.shared // 2, PLACES * model.shared)
    assert len(set((inner // PLACES).tolist())) == HEADS  # something of every head
    assert usual.tolist() == outer.tolist() or model.shared == 2  # four heads are too few


class Two(nn.Module):
    """Two attentions whose pairs are turned by the same table, so that they go together."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (Attention(self.turn, "separate") for _ in range(2))
        self.register_buffer("table", torch.randn(5, PLACES))

    def turn(self, x: Tensor) -> Tensor:
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        return x * self.table.cos() + turned * self.table.sin()

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


def test_heads_go_in_all_layers_before_pairs_that_layers_share() -> None:
    deps = deps_of(Two(), torch.randn(2, 5, WIDTH))
    assert any({m.parameter for m in g.members} >= {"one.q.weight", "two.q.weight"} for g in deps.groups)
    for ignore in ([], ["one.v"]):
        made = fxprune.plan(deps, 0.5, choose="outer", importance=rising, ignore=ignore)
        assert are_whole(made.kept["two.out.weight", 1], HEADS // 2)


def test_groups_of_channels_are_outside_of_channels() -> None:
    """Whichever is first in the tensors that the code reads."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.up, self.down = nn.Parameter(torch.randn(3)), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.down((self.up(x).unflatten(-1, (2, 3)) * self.gain).flatten(1))

    deps = deps_of(Mixed(), torch.randn(2, 4))
    outer = fxprune.plan(deps, 0.5, choose="outer", importance=rising)
    assert outer.kept["up.weight", 0].tolist() == [3, 4, 5]
    inner = fxprune.plan(deps, 1, choose="inner", importance=rising)
    assert inner.kept["up.weight", 0].tolist() == [1, 2, 4, 5]
