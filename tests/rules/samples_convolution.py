"""Calls of convolutions: of every dimension, plain, grouped, depthwise, transposed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.rules.sample import Context, Operand, Sample, real

_PLACES = (5, 6, 4)


def _operands(
    rank: int, groups: int, channels: tuple[int, int], *, transposed: bool, bias: bool, batch: bool = True
) -> tuple[Operand, ...]:
    """Return input, weight and bias; ``channels`` counts those that go in and out, each in one group."""
    inside, outside = channels
    first, second = (groups * inside, outside) if transposed else (groups * outside, inside)
    given = [real(*([2] if batch else []), groups * inside, *_PLACES[:rank]), real(first, second, *(3, 2, 2)[:rank])]
    return (*given, real(groups * outside)) if bias else tuple(given)


def _sample(ops: str, groups: int, operands: tuple[Operand, ...], note: str = "", **options: Any) -> Sample:
    def run(c: Context) -> list[Tensor]:
        return c.call(*c.tensors, groups=c.size("g", groups), **options)

    return Sample(ops, operands, run, note=note)


def _general(groups: int, operands: tuple[Operand, ...], *, transposed: bool) -> Sample:
    """Return a call of the operator that all convolutions end in."""
    rank = len(operands[0].shape) - 2

    def run(c: Context) -> list[Tensor]:
        bias = c[2] if len(operands) > 2 else None
        lists = [1] * rank, [0] * rank, [1] * rank
        rest = [False, False, False, False] if "_convolution.default" in str(c.op) else []
        return c.call(c[0], c[1], bias, *lists, transposed, [0] * rank, c.size("g", groups), *rest)

    return Sample("convolution _convolution", operands, run, note=f"{groups} groups" + (", transposed" if transposed else ""))


SAMPLES = [
    *[
        _sample(
            f"conv{rank}d conv{rank}d.padding",
            groups,
            _operands(rank, groups, channels, transposed=False, bias=bias, batch=batch),
        )
        for rank in (1, 2, 3)
        for groups, channels, bias, batch in (
            (1, (3, 4), True, True),
            (1, (3, 4), False, False),
            (3, (2, 4), True, True),
            (3, (1, 1), True, True),
            (3, (1, 2), False, False),
        )
    ],
    *[
        _sample(op, groups, _operands(rank, groups, channels, transposed=True, bias=bias, batch=batch))
        for rank, op in ((1, "conv_transpose1d"), (2, "conv_transpose2d.input"), (3, "conv_transpose3d.input"))
        for groups, channels, bias, batch in ((1, (3, 4), True, True), (3, (2, 4), True, False), (3, (1, 1), False, True))
    ],
    _sample(
        "conv2d",
        1,
        _operands(2, 1, (3, 4), transposed=False, bias=True),
        "options",
        stride=[2, 1],
        padding=[1, 0],
        dilation=[2, 1],
    ),
    _sample("conv2d.padding", 1, _operands(2, 1, (3, 4), transposed=False, bias=True), "same", padding="same"),
    *[
        _general(groups, _operands(2, groups, channels, transposed=transposed, bias=bias), transposed=transposed)
        for transposed in (False, True)
        for groups, channels, bias in ((1, (3, 4), True), (3, (2, 4), False), (3, (1, 1), True))
    ],
]
