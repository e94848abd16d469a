"""Scaled dot product attention in all of its ATen forms."""

from __future__ import annotations

from fxprune.rules.call import Call
from fxprune.rules.notation import Pattern
from fxprune.rules.registry import overloads, register


def _attention(call: Call) -> str:
    """Return the pattern of attention; heads of keys and values may serve several heads of queries."""
    query, key, value = (call.operand(i) for i in range(3))
    stack = [f"x{d}" for d in range(len(query) - 2)]
    shared = len(query) > 2 and query.shape[-3] != key.shape[-3]
    q_stack = [*stack[:-1], "(h r)"] if shared else stack
    kv_stack = [*stack[:-1], "h"] if shared else stack

    def side(names: list[str], sizes: tuple[int, ...]) -> str:
        return " ".join("1" if size == 1 else name for name, size in zip(names, sizes, strict=True))

    q, k, v = side(q_stack, query.shape[:-2]), side(kv_stack, key.shape[:-2]), side(kv_stack, value.shape[:-2])
    # With a causal mask each position knows its number.
    rows, columns = ("!l", "!s") if call.arguments.get("is_causal") else ("l", "[s]")
    operands = f"{q} {rows} [e], {k} {columns} [e], {v} {columns} v"
    for mask in call.operands[3:]:
        operands += ", " + (_mask(q_stack, mask.shape) if mask is not None else "")
    results = [f"{side(q_stack, call.shapes[0][:-2])} l v", *["_"] * (len(call.shapes) - 1)]
    return f"{operands} -> {', '.join(results)}"


def _mask(stack: list[str], shape: tuple[int, ...]) -> str:
    names = [*stack, "l", "s"][len(stack) + 2 - len(shape) :]
    return " ".join("1" if size == 1 else name for name, size in zip(names, shape, strict=True))


def _shared_heads(call: Call) -> dict[str, int]:
    query, key = call.operand(0), call.operand(1)
    if len(query) > 2 and query.shape[-3] != key.shape[-3]:
        return {"h": key.shape[-3], "r": query.shape[-3] // key.shape[-3]}
    return {}


register(
    overloads(
        "scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention "
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_attention_math_for_mps _scaled_dot_product_fused_attention_overrideable"
    ),
    Pattern(
        _attention,
        "...x (h r) l [e], ...x h [s] [e], ...x h [s] v -> ...x (h r) l v",
        # Scores of zeros are equal, so that only zero values give zero.
        zeros="2",
        mixes={"e": "contract", "s": "softmax"},
        sizes=_shared_heads,
    ),
)
