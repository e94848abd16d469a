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
from fxprune.rules.parsing import broadcasting
from fxprune.rules.registry import register_aten


def _attention(call: Call) -> str:
    """Return the pattern of attention; heads of keys and values may serve several heads of queries."""
    query, key, value = (call.operand(i) for i in range(3))
    stack = [f"x{d}" for d in range(len(query) - 2)]
    shared = _shares_heads(query, key)
    q_stack = [*stack[:-1], "(h r)"] if shared else stack
    kv_stack = [*stack[:-1], "h"] if shared else stack
    # Flash kernels take keys and values of one width only.
    last = "e" if "flash" in call.op.name() else "v"
    names = (q_stack, kv_stack, kv_stack)
    q, k, v = (broadcasting(name, label.shape[:-2]) for name, label in zip(names, (query, key, value), strict=True))
    # A causal mask compares the numbers of positions, which change if positions before them go.
    rows, columns = ("!l", "!s") if call.arguments.get("is_causal") else ("l", "[s]")
    operands = f"{q} {rows} [e], {k} {columns} [e], {v} {columns} {last}"
    for mask in call.operands[3:]:
        operands += ", " + ("" if mask is None else broadcasting([*q_stack, "l", "s"], mask.shape))
    results = [f"{broadcasting(q_stack, call.shapes[0][:-2])} l {last}", *["_"] * (len(call.shapes) - 1)]
    return f"{operands} -> {', '.join(results)}"


def _zeros(call: Call) -> str:
    """Return how zeros travel: zero queries and keys give equal weights, so a result is zero only where values are."""
    # A row of flags that are all False divides zero by zero.
    flags = (label for label, tensor in call.given() if tensor.dtype == torch.bool)
    return "u" if any(Zero.ZERO in label.zeros for label in flags) else "2"


def _shares_heads(query: Label, key: Label) -> bool:
    """Tell whether each head of the keys serves several heads of the queries; a single head on either side broadcasts."""
    return len(query) > 2 and query.shape[-3] != key.shape[-3] and 1 not in (query.shape[-3], key.shape[-3])


def _shared_heads(call: Call) -> dict[str, int]:
    query, key = call.operand(0), call.operand(1)
    return {"h": key.shape[-3], "r": query.shape[-3] // key.shape[-3]} if _shares_heads(query, key) else {}


def _scale_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    """Return the scale of the head before pruning, which is the scale of the masked graph as well."""
    axis = call.operand(0).axes[-1]
    if call["scale"] is not None or left.size(axis) == axis.size:
        return {"scale": call["scale"]}
    return {"scale": 1.0 / math.sqrt(axis.size)}


def _work(call: Call) -> list[Work]:
    """Return the work of the scores, which repeats over the width of keys, and of the sums, over the width of values."""
    query, key, value = (call.operand(i).shape for i in range(3))
    pairs = math.prod(query[:-1]) * key[-2]
    of_scores, of_sums = (tuple(axis for name, axis in call.axes.items() if name != other) for other in "ve")
    return [Work(2 * pairs * query[-1], of_scores), Work(2 * pairs * value[-1], of_sums)]


_ATTENTION = Pattern(
    _attention,
    "...x (h r) l [e], ...x h [s] [e], ...x h [s] v -> ...x (h r) l v",
    zeros=_zeros,
    mixes={"e": "contract", "s": "softmax"},
    sizes=_shared_heads,
)
_TO_KEPT = OverKept(attention_to_kept, ("query", "key", "value", "attn_mask", "dropout_p"), ("scale", "enable_gqa"))

register_aten("scaled_dot_product_attention", OpCard(_ATTENTION, _scale_left, _TO_KEPT, _work))
register_aten(
    "_scaled_dot_product_attention_math _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_attention_math_for_mps _scaled_dot_product_fused_attention_overrideable",
    OpCard(_ATTENTION, _scale_left, work=_work),
)
