"""Calls of operators over places."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.rules.sample import Context, Operand, Run, Sample, between, real

_PLACES = (7, 5, 6)


def _over(rank: int) -> tuple[Operand, ...]:
    return (real(2, 3, *_PLACES[:rank]),)


def _places(ops: str, rank: int, *rest: Any, batch: bool = True) -> Sample:
    """Return a call on a tensor of batch, channels and that many places."""
    operands = _over(rank) if batch else (real(3, *_PLACES[:rank]),)
    return Sample(ops, operands, lambda c: c.call(c[0], *rest), note="" if batch else "one sample")


def _unfolded(ops: str, shape: tuple[int, ...], *rest: Any) -> Sample:
    def run(c: Context) -> list[Tensor]:
        return c.call(c[0], *rest, [2, 3], [1, 1], [0, 0], [1, 1])

    return Sample(ops, (real(*shape),), run)


def _fractional(rank: int) -> Run:
    return lambda c: c.call(c[0], [2] * rank, [3] * rank, c[1])


SAMPLES = [
    *[
        sample
        for n in (1, 2, 3)
        for batch in (True, False)
        for sample in (
            _places(f"avg_pool{n}d max_pool{n}d max_pool{n}d_with_indices", n, [2] * n, [1] * n, batch=batch),
            _places(f"adaptive_avg_pool{n}d adaptive_max_pool{n}d", n, [2] * n, batch=batch),
            _places(f"_adaptive_avg_pool{n}d", n, [2] * n, batch=batch),
            _places(f"reflection_pad{n}d replication_pad{n}d", n, [1, 2] * n, batch=batch),
        )
    ],
    *[_places(f"adaptive_avg_pool{n}d adaptive_max_pool{n}d", n, [1] * n) for n in (1, 2, 3)],
    *[Sample(f"fractional_max_pool{n}d", (*_over(n), between(0, 1, 2, 3, n)), _fractional(n)) for n in (2, 3)],
    *[
        sample
        for n, nearest, linear in (
            (1, "upsample_nearest1d _upsample_nearest_exact1d", "upsample_linear1d"),
            (
                2,
                "upsample_nearest2d _upsample_nearest_exact2d",
                "upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa",
            ),
            (2, "upsample_nearest2d", "_upsample_bicubic2d_aa _upsample_lanczos2d_aa"),
            (3, "upsample_nearest3d _upsample_nearest_exact3d", "upsample_trilinear3d"),
        )
        for vec, size in (("", 9), (".vec", 4))
        for sample in (
            _places(nearest.replace(" ", vec + " ") + vec, n, [size] * n, *([None] if vec else [])),
            _places(linear.replace(" ", vec + " ") + vec, n, [size] * n, False, *([None] if vec else [])),
        )
    ],
    Sample("pixel_shuffle", (real(2, 12, 3, 5),), lambda c: c.call(c[0], 2)),
    Sample("pixel_unshuffle", (real(2, 3, 4, 6),), lambda c: c.call(c[0], 2)),
    Sample("channel_shuffle native_channel_shuffle", (real(2, 12, 3, 5),), lambda c: c.call(c[0], c.size("g", 3))),
    _unfolded("im2col", (2, 3, 4, 5)),
    _unfolded("im2col", (3, 4, 5)),
    _unfolded("col2im", (2, 18, 9), [4, 5]),
    _unfolded("col2im", (18, 9), [4, 5]),
    Sample(
        "grid_sampler grid_sampler_2d",
        (real(2, 3, 4, 5), between(-1, 1, 2, 6, 7, 2)),
        lambda c: c.call(c[0], c[1], 0, 0, False),
    ),
    Sample(
        "grid_sampler grid_sampler_2d", (real(2, 3, 4, 5), between(-2, 2, 2, 6, 7, 2)), lambda c: c.call(c[0], c[1], 1, 1, True)
    ),
    Sample(
        "grid_sampler grid_sampler_3d",
        (real(2, 4, 3, 5, 6), between(-1, 1, 2, 6, 7, 8, 3)),
        lambda c: c.call(c[0], c[1], 0, 0, False),
    ),
    Sample("affine_grid_generator", (real(5, 2, 3),), lambda c: c.call(c[0], [c.out(5, 6, 7, 2)[0], 4, 6, 7], False)),
]
