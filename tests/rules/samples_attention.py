"""Calls of scaled dot product attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.rules.sample import Context, Operand, Sample, flags, real

_MATH = "scaled_dot_product_attention _scaled_dot_product_attention_math"
_CPU = "_scaled_dot_product_flash_attention_for_cpu"


def _attention(
    ops: str, query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], mask: Operand | None = None, **options: Any
) -> Sample:
    """Return a call whose scale is written out: it is that of all positions."""
    scale = query[-1] ** -0.5
    gqa = bool(options.get("enable_gqa"))
    operands = (real(*query), real(*key), real(*value), *([mask] if mask else []))

    def run(c: Context) -> list[Tensor]:
        given = {"attn_mask": c[3]} if mask else {}
        if "for_cpu" in str(c.op):
            return c.call(c[0], c[1], c[2], 0.0, bool(options.get("is_causal")), **given, scale=scale)
        return c.call(c[0], c[1], c[2], **given, **options, scale=scale)

    def reference(c: Context, keep: list[list[Tensor]]) -> list[Tensor]:
        k, v = c[1], c[2]
        if gqa:
            k, v = (t.repeat_interleave(c[0].shape[-3] // t.shape[-3], -3) for t in (k, v))
        scores = c[0] @ k.transpose(-1, -2) * scale
        if mask:
            scores = scores.masked_fill(~c[3], -torch.inf) if c[3].dtype == torch.bool else scores + c[3]
        probabilities = scores.masked_fill(keep[1][-2] == 0, -torch.inf).softmax(-1)
        second = [probabilities] if "_math" in str(c.op) else [scores.logsumexp(-1)] if "_for_cpu" in str(c.op) else []
        return [probabilities @ v, *second]

    causal = bool(options.get("is_causal"))
    return Sample(ops, operands, run, None if causal else reference, note=f"{options}" if options else "")


_Q, _K, _V = (2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 7)

SAMPLES = [
    _attention(_MATH, _Q, _K, _V),
    _attention(_MATH, _Q[1:], _K[1:], _V[1:]),
    _attention(_MATH, _Q[2:], _K[2:], _V[2:]),
    _attention(_MATH, _Q, _K, _V, real(4, 6)),
    _attention(_MATH, _Q, _K, _V, real(2, 1, 4, 6)),
    _attention(_MATH, _Q, _K, _V, real(2, 3, 1, 6)),
    _attention(_MATH, _Q[1:], _K[1:], _V[1:], real(3, 4, 6)),
    _attention("scaled_dot_product_attention", _Q, _K, _V, flags(4, 6)),
    _attention(_MATH, _Q, _K, _V, is_causal=True),
    _attention(_MATH, _Q, (1, 3, 6, 5), (1, 3, 6, 7)),
    _attention(_MATH, (2, 6, 4, 5), (2, 3, 8, 5), (2, 3, 8, 7), enable_gqa=True),
    _attention(_MATH, (2, 6, 4, 5), (2, 3, 8, 5), (2, 3, 8, 7), real(2, 6, 4, 8), enable_gqa=True),
    _attention(_MATH, (2, 6, 4, 5), (2, 1, 8, 5), (2, 1, 8, 7), enable_gqa=True),
    _attention(_CPU, _Q, _K, (2, 3, 6, 5)),
    _attention(_CPU, _Q, _K, (2, 3, 6, 5), real(2, 3, 4, 6)),
]
