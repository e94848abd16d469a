"""Functions of a masked graph that combine the kept positions of an axis alone, as the smaller network will.

Like those of :mod:`fxprune.functional.layers` they are plain annotated functions for TorchScript, ``torch.export`` and
``torch.compile``. ``keeps`` are keep vectors and ``keep_dims`` their dimensions: ``[k]`` and ``[1]`` keep ``x[:, k]``.
"""

import math

import torch
from torch import Tensor


def _spread(keeps: list[Tensor], dims: list[int], rank: int) -> Tensor:
    """Return flags that broadcast to a tensor of ``rank`` dimensions, from the keep vector of each of ``dims``."""
    found = torch.ones([1] * rank, dtype=torch.bool, device=keeps[0].device)
    for keep, dim in zip(keeps, dims, strict=True):
        shape = [1] * rank
        shape[dim] = keep.size(0)
        found = found & keep.to(torch.bool).view(shape)
    return found


def keep_only(x: Tensor, keep: Tensor, dim: int, fill: float) -> Tensor:
    """Return ``x`` with ``fill`` at the positions along ``dim`` that ``keep``, of shape ``(x.size(dim),)``, leaves out."""
    return x.masked_fill(_spread([keep], [dim], x.dim()).logical_not(), fill)


def mean_of_kept(mean: Tensor, keep: Tensor) -> Tensor:
    """Return the mean over the kept positions, from the mean over an axis that is zero where ``keep`` is False."""
    return mean * keep.numel() / keep.sum().clamp(min=1)


def _centred(x: Tensor, dims: list[int], kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x`` less its mean over the kept positions, zero elsewhere, and how many positions that was."""
    count = kept.expand(x.shape).sum(dims, keepdim=True).clamp(min=1)
    x = x.masked_fill(kept.logical_not(), 0.0)
    return (x - x.sum(dims, keepdim=True) / count).masked_fill(kept.logical_not(), 0.0), count


def _normalised(x: Tensor, dims: list[int], kept: Tensor, eps: float) -> Tensor:
    centred, count = _centred(x, dims, kept)
    return centred * torch.rsqrt((centred * centred).sum(dims, keepdim=True) / count + eps)


def _wide(x: Tensor) -> Tensor:
    """Return ``x`` in the dtype that torch's own norms compute in."""
    return x.float() if x.dtype == torch.half or x.dtype == torch.bfloat16 else x


def _scaled(x: Tensor, like: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        x = x * weight
    if bias is not None:
        x = x + bias
    return x.to(like.dtype)


def _by_channel(x: Tensor | None, rank: int) -> Tensor | None:
    """Return one number per channel so that it broadcasts to a tensor of ``rank`` dimensions, the channels its second."""
    return None if x is None else x.view([-1] + [1] * (rank - 2))


def layer_norm_of_kept(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    keeps: list[Tensor],
    keep_dims: list[int],
) -> Tensor:
    """``torch.nn.functional.layer_norm`` with statistics over the positions that ``keeps`` along ``keep_dims`` leave."""
    dims = list(range(input.dim() - len(normalized_shape), input.dim()))
    return _scaled(_normalised(_wide(input), dims, _spread(keeps, keep_dims, input.dim()), eps), input, weight, bias)


def rms_norm_of_kept(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None, eps: float, keeps: list[Tensor], keep_dims: list[int]
) -> Tensor:
    """``torch.nn.functional.rms_norm`` with the mean square over the positions that ``keeps`` along ``keep_dims`` leave."""
    dims = list(range(input.dim() - len(normalized_shape), input.dim()))
    kept = _spread(keeps, keep_dims, input.dim())
    x = _wide(input).masked_fill(kept.logical_not(), 0.0)
    count = kept.expand(x.shape).sum(dims, keepdim=True).clamp(min=1)
    return _scaled(x * torch.rsqrt((x * x).sum(dims, keepdim=True) / count + eps), input, weight, None)


def group_norm_of_kept(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    keeps: list[Tensor],
    keep_dims: list[int],
) -> Tensor:
    """``torch.nn.functional.group_norm`` with statistics over the positions that ``keeps`` along ``keep_dims`` leave."""
    kept = _spread(keeps, keep_dims, input.dim()).expand([1] + list(input.shape[1:]))
    shape = [input.size(0), num_groups, input.size(1) // num_groups, -1]
    x = _normalised(_wide(input).reshape(shape), [2, 3], kept.reshape([1] + shape[1:]), eps).reshape(input.shape)
    return _scaled(x, input, _by_channel(weight, input.dim()), _by_channel(bias, input.dim()))


def batch_norm_of_kept(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, keeps: list[Tensor], keep_dims: list[int]
) -> Tensor:
    """``torch.nn.functional.batch_norm`` without running statistics, over the positions that ``keeps`` leave."""
    dims = [d for d in range(input.dim()) if d != 1]
    x = _normalised(_wide(input), dims, _spread(keeps, keep_dims, input.dim()), eps)
    return _scaled(x, input, _by_channel(weight, input.dim()), _by_channel(bias, input.dim()))


def attention_to_kept(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    scale: float | None,
    enable_gqa: bool,
    keeps: list[Tensor],
    keep_dims: list[int],
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention`` to the keys and values that ``keeps[0]``, of shape (S,), leaves."""
    kept = keeps[0].to(torch.bool)
    if attn_mask is None:
        attn_mask = kept.view(1, -1)
    elif attn_mask.dtype == torch.bool:
        attn_mask = attn_mask & kept
    else:
        attn_mask = attn_mask.masked_fill(kept.logical_not(), -math.inf)
    # A removed key or value may be infinite, and its weight of zero would make it nan: 0 * inf.
    gone = kept.logical_not().view(-1, 1)
    key, value = key.masked_fill(gone, 0.0), value.masked_fill(gone, 0.0)
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, False, scale=scale, enable_gqa=enable_gqa
    )


def var_of_kept(
    input: Tensor, dims: list[int], correction: float, keepdim: bool, root: bool, keeps: list[Tensor], keep_dims: list[int]
) -> Tensor:
    """``torch.var``, or ``torch.std`` with ``root``, over the positions that ``keeps`` along ``keep_dims`` leave."""
    centred, count = _centred(input, dims, _spread(keeps, keep_dims, input.dim()))
    found = (centred * centred).sum(dims, keepdim=True) / (count - correction).clamp(min=0)
    found = found if keepdim else found.sum(dims)
    return _root(found) if root else found


def _root(x: Tensor) -> Tensor:
    """Return the square root, with a gradient of zero where ``x`` is zero, as ``torch.std`` has: a masked row is constant."""
    zero = x == 0
    return x.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def var_mean_of_kept(
    input: Tensor, dims: list[int], correction: float, keepdim: bool, root: bool, keeps: list[Tensor], keep_dims: list[int]
) -> tuple[Tensor, Tensor]:
    """``torch.var_mean``, or ``torch.std_mean`` with ``root``, over the positions that ``keeps`` leave."""
    kept = _spread(keeps, keep_dims, input.dim())
    count = kept.expand(input.shape).sum(dims, keepdim=keepdim).clamp(min=1)
    mean = input.masked_fill(kept.logical_not(), 0.0).sum(dims, keepdim=keepdim) / count
    return var_of_kept(input, dims, correction, keepdim, root, keeps, keep_dims), mean
