"""Calls of operators that pick positions by the values of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.rules.sample import Context, Run, Sample, exactly, flags, integers, real

_X = real(3, 6, 5)


def _index(c: Context, *indices: tuple[int, int] | None) -> list[Tensor]:
    """Index operand 0; each index is an operand and the dimension that it counts in."""
    return c.call(c[0], [None if i is None else c.numbered(i[0], 0, i[1]) for i in indices])


def _put(c: Context, *indices: int | None) -> list[Tensor]:
    return c.call(c[0], [None if i is None else c[i] for i in indices], c.tensors[-1])


def _bag(mode: int) -> Run:
    return lambda c: c.call(c[0], c[1], c[2], False, mode)


_ROWS = exactly(torch.tensor([1, 0, 2]))

SAMPLES = [
    Sample("embedding", (real(7, 3), integers(7, 2, 4)), lambda c: c.call(c[0], c.numbered(1, 0, 0))),
    Sample("embedding", (real(7, 3), integers(7, 2, 4)), lambda c: c.call(c[0], c.numbered(1, 0, 0), 1), note="padding index"),
    *[
        Sample(
            "embedding_bag _embedding_bag _embedding_bag_forward_only",
            (real(7, 3), integers(7, 6), exactly(torch.tensor([0, 2]))),
            _bag(mode),
            note=f"mode {mode}",
        )
        for mode in (0, 1, 2)
    ],
    Sample(
        "embedding_bag _embedding_bag _embedding_bag_forward_only",
        (real(7, 3), integers(7, 6), exactly(torch.tensor([0, 2])), real(6)),
        lambda c: c.call(c[0], c[1], c[2], False, 0, False, c[3]),
        note="weighted",
    ),
    Sample(
        "embedding_bag.padding_idx",
        (real(7, 3), integers(7, 6), exactly(torch.tensor([0, 2]))),
        lambda c: c.call(c[0], c[1], c[2], False, 0, False, None, False, 1),
    ),
    Sample("index_select", (_X, integers(6, 4)), lambda c: c.call(c[0], 1, c.numbered(1, 0, 1))),
    Sample(
        "index_select",
        (_X, exactly(torch.tensor([5, 4, 3, 2, 1, 0]))),
        lambda c: c.call(c[0], 1, c.numbered(1, 0, 1)),
        note="all",
    ),
    Sample("index.Tensor _unsafe_index.Tensor", (_X, integers(6, 4)), lambda c: _index(c, None, (1, 1))),
    Sample("index.Tensor _unsafe_index.Tensor", (_X, integers(3, 2, 4)), lambda c: _index(c, (1, 0))),
    Sample(
        "index.Tensor", (_X, exactly(torch.tensor([[0, 1, 2], [3, 4, 5]]))), lambda c: _index(c, None, (1, 1)), note="a table"
    ),
    Sample("index.Tensor _unsafe_index.Tensor", (_X, integers(3, 4), integers(6, 4)), lambda c: _index(c, (1, 0), (2, 1))),
    Sample("index.Tensor", (_X, integers(3, 2, 1), integers(6, 4)), lambda c: _index(c, (1, 0), (2, 1))),
    Sample("index.Tensor", (_X, integers(3, 4), integers(5, 4)), lambda c: _index(c, (1, 0), None, (2, 2)), note="apart"),
    Sample("index.Tensor", (_X, exactly(torch.tensor([True, False, True]))), lambda c: c.call(c[0], [c[1]]), note="flags"),
    Sample(
        "index.Tensor", (_X, exactly(torch.arange(18).reshape(3, 6) % 2 == 0)), lambda c: c.call(c[0], [c[1]]), note="flags"
    ),
    Sample("gather", (real(3, 6), integers(6, 3, 4)), lambda c: c.call(c[0], 1, c.numbered(1, 0, 1))),
    Sample("gather", (real(3, 6), integers(6, 2, 4)), lambda c: c.call(c[0], 1, c.numbered(1, 0, 1)), note="fewer rows"),
    Sample("take_along_dim", (real(3, 6), integers(6, 3, 4)), lambda c: c.call(c[0], c.numbered(1, 0, 1), 1)),
    Sample("take_along_dim", (real(3, 6), integers(18, 4)), lambda c: c.call(c[0], c[1]), note="flattened"),
    Sample("take_along_dim", (real(3, 6), integers(6, 1, 4)), lambda c: c.call(c[0], c[1], 1), note="broadcast"),
    Sample(
        "scatter.src scatter_add scatter_add_",
        (real(3, 6), integers(6, 3, 4), real(3, 4)),
        lambda c: c.call(c[0], 1, c[1], c[2]),
    ),
    Sample(
        "scatter.src scatter_add",
        (real(3, 6), integers(6, 2, 4), real(3, 5)),
        lambda c: c.call(c[0], 1, c[1], c[2]),
        note="parts",
    ),
    Sample("scatter.value", (real(3, 6), integers(6, 3, 4)), lambda c: c.call(c[0], 1, c[1], 1.5)),
    Sample("scatter_reduce.two", (real(3, 6), integers(6, 3, 4), real(3, 4)), lambda c: c.call(c[0], 1, c[1], c[2], "amax")),
    Sample("scatter.reduce", (real(3, 6), integers(6, 3, 4), real(3, 4)), lambda c: c.call(c[0], 1, c[1], c[2], reduce="add")),
    Sample("index_put index_put_ _unsafe_index_put", (_X, integers(6, 4), real(3, 4, 5)), lambda c: _put(c, None, 1)),
    Sample("index_put index_put_", (_X, _ROWS, real(6, 5)), lambda c: _put(c, 1)),
    Sample("masked_scatter", (real(3, 4), flags(3, 4), real(12)), lambda c: c.call(*c.tensors)),
    Sample("index_add index_copy", (_X, exactly(torch.tensor([4, 0])), real(3, 2, 5)), lambda c: c.call(c[0], 1, c[1], c[2])),
    Sample("index_fill.int_Scalar", (_X, exactly(torch.tensor([4, 0]))), lambda c: c.call(c[0], 1, c[1], 1.5)),
    Sample("bucketize.Tensor", (real(3, 4), exactly(torch.tensor([-1.0, 0.0, 1.0]).double())), lambda c: c.call(c[0], c[1])),
    Sample("searchsorted.Tensor", (exactly(torch.tensor([-1.0, 0.0, 1.0]).double()), real(4, 5)), lambda c: c.call(c[0], c[1])),
    Sample("one_hot", (integers(5, 3, 4),), lambda c: c.call(c[0], 5)),
]
