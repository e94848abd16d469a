"""Calls of normalisations, in every spelling that ATen has."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from tests.rules.sample import Context, Operand, Sample, between, real
from tests.rules.samples_reductions import moments, weights

_EPS = 1e-3


def _statistics(channels: int) -> tuple[Operand, ...]:
    """Return weight, bias, running mean and running variance."""
    return real(channels), real(channels), real(channels), between(0.5, 2, channels)


def _batch(ops: str, places: tuple[int, ...], *rest: Any, given: tuple[bool, ...] = (True, True, True, True)) -> Sample:
    channels = 3
    operands = [real(4, channels, *places), *(o for o, here in zip(_statistics(channels), given, strict=True) if here)]

    def run(c: Context) -> list[Tensor]:
        tensors = iter(c.tensors[1:])
        affine = [next(tensors) if here else None for here in given]
        return c.call(c[0], *affine, *rest)

    def reference(c: Context, keep: list[list[Tensor]]) -> list[Tensor]:
        return _batch_reference(c, keep, [c[1], c[2]] if given[0] else None)

    return Sample(ops, tuple(operands), run, None if given[2] else reference, note=f"with {rest}")


def _batch_reference(c: Context, keep: list[list[Tensor]], affine: list[Tensor] | None) -> list[Tensor]:
    """Normalise by the statistics of the kept samples and places of each channel."""
    rank = c[0].dim()
    mean, var = moments(c[0], keep[0], [0, *range(2, rank)])
    y = (c[0] - mean) / (var + _EPS).sqrt()
    if affine:
        y = y * affine[0].reshape(_over_channels(y, rank)) + affine[1].reshape(_over_channels(y, rank))
    return [y, *([mean.flatten(), (1 / (var + _EPS).sqrt()).flatten()] if "native" in str(c.op) else [])]


def _over_channels(x: Tensor, rank: int) -> tuple[int, ...]:
    return (-1, *[1] * (rank - 2))


def _group(ops: str, groups: int, channels: int, places: tuple[int, ...], *, affine: bool = True) -> Sample:
    operands = (real(2, groups * channels, *places), *([real(groups * channels), real(groups * channels)] if affine else []))

    def run(c: Context) -> list[Tensor]:
        n, kept = c[0].shape[:2]
        scale = (c[1], c[2]) if affine else (None, None)
        count = c.size("g", groups)
        if "native" in str(c.op):
            return c.call(c[0], *scale, n, kept, math.prod(places), count, _EPS)
        return c.call(c[0], count, *scale, _EPS)

    def reference(c: Context, keep: list[list[Tensor]]) -> list[Tensor]:
        x = c[0].reshape(2, groups, channels, -1)
        w = keep[0][1].reshape(1, groups, channels, 1).expand_as(x)
        count = w.sum((2, 3), keepdim=True).clamp(min=1)  # a group may go as a whole
        mean = (x * w).sum((2, 3), keepdim=True) / count
        var = ((x - mean) ** 2 * w).sum((2, 3), keepdim=True) / count
        y = ((x - mean) / (var + _EPS).sqrt()).reshape(c[0].shape)
        if affine:
            y = y * c[1].reshape(_over_channels(y, y.dim())) + c[2].reshape(_over_channels(y, y.dim()))
        native = [mean.reshape(2, groups), (1 / (var + _EPS).sqrt()).reshape(2, groups)]
        return [y, *(native if "native" in str(c.op) else [])]

    return Sample(ops, operands, run, reference)


def _layer(ops: str, shape: tuple[int, ...], last: int, *, affine: int = 2) -> Sample:
    """Return a layer norm over the last dimensions, with that many of weight and bias."""
    inner = shape[len(shape) - last :]
    dims = list(range(len(shape) - last, len(shape)))

    def run(c: Context) -> list[Tensor]:
        scale = [c[1] if affine > 0 else None, c[2] if affine > 1 else None]
        return c.call(c[0], list(c[0].shape[-last:]), *scale, _EPS)

    def reference(c: Context, keep: list[list[Tensor]]) -> list[Tensor]:
        mean, var = moments(c[0], keep[0], dims)
        y = (c[0] - mean) / (var + _EPS).sqrt()
        y = y * c[1] if affine > 0 else y
        y = y + c[2] if affine > 1 else y
        return [y, *([mean, 1 / (var + _EPS).sqrt()] if "native" in str(c.op) else [])]

    return Sample(ops, (real(*shape), *[real(*inner)] * affine), run, reference)


def _rms(shape: tuple[int, ...], last: int, *, affine: bool) -> Sample:
    dims = list(range(len(shape) - last, len(shape)))

    def run(c: Context) -> list[Tensor]:
        return c.call(c[0], list(c[0].shape[-last:]), c[1] if affine else None, _EPS)

    def reference(c: Context, keep: list[list[Tensor]]) -> list[Tensor]:
        w = weights(keep[0], dims, c[0].shape)
        scale = 1 / ((c[0] ** 2 * w).sum(dims, keepdim=True) / w.sum(dims, keepdim=True) + _EPS).sqrt()
        y = c[0] * scale * (c[1] if affine else 1)
        return [y, *([scale] if "fused" in str(c.op) else [])]

    return Sample("rms_norm _fused_rms_norm", (real(*shape), *([real(*shape[-last:])] if affine else [])), run, reference)


SAMPLES = [
    *[
        sample
        for places in ((), (5, 6))
        for training in (True, False)
        for sample in (
            _batch("batch_norm", places, training, 0.1, _EPS, False),
            _batch("batch_norm", places, training, 0.1, _EPS, False, given=(False, False, True, True)),
            _batch("_batch_norm_impl_index", places, training, 0.1, _EPS, False),
            _batch(
                "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional", places, training, 0.1, _EPS
            ),
        )
    ],
    _batch("batch_norm", (5,), True, 0.1, _EPS, False, given=(False, False, False, False)),
    _batch("batch_norm", (5,), True, 0.1, _EPS, False, given=(True, True, False, False)),
    _batch("_native_batch_norm_legit_no_training _batch_norm_no_update", (5, 6), 0.1, _EPS),
    _batch("_batch_norm_with_update _batch_norm_with_update_functional", (5, 6), 0.1, _EPS),
    Sample(
        "_native_batch_norm_legit.no_stats",
        (real(4, 3, 5), real(3), real(3)),
        lambda c: c.call(c[0], c[1], c[2], True, 0.1, _EPS),
        lambda c, keep: _batch_reference(c, keep, [c[1], c[2]]),
    ),
    _batch("instance_norm", (5, 6), True, 0.1, _EPS, False),
    _batch("instance_norm", (5, 6), False, 0.1, _EPS, False),
    _batch("instance_norm", (5,), True, 0.1, _EPS, False, given=(False, False, False, False)),
    _group("group_norm native_group_norm", 3, 4, (5,)),
    _group("group_norm native_group_norm", 3, 4, (), affine=False),
    _group("group_norm native_group_norm", 1, 4, (5, 6)),
    _layer("layer_norm native_layer_norm", (2, 3, 5), 1),
    _layer("layer_norm native_layer_norm", (2, 3, 5), 2),
    _layer("layer_norm native_layer_norm", (2, 5), 1, affine=1),
    _layer("layer_norm native_layer_norm", (2, 5), 1, affine=0),
    _rms((2, 3, 5), 1, affine=True),
    _rms((2, 3, 5), 2, affine=True),
    _rms((2, 5), 1, affine=False),
    Sample("_weight_norm", (real(3, 4, 5), real(3, 1, 1)), lambda c: c.call(c[0], c[1], 0)),
    Sample("_weight_norm", (real(3, 4, 5), real(1, 1, 5)), lambda c: c.call(c[0], c[1], 2)),
    Sample("_weight_norm", (real(3, 4), real(1)), lambda c: c.call(c[0], c[1], -1), note="over all dimensions"),
    Sample("_weight_norm_interface", (real(3, 4, 5), real(3, 1, 1)), lambda c: c.call(c[0], c[1], 0)),
    Sample("_weight_norm_interface", (real(3, 4, 5), real(1, 1, 5)), lambda c: c.call(c[0], c[1], 2)),
]
