"""Scaled dot product attention in all of its ATen forms."""

from __future__ import annotations

import math
from typing import Any

import torch

from fxprune.functional.over_kept import attention_to_kept
from fxprune.rules.call import Call
from fxprune.rules.card import OpCard, OverKept, PositionsLeft, Work
from fxprune.rules.labels import Label, Zero
from fxprune.rules.notation import Pattern
from fxprune.rules.registry import overloads, register


def _attention(call: Call) -> str:
    """Return the pattern of attention; heads of keys and values may serve several heads of queries."""
    query, key, value = (call.operand(i) for i in range(3))
    stack = [f"x{d}" for d in range(len(query) - 2)]
    shared = _shares_heads(query, key)
    q_stack = [*stack[:-1], "(h r)"] if shared else stack
    kv_stack = [*stack[:-1], "h"] if shared else stack

    def side(names: list[str], sizes: tuple[int, ...]) -> str:
        return " ".join("1" if size == 1 else name for name, size in zip(names, sizes, strict=True))

    # The fused kernels for equal heads want them equal afterwards, too.
    last = "e" if "flash" in call.op.name() else "v"
    q, k, v = side(q_stack, query.shape[:-2]), side(kv_stack, key.shape[:-2]), side(kv_stack, value.shape[:-2])
    # With a causal mask each position knows its number.
    rows, columns = ("!l", "!s") if call.arguments.get("is_causal") else ("l", "[s]")
    operands = f"{q} {rows} [e], {k} {columns} [e], {v} {columns} {last}"
    for mask in call.operands[3:]:
        operands += ", " + (_mask(q_stack, mask.shape) if mask is not None else "")
    results = [f"{side(q_stack, call.shapes[0][:-2])} l {last}", *["_"] * (len(call.shapes) - 1)]
    return f"{operands} -> {', '.join(results)}"


def _mask(stack: list[str], shape: tuple[int, ...]) -> str:
    names = [*stack, "l", "s"][len(stack) + 2 - len(shape) :]
    return " ".join("1" if size == 1 else name for name, size in zip(names, shape, strict=True))


def _zeros(call: Call) -> str:
    """Return how zeros travel: scores of zeros are equal, so that only zero values give zero."""
    for argument in ("attn_mask", "attn_bias"):
        mask = call.arguments.get(argument)
        if mask is not None and mask.dtype == torch.bool:
            label = next(label for label in call.operands[3:] if label is not None)
            if Zero.ZERO in label.zeros:
                return "u"  # where nothing may be looked at, scores are divided by zero
    return "2"


def _shares_heads(query: Label, key: Label) -> bool:
    """Tell whether each head of the keys serves several of the queries; a single head on either side just broadcasts."""
    return len(query) > 2 and query.shape[-3] != key.shape[-3] and 1 not in (query.shape[-3], key.shape[-3])


def _shared_heads(call: Call) -> dict[str, int]:
    query, key = call.operand(0), call.operand(1)
    if _shares_heads(query, key):
        return {"h": key.shape[-3], "r": query.shape[-3] // key.shape[-3]}
    return {}


def _scale_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    """Return the scale, which stays that of the whole head, as a mask leaves it."""
    axis = call.operand(0).axes[-1]
    if call["scale"] is not None or left.size(axis) == axis.size:
        return {"scale": call["scale"]}
    return {"scale": 1.0 / math.sqrt(axis.size)}


def _work(call: Call) -> list[Work]:
    """Return the work: scores repeat over the dimensions of the keys, the sums over those of the values."""
    query, key, value = (call.operand(i).shape for i in range(3))
    pairs = math.prod(query[:-1]) * key[-2]
    with_values = tuple(axis for name, axis in call.axes.items() if name != "e")
    with_keys = tuple(axis for name, axis in call.axes.items() if name != "v")
    return [Work(2 * pairs * query[-1], with_keys), Work(2 * pairs * value[-1], with_values)]


_ATTENTION = Pattern(
    _attention,
    "...x (h r) l [e], ...x h [s] [e], ...x h [s] v -> ...x (h r) l v",
    zeros=_zeros,
    mixes={"e": "contract", "s": "softmax"},
    sizes=_shared_heads,
)
_TO_KEPT = OverKept(
    attention_to_kept,
    ("query", "key", "value", "attn_mask", "dropout_p"),
    ("scale", "enable_gqa"),
)

register(overloads("scaled_dot_product_attention"), OpCard(_ATTENTION, _scale_left, _TO_KEPT, _work))
register(
    overloads(
        "_scaled_dot_product_attention_math _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_attention_math_for_mps _scaled_dot_product_fused_attention_overrideable"
    ),
    OpCard(_ATTENTION, _scale_left, work=_work),
)
