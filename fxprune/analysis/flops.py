"""Floating-point operations of one call, as ``torch.utils.flop_counter`` counts them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import flop_counter

from fxprune.algebra.axes import Axis
from fxprune.rules.call import Call
from fxprune.rules.contraction import letter_name

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Work:
    """A number of operations, and the axes over which they repeat: half of an axis takes half of the work.

    Attributes:
        flops: the operations, two for each multiplication with its addition.
        axes: the axes, each once.
    """

    flops: int
    axes: tuple[Axis, ...]


def work_of(call: Call, result: Any) -> list[Work]:
    """Return the work of a call, in parts whose axes multiply; nothing for operators that torch does not count.

    Args:
        call: the call, after its rule was applied.
        result: what it returned, of fake tensors.
    """
    if (special := _SPECIAL.get(call.op._overloadpacket)) is not None:
        return special(call)
    count = flop_counter.flop_registry.get(call.op._overloadpacket)
    if count is None or not call.axes:
        return []
    arguments = [call.arguments[a.name] for a in call.op._schema.arguments if not a.kwarg_only]
    return [Work(int(count(*arguments, out_val=result)), tuple(call.axes.values()))]


def _product(call: Call) -> list[Work]:
    """The work of a sum of products: that of the matrix product over all its axes."""
    sizes = [axis.size for axis in call.axes.values()]
    flops = _matrix_product((math.prod(sizes[1:]), sizes[0]), (sizes[0], 1)) if sizes else 0
    return [Work(flops, tuple(call.axes.values()))]


@functools.lru_cache(maxsize=1 << 12)
def _matrix_product(one: tuple[int, int], other: tuple[int, int]) -> int:
    return int(flop_counter.mm_flop(one, other))


def _einsum(call: Call) -> list[Work]:
    """Operands are multiplied from left to right; what nothing behind needs any more is summed over on the way."""
    if len(call.operands) < 3 or "." in call["equation"]:
        return _product(call)
    inputs, _, output = call["equation"].replace(" ", "").partition("->")
    sides = inputs.split(",")
    letters, parts = set(sides[0]), []
    for place, side in enumerate(sides[1:], 1):
        letters |= set(side)
        axes = tuple(call.axes[letter_name(letter)] for letter in sorted(letters))
        parts.append(Work(2 * math.prod(axis.size for axis in axes), axes))
        letters &= set("".join(sides[place + 1 :])) | set(output)
    return parts


def _convolution(call: Call) -> list[Work]:
    x, w = call.operand(0).shape, call.operand(1).shape
    batched = len(x) == len(w)
    transposed = "transpose" in call.op.name()
    out = call.shapes[0] if batched else (1, *call.shapes[0])
    flops = flop_counter.conv_flop_count(list(x if batched else (1, *x)), list(w), list(out), transposed=transposed)
    return [Work(int(flops), tuple(call.axes.values()))]


def _attention(call: Call) -> list[Work]:
    """Scores repeat over the dimensions of the keys, the sums over those of the values."""
    query, key, value = (call.operand(i).shape for i in range(3))
    stack = math.prod(query[:-2])
    scores = flop_counter.bmm_flop((stack, query[-2], query[-1]), (stack, query[-1], key[-2]))
    sums = flop_counter.bmm_flop((stack, query[-2], key[-2]), (stack, key[-2], value[-1]))
    with_values = tuple(axis for name, axis in call.axes.items() if name != "e")
    with_keys = tuple(axis for name, axis in call.axes.items() if name != "v")
    return [Work(int(scores), with_keys), Work(int(sums), with_values)]


def _recurrent(call: Call) -> list[Work]:
    """Every weight is one matrix product at each step."""
    steps = math.prod(call.shapes[0][:-1])
    weights = [label for label in call.operands[2:] if label is not None and len(label) == 2]
    return [Work(_matrix_product((steps, w.shape[1]), (w.shape[1], w.shape[0])), w.axes) for w in weights]


_SPECIAL: dict[Any, Callable[[Call], list[Work]]] = {
    packet: work
    for work, packets in (
        (_product, (aten.linear, aten.matmul, aten.bilinear, aten.mv, aten.dot, aten.inner, aten.outer)),
        (_einsum, (aten.einsum,)),
        (_convolution, (aten.conv1d, aten.conv2d, aten.conv3d)),
        (_convolution, (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)),
        (_attention, (aten.scaled_dot_product_attention, aten._scaled_dot_product_attention_math)),
        (_attention, (aten._scaled_dot_product_flash_attention_for_cpu,)),
        (_recurrent, (aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)),
    )
    for packet in packets
}
