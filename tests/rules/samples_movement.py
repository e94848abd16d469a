"""Calls of operators that pick, order and join positions."""

from __future__ import annotations

import itertools

import torch

from tests.rules.sample import Context, Run, Sample, integers, real

_X = real(3, 6, 5)


def _bounds(c: Context, dim: int, *stops: int) -> list[int]:
    """Return places on an axis of operand 0, counted over its kept positions."""
    return [c.kept(0, dim, stop) for stop in stops]


def _pieces(c: Context, dim: int, *sizes: int) -> list[int]:
    """Return how many positions of consecutive pieces of an axis of operand 0 are kept."""
    ends = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    return [c.kept(0, dim, end) - c.kept(0, dim, start) for start, end in itertools.pairwise(ends)]


def _equal_pieces(*sizes: int) -> Run:
    """Return a call by a size or count of pieces, where only the sizes of the pieces say where they are."""

    def run(c: Context) -> list[torch.Tensor]:
        pieces = _pieces(c, 1, *sizes)
        if c.keeps is None:
            return c.call(c[0], sizes[0] if "split" in str(c.op) and "tensor" not in str(c.op) else len(sizes), 1)
        # A call by one size becomes one by many, as the graph is repaired.
        return [t.clone() for t in torch.ops.aten.split_with_sizes(c[0], pieces, 1)]

    return run


SAMPLES = [
    Sample("slice.Tensor slice_copy.Tensor", (_X,), lambda c: c.call(c[0], 1, *_bounds(c, 1, 1, 4))),
    Sample("slice.Tensor slice_copy.Tensor", (_X,), lambda c: c.call(c[0], 2)),
    Sample("slice.Tensor", (_X,), lambda c: c.call(c[0], -2, *(([-2, None]) if c.keeps is None else [c.kept(0, 1, 4), None]))),
    Sample("narrow narrow_copy", (_X,), lambda c: c.call(c[0], 1, c.kept(0, 1, 2), c.kept(0, 1, 5) - c.kept(0, 1, 2))),
    Sample(
        "split.sizes split_with_sizes unsafe_split_with_sizes split_with_sizes_copy",
        (_X,),
        lambda c: c.call(c[0], _pieces(c, 1, 1, 3, 2), 1),
    ),
    Sample(
        "split.Tensor unsafe_split.Tensor split_copy.Tensor chunk unsafe_chunk tensor_split.sections",
        (_X,),
        _equal_pieces(2, 2, 2),
    ),
    Sample("split.Tensor unsafe_split.Tensor split_copy.Tensor", (_X,), _equal_pieces(4, 2)),
    Sample("tensor_split.indices", (_X,), lambda c: c.call(c[0], _bounds(c, 1, 1, 4), 1)),
    Sample("flip", (_X,), lambda c: c.call(c[0], [0, -1])),
    Sample("roll", (_X,), lambda c: c.call(c[0], [c.kept(0, 1, 6) - c.kept(0, 1, 4)], [1])),
    Sample(
        "roll", (_X,), lambda c: c.call(c[0], [c.kept(0, 1, 6) - c.kept(0, 1, 4), -c.kept(0, 2, 1)], [1, -1]), note="two dims"
    ),
    Sample("roll", (real(6),), lambda c: c.call(c[0], [c.kept(0, 0, 6) - c.kept(0, 0, 4)]), note="flat"),
    Sample("roll", (real(2, 3),), lambda c: c.call(c[0], [1]), note="flattened"),
    Sample(
        "roll", (_X,), lambda c: c.call(c[0], [1, 2], [0, 0]) if c.keeps is None else _rolled_twice(c), note="one dim twice"
    ),
    Sample("select.int select_copy.int", (_X,), lambda c: c.call(c[0], 1, c.kept(0, 1, 2))),
    Sample("select.int", (_X,), lambda c: c.call(c[0], -1, -1)),
    Sample("unbind.int unbind_copy.int", (_X,), lambda c: c.call(c[0], 1)),
    Sample("cat concat concatenate", (real(3, 2, 5), real(3, 4, 5), real(3, 2, 5)), lambda c: c.call([c[0], c[1], c[2]], 1)),
    Sample("cat concat concatenate", (real(3, 2), real(0)), lambda c: c.call([c[0], c[1]], -1), note="an empty one"),
    Sample("stack", (real(3, 5), real(3, 5)), lambda c: c.call([c[0], c[1]], 1)),
    Sample("stack", (real(3, 5), real(3, 5), real(3, 5)), lambda c: c.call([c[0], c[1], c[2]], -1)),
    Sample("repeat tile", (real(3, 4),), lambda c: _repeated(c, 2, 1, 3)),
    Sample("repeat tile", (real(1, 4),), lambda c: _repeated(c, 5, 2)),
    Sample(
        "repeat_interleave.self_int", (real(3, 4),), lambda c: c.call(c[0], 3, 1) if c.keeps is None else _interleaved(c, 1)
    ),
    Sample("repeat_interleave.self_int", (real(3, 4),), lambda c: c.call(c[0], 2), note="flattened"),
    Sample("repeat_interleave.Tensor", (integers(4, 5),), lambda c: c.call(c[0])),
    Sample("constant_pad_nd", (real(3, 4),), lambda c: c.call(c[0], [*_padded(c, 1, 2, 4), *_padded(c, 0, 0, 3)])),
    Sample("constant_pad_nd", (real(3, 4),), lambda c: c.call(c[0], _padded(c, 1, 1, 4), 1.5)),
    Sample(
        "constant_pad_nd",
        (real(3, 6),),
        lambda c: c.call(c[0], [-c.kept(0, 1, 1), c.kept(0, 1, 4) - c.kept(0, 1, 6)]),
        note="cropped",
    ),
    Sample("pad", (real(3, 4),), lambda c: c.call(c[0], _padded(c, 1, 1, 4), "constant", 0.5)),
    Sample("pad", (real(3, 4),), lambda c: c.call(c[0], _padded(c, 1, 1, 4))),
    Sample("pad", (real(2, 3, 4),), lambda c: c.call(c[0], [2, 1], "reflect")),
    Sample("pad", (real(2, 3, 4),), lambda c: c.call(c[0], [-1, 1], "circular"), note="as wide as before"),
    Sample("unfold unfold_copy", (real(3, 7),), lambda c: c.call(c[0], 1, 4, 2)),
    Sample("slice_scatter", (_X, real(3, 3, 5)), lambda c: c.call(c[0], c[1], 1, *_bounds(c, 1, 1, 4))),
    Sample("select_scatter", (_X, real(3, 5)), lambda c: c.call(c[0], c[1], 1, c.kept(0, 1, 2))),
    Sample("tril triu tril_ triu_", (real(3, 4, 5),), lambda c: c.call(c[0], 1)),
    Sample("diagonal diagonal_copy", (real(3, 4, 5),), lambda c: c.call(c[0], 0, 0, 1)),
    Sample("diagonal diagonal_copy", (real(3, 4, 5),), lambda c: c.call(c[0], 1, 1, 2)),
    Sample("diag_embed", (real(3, 4),), lambda c: c.call(c[0])),
    Sample("cumsum cumprod cummax cummin logcumsumexp", (real(3, 4),), lambda c: c.call(c[0], 1)),
    Sample("sort argsort", (real(3, 4),), lambda c: c.call(c[0], 1)),
    Sample("sort.stable argsort.stable", (real(3, 4),), lambda c: c.call(c[0], stable=True, dim=0)),
]


def _padded(c: Context, dim: int, before: int, stop: int) -> list[int]:
    """Return the widths around an axis whose padded one begins with ``before`` positions; two follow at the end."""
    if c.results is None:
        return [before, 2]
    keep = c.results[0][dim]
    return [int(keep[:before].sum()), int(keep[before + stop :].sum())]


def _repeated(c: Context, *times: int) -> list[torch.Tensor]:
    """Repeat; a repetition that goes as a whole lessens the count."""
    if c.results is None:
        return c.call(c[0], list(times))
    missing = len(times) - c[0].dim()
    old = [1] * missing + list(c[0].shape)
    return c.call(c[0], [size // n for size, n in zip(c.out(), old, strict=True)])


def _interleaved(c: Context, dim: int) -> list[torch.Tensor]:
    return c.call(c[0], c.out()[dim] // c[0].shape[dim], dim)


def _rolled_twice(c: Context) -> list[torch.Tensor]:
    return c.call(c[0], [0], [0])
