"""The steps of :func:`fxprune.functional.layers.multi_head_attention`.

They are plain annotated functions, which TorchScript compiles. No graph calls them itself.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def as_batch(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Add a batch dimension of one; a tensor given twice stays one tensor, so that self-attention projects in one product."""
    new_query = query.unsqueeze(0)
    new_key = new_query if key is query else key.unsqueeze(0)
    return new_query, new_key, new_key if value is key else value.unsqueeze(0)


def additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Return a mask of flags, True where attention is forbidden, as numbers to add: 0 and minus infinity."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))


def project_packed(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None, values: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Project by weights packed in the order q, k, v, of which the last ``values`` rows are those of v."""
    rows = (weight.size(0) - values) // 2
    if key is value and query is key:
        q, k, v = F.linear(query, weight, bias).split([rows, rows, values], dim=-1)
        return q, k, v
    if key is value:
        w_q, w_kv = weight.split([rows, rows + values])
        b_q: Tensor | None = None
        b_kv: Tensor | None = None
        if bias is not None:
            b_q, b_kv = bias.split([rows, rows + values])
        k, v = F.linear(key, w_kv, b_kv).split([rows, values], dim=-1)
        return F.linear(query, w_q, b_q), k, v
    w_q, w_k, w_v = weight.split([rows, rows, values])
    return project(query, key, value, w_q, w_k, w_v, bias)


def project(
    query: Tensor, key: Tensor, value: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Project by three weights, with a bias packed in the order q, k, v."""
    b_q: Tensor | None = None
    b_k: Tensor | None = None
    b_v: Tensor | None = None
    if bias is not None:
        b_q, b_k, b_v = bias.split([w_q.size(0), w_k.size(0), w_v.size(0)])
    return F.linear(query, w_q, b_q), F.linear(key, w_k, b_k), F.linear(value, w_v, b_v)


def behind(x: Tensor, bias: Tensor, batch_first: bool) -> Tensor:
    """Append one position to every sequence."""
    if batch_first:
        return torch.cat([x, bias.repeat(x.size(0), 1, 1)], dim=1)
    return torch.cat([x, bias.repeat(1, x.size(1), 1)])


def by_head(x: Tensor, num_heads: int, batch_first: bool) -> Tensor:
    """View ``(N, L, heads * e)`` or ``(L, N, heads * e)`` as ``(N, heads, L, e)``."""
    x = x.unflatten(-1, [num_heads, x.size(-1) // num_heads])
    return x.transpose(1, 2) if batch_first else x.permute(1, 2, 0, 3)


def attention_mask(mask: Tensor | None, padding: Tensor | None, added: int, batch: int, num_heads: int) -> Tensor | None:
    """Return the sum of both masks, which broadcasts to ``(N, heads, L, S)``; the last ``added`` keys are never masked."""
    if mask is not None:
        mask = mask.unsqueeze(0).unsqueeze(0) if mask.dim() == 2 else mask.unflatten(0, [batch, num_heads])
        mask = F.pad(mask, [0, added])
    if padding is None:
        return mask
    padding = F.pad(padding, [0, added]).unsqueeze(1).unsqueeze(1)
    return padding if mask is None else mask + padding


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: float,
    is_causal: bool,
    need_weights: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor | None]:
    """Return attention of tensors ``(N, heads, L, e)``, with the width of the values, and the weights if they are needed."""
    if not need_weights:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=scale), None
    factor = math.sqrt(1.0 / float(q.size(3))) if scale is None else scale
    weights = torch.matmul(q * factor, k.transpose(-2, -1))
    if mask is not None:
        weights = weights + mask
    weights = F.softmax(weights, dim=-1)
    if dropout > 0.0:
        weights = F.dropout(weights, p=dropout)
    return torch.matmul(weights, v), weights
