"""Small modules whose code says sizes and places in one way each; input (batch, 5, 6) unless it says otherwise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Body = Callable[[Any, Tensor], Any]

WIDTH = 12


class Net(nn.Module):
    """Computes what a function of it and of its input says."""

    def __init__(self, body: Body, layers: Mapping[str, Any]) -> None:
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            if isinstance(layer, Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


@dataclasses.dataclass(frozen=True)
class Case:
    """A module, how to prune it, and what is left.

    Attributes:
        body: computes the result from the module and its input.
        left: the shapes that parameters and buffers have afterwards.
        layers: makes what the module holds beside ``a``, a linear layer from 6 to 12, and ``b``, one from 12 to 3.
        options: those of the plan.
        printed: how modules print afterwards.
        shape: of one input without the batch.
        frontends: which can capture the module: symbolic tracing makes no tensors of sizes that it reads.
    """

    body: Body
    left: Mapping[str, tuple[int, ...]]
    layers: Callable[[], Mapping[str, Any]] = dict
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    printed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shape: tuple[int, ...] = (5, 6)
    frontends: tuple[str, ...] = ("trace", "export")

    def build(self) -> nn.Module:
        """Return the module; two calls give equal weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = {"a": nn.Linear(6, WIDTH), "b": nn.Linear(WIDTH, 3)} | dict(self.layers())
            return Net(self.body, {name: layer for name, layer in made.items() if layer is not None})

    def inputs(self, batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(batch)),)


OUTER, INNER, ALL = {"choose": "outer"}, {"choose": "inner"}, {"choose": "all"}
HALF = {"a.weight": (6, 6), "b.weight": (3, 6)}


def _linear(size: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"b": nn.Linear(size, 3)}


def _sum(parts: Any) -> Any:
    return parts[0] + parts[1].tanh() + parts[2]


def _heads(m: Any, x: Tensor) -> Any:
    """Let heads and their dimensions take part, by sizes read from the values."""
    h = m.a(x)
    batch, tokens, width = h.shape
    h = torch.tanh(h.reshape(batch, tokens, 3, width // 3)) * width**-0.5
    return m.b(h.flatten(2))


def _merged(m: Any, x: Tensor) -> Any:
    """Merge batch and heads, as old code does for bmm."""
    batch, tokens, width = m.a(x).shape
    q, k, v = (t.view(batch, tokens, 3, width // 3).transpose(1, 2) for t in (m.a(x), m.k(x), m.v(x)))
    q, k, v = (t.reshape(batch * 3, tokens, width // 3) for t in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(4)
    mixed = torch.bmm(scores.softmax(-1), v).view(batch, 3, tokens, width // 3).transpose(1, 2)
    return m.b(mixed.reshape(batch, tokens, width))


def _scaled_by_sizes(m: Any, x: Tensor) -> Any:
    """Take the scale of attention from the size of the keys."""
    q, k = m.a(x), m.k(x)
    scores = q @ k.transpose(1, 2) * k.shape[-1] ** -0.5 / q.size(2)
    return m.b(scores.softmax(-1) @ m.v(x))


def _sdpa(m: Any, x: Tensor) -> Any:
    q, k, v = (t.unflatten(-1, (3, 4)).transpose(1, 2) for t in (m.a(x), m.k(x), m.v(x)))
    return m.b(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _qkv() -> dict[str, Any]:
    return {"k": nn.Linear(6, WIDTH), "v": nn.Linear(6, WIDTH)}


def _attended(size: int) -> dict[str, tuple[int, ...]]:
    return {"a.weight": (size, 6), "k.weight": (size, 6), "v.weight": (size, 6), "b.weight": (3, size)}


VIEWS = {
    "view": Case(lambda m, x: m.b(m.a(x).view(x.size(0), 5, 3, 4).sin().view(x.size(0), -1, 12)), HALF, options=INNER),
    "view_outer": Case(
        lambda m, x: m.b(m.a(x).view(x.size(0), 5, 3, 4).sin().view(-1, 5, 12)),
        {"a.weight": (4, 6), "b.weight": (3, 4)},
        options=OUTER,
    ),
    "view_of_a_shape": Case(
        lambda m, x: (lambda h: m.b(h.view(h.shape[:-1] + (3, 4)).sin().view(h.shape)))(m.a(x)), HALF, options=INNER
    ),
    "view_of_a_shape_with_the_rest": Case(
        lambda m, x: (lambda h: m.b(h.view((-1,) + h.shape[1:-1] + (3, 4)).sin().view((-1,) + h.shape[1:])))(m.a(x)),
        HALF,
        options=INNER,
    ),
    "view_of_a_shape_with_the_rest_that_fits": Case(
        lambda m, x: m.b((m.a(x) + 1).view((-1,) + x.shape[1:-1] + (m.a(x).shape[-1],))), HALF
    ),
    "reshape_by_sizes_read": Case(_heads, HALF, options=INNER),
    "reshape_heads_by_sizes_read": Case(_heads, {"a.weight": (4, 6), "b.weight": (3, 4)}, options=OUTER),
    "reshape_both": Case(_heads, {"a.weight": (2, 6), "b.weight": (3, 2)}, options=ALL),
    "flatten_of_tokens": Case(
        lambda m, x: m.b(m.a(x).relu().flatten(1)), {"a.weight": (6, 6), "b.weight": (3, 30)}, _linear(60)
    ),
    "flatten_module": Case(
        lambda m, x: m.b(m.flat(m.a(x).relu())),
        {"a.weight": (6, 6), "b.weight": (3, 30)},
        lambda: {"b": nn.Linear(60, 3), "flat": nn.Flatten()},
    ),
    "unflatten": Case(lambda m, x: m.b(m.a(x).unflatten(-1, (3, 4)).sin().flatten(-2)), HALF, options=INNER),
    "unflatten_module": Case(
        lambda m, x: m.b(m.fold(m.a(x)).sin().flatten(-2)),
        HALF,
        lambda: {"fold": nn.Unflatten(2, (3, 4))},
        INNER,
        {"fold": "Unflatten(dim=2, unflattened_size=(3, 2))"},
    ),
    "permuted": Case(
        lambda m, x: m.b(m.a(x).reshape(-1, 5, 4, 3).permute(0, 3, 1, 2).sin().permute(0, 2, 1, 3).reshape(-1, 5, 12)),
        {"a.weight": (6, 6), "b.weight": (3, 6)},
        options=OUTER,
    ),
    "expand": Case(
        lambda m, x: m.b(m.a(x) + m.token.expand(x.shape[0], -1, 12)),
        HALF | {"token": (1, 5, 6)},
        lambda: {"token": nn.Parameter(torch.randn(1, 5, 12))},
    ),
    "expand_by_sizes_read": Case(
        lambda m, x: (lambda h: m.b(torch.cat([h, m.token.expand(h.size(0), 2, h.size(-1))], 1)))(m.a(x)),
        HALF | {"token": (1, 1, 6)},
        lambda: {"token": nn.Parameter(torch.randn(1, 1, 12))},
    ),
    "batch_merged_with_heads": Case(_merged, _attended(6), _qkv, INNER),
    "batch_merged_with_fewer_heads": Case(_merged, _attended(4), _qkv, OUTER),
    "scale_keeps_its_value": Case(_scaled_by_sizes, _attended(6), _qkv),
    "default_scale_of_attention": Case(_sdpa, _attended(6), _qkv, INNER),
    "heads_of_attention": Case(_sdpa, _attended(4), _qkv, OUTER),
}

PARTS = {
    "hsplit": Case(
        lambda m, x: m.b(torch.cat(torch.hsplit(m.a(x).flatten(0, 1), 4)[::-1], 1).unflatten(0, (-1, 5))),
        HALF,
        frontends=("trace",),
    ),
    "dsplit": Case(lambda m, x: m.b(torch.cat(m.a(x).dsplit(4)[::-1], 2)), HALF),
    "split": Case(lambda m, x: m.b(_sum(m.a(x).split(4, -1))), {"a.weight": (6, 6), "b.weight": (3, 2)}, _linear(4)),
    "split_by_sizes": Case(
        lambda m, x: (lambda p: m.b(p[0]) + m.c(p[1]))(m.a(x).split([4, 8], dim=2)),
        {"a.weight": (6, 6), "b.weight": (3, 2), "c.weight": (3, 4)},
        lambda: {"b": nn.Linear(4, 3), "c": nn.Linear(8, 3)},
    ),
    "split_by_sizes_read": Case(
        lambda m, x: (lambda h: m.b(_sum(torch.split(h, h.shape[-1] // 3, -1))))(m.a(x)),
        {"a.weight": (6, 6), "b.weight": (3, 2)},
        _linear(4),
    ),
    "split_unequal_units": Case(
        lambda m, x: (lambda p: m.b(p[0]) + m.c(p[1]) + m.d(p[2]))(m.a(x).split(5, -1)),
        {"b.weight": (3, 1), "c.weight": (3, 4), "d.weight": (3, 1), "a.weight": (6, 6)},
        lambda: {"b": nn.Linear(5, 3), "c": nn.Linear(5, 3), "d": nn.Linear(2, 3)},
        {"overrides": {"b": 0.8, "c": 0.2}},
    ),
    "chunk": Case(
        lambda m, x: (lambda p: m.b(p[0].sigmoid() * p[1]))(m.a(x).chunk(2, dim=-1)),
        {"a.weight": (6, 6), "b.weight": (3, 3)},
        _linear(6),
    ),
    "chunk_into_uneven_parts": Case(
        lambda m, x: (lambda p: m.b(p[0]) + m.c(p[1]))(torch.chunk(m.a(x), chunks=2, dim=-1)),
        {"a.weight": (6, 6), "b.weight": (3, 1), "c.weight": (3, 5)},
        lambda: {"b": nn.Linear(6, 3), "c": nn.Linear(6, 3)},
        {"overrides": {"b": 5, "c": 1}},
    ),
    "tensor_split": Case(
        lambda m, x: m.b(_sum(m.a(x).tensor_split(3, -1))), {"a.weight": (6, 6), "b.weight": (3, 2)}, _linear(4)
    ),
    "tensor_split_at": Case(
        lambda m, x: (lambda p: m.b(p[0]) + m.c(p[1]))(torch.tensor_split(m.a(x), (4,), dim=-1)),
        {"a.weight": (6, 6), "b.weight": (3, 2), "c.weight": (3, 4)},
        lambda: {"b": nn.Linear(4, 3), "c": nn.Linear(8, 3)},
    ),
    "unbind": Case(
        lambda m, x: (lambda p: m.b(p[0] * p[1].tanh() + p[2]))(m.a(x).unflatten(-1, (3, 4)).unbind(2)),
        {"a.weight": (6, 6), "b.weight": (3, 2)},
        _linear(4),
    ),
    "slices": Case(
        lambda m, x: (lambda h: m.b(h) + m.c(h[:, :, :4]) + m.d(h[..., -8:]))(m.a(x)),
        HALF | {"c.weight": (3, 2), "d.weight": (3, 4)},
        lambda: {"c": nn.Linear(4, 3), "d": nn.Linear(8, 3)},
    ),
    "slices_by_sizes_read": Case(
        lambda m, x: (lambda h: m.b(torch.cat([-h[..., h.shape[-1] // 2 :], h[..., : h.shape[-1] // 2]], -1) + h))(m.a(x)),
        HALF,
    ),
    "slice_with_a_step": Case(
        lambda m, x: (lambda h: m.b(h[..., ::2] * h[..., 1::2].tanh()))(m.a(x)),
        {"a.weight": (6, 6), "b.weight": (3, 3)},
        _linear(6),
    ),
    "slice_with_uneven_places": Case(
        lambda m, x: (lambda h: m.b(h) + m.c(h[..., ::3]))(m.a(x)),
        {"a.weight": (8, 6), "b.weight": (3, 8), "c.weight": (3, 3)},
        lambda: {"c": nn.Linear(4, 3)},
        {"overrides": {"a": 3, "c": 1}, "importance": lambda _, g: torch.arange(g.size) * 7 % 5},
    ),
    "narrow": Case(
        lambda m, x: (lambda h: m.b(h) + m.c(h.narrow(-1, 4, 8)) + m.d(torch.narrow(h, 2, 0, 4)))(m.a(x)),
        HALF | {"c.weight": (3, 4), "d.weight": (3, 2)},
        lambda: {"c": nn.Linear(8, 3), "d": nn.Linear(4, 3)},
    ),
    "select": Case(
        lambda m, x: (lambda h: m.b(h) + h.select(-1, 7)[..., None] + h[..., 9, None] + h[..., -1:])(m.a(x)),
        {"a.weight": (8, 6), "b.weight": (3, 8)},
        options={"amount": 4, "importance": lambda _, g: torch.arange(g.size)},
    ),
}

_ROLLED = torch.tensor([3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10])

PLACES = {
    "results_that_are_shapes": Case(
        lambda m, x: (lambda h: (m.b(h), h.shape, h.size()[1:], torch.zeros(h.shape)))(m.a(x)), HALF, frontends=("trace",)
    ),
    "steps_of_steps": Case(
        lambda m, x: (lambda h: m.b(h[..., 1::2][..., 1::2]) + m.c(h) + h[..., ::3].shape[-1])(m.a(x)),
        {"a.weight": (6, 6), "b.weight": (3, 1), "c.weight": (3, 6)},
        lambda: {"b": nn.Linear(3, 3), "c": nn.Linear(12, 3)},
    ),
    "zeros_of_a_size": Case(lambda m, x: (lambda h: m.b(h + torch.zeros(h.shape[2]) + torch.ones(h.size(2))))(m.a(x)), HALF),
    "roll": Case(lambda m, x: (lambda h: m.b(h + h.roll(4, -1)))(m.a(x)), HALF),
    "roll_twice": Case(lambda m, x: (lambda h: m.b(h + torch.roll(h, (1, 3, 1), (2, 2, 1))))(m.a(x)), HALF),
    "reshape_alias": Case(
        lambda m, x: (lambda h: m.b(h + torch.ops.aten._reshape_alias(h, [x.shape[0], 5, 12], [60, 12, 1])))(m.a(x)), HALF
    ),
    "roll_back": Case(lambda m, x: (lambda h: m.b(h + torch.roll(h, shifts=(1, -6), dims=(1, 2))))(m.a(x)), HALF),
    "flip": Case(lambda m, x: (lambda h: m.b(h + h.flip(-1)))(m.a(x)), HALF),
    "repeat": Case(lambda m, x: m.b(m.a(x).sin().repeat(1, 1, 2)), {"a.weight": (6, 6), "b.weight": (3, 12)}, _linear(24)),
    "repeat_interleave": Case(
        lambda m, x: m.b(m.a(x).repeat_interleave(2, dim=-1)), {"a.weight": (6, 6), "b.weight": (3, 12)}, _linear(24)
    ),
    "repeat_of_heads": Case(
        lambda m, x: m.b(m.a(x).unflatten(-1, (3, 4)).repeat_interleave(2, dim=2).sin().flatten(2)),
        {"a.weight": (6, 6), "b.weight": (3, 12)},
        _linear(24),
    ),
    "pad": Case(lambda m, x: m.b(F.pad(m.a(x), (2, 2))), {"a.weight": (6, 6), "b.weight": (3, 8)}, _linear(16)),
    "pad_to_a_wider_shortcut": Case(
        lambda m, x: (lambda h: m.b(F.pad(h, (0, 4)) + m.c(h)))(m.a(x).relu()),
        {"a.weight": (6, 6), "b.weight": (3, 8), "c.weight": (8, 6)},
        lambda: {"b": nn.Linear(16, 3), "c": nn.Linear(12, 16)},
    ),
    "pad_cuts": Case(lambda m, x: m.b(F.pad(m.a(x), (-4, 0))), {"b.weight": (3, 4)}, _linear(8)),
    "new_zeros": Case(lambda m, x: (lambda h: m.b(torch.cat([h.new_zeros(h.shape[0], 1, h.shape[2]), h], 1)))(m.a(x)), HALF),
    "zeros": Case(lambda m, x: m.b(m.a(x) + torch.zeros(x.shape[0], 5, 12, dtype=torch.double)), HALF, frontends=("export",)),
    "ones_by_sizes_read": Case(
        lambda m, x: (lambda h: m.b(h * torch.ones(h.size(0), 1, h.size(2), dtype=torch.double)))(m.a(x)),
        HALF,
        frontends=("export",),
    ),
    "index_list": Case(
        lambda m, x: (lambda h: m.b(h) + m.c(h[:, :, [0, 7, -1, 2]]))(m.a(x)),
        {"a.weight": (8, 6), "b.weight": (3, 8), "c.weight": (3, 4)},
        lambda: {"c": nn.Linear(4, 3)},
        frontends=("trace",),
    ),
    "index_nested_list": Case(
        lambda m, x: (lambda h: m.b(h) + m.c(h[..., [[0, 7], [-1, 2]]].flatten(-2)))(m.a(x)),
        {"a.weight": (8, 6), "b.weight": (3, 8), "c.weight": (3, 4)},
        lambda: {"c": nn.Linear(4, 3)},
        frontends=("trace",),
    ),
    "index_buffer": Case(
        lambda m, x: (lambda h: m.b(h + h[..., m.order]))(m.a(x)),
        {"a.weight": (8, 6), "index_table_0": (8,)},
        lambda: {"order": _ROLLED.clone()},
        {"amount": 1, "importance": lambda _, g: torch.arange(g.size)},
    ),
    "index_select": Case(
        lambda m, x: (lambda h: m.b(h + torch.index_select(h, 2, m.order)))(m.a(x)),
        {"a.weight": (8, 6), "index_table_0": (8,)},
        lambda: {"order": _ROLLED.clone()},
        {"amount": 1},
    ),
    "table_of_constants": Case(
        lambda m, x: m.b(m.a(x) * m.frequencies),
        HALF | {"frequencies": (6,)},
        lambda: {"frequencies": torch.linspace(1, 2, 12, dtype=torch.double)},
    ),
}
