"""The functions that fxprune's graphs call besides torch's own.

Each is a plain annotated function that TorchScript compiles, ``torch.export`` traces through and ``torch.compile``
inlines. Those with an effect (a check, a counter) are registered as such, so that dead-code elimination keeps them.
"""

import math

import torch
from torch import Tensor
from torch.fx.node import has_side_effect
from torch.nn import functional as F


def select_float(training: bool, in_train: float, in_eval: float) -> float:
    """Return ``in_train`` while ``training``, else ``in_eval``: a number that the model chose by its mode.

    Example: ``dropout_p = select_float(self.attn.training, 0.1, 0.0)``.
    """
    if training:
        return in_train
    return in_eval


def select_int(training: bool, in_train: int, in_eval: int) -> int:
    """Return ``in_train`` while ``training``, else ``in_eval``, for whole numbers."""
    if training:
        return in_train
    return in_eval


def invert(training: bool) -> bool:
    """Return ``not training``, for a flag that the model sets in eval mode only."""
    return not training


@has_side_effect
def check_none(value: Tensor | None, message: str) -> None:
    """Raise RuntimeError with ``message`` unless ``value`` is None; the graph was captured with None there."""
    if value is not None:
        raise RuntimeError(message)


@has_side_effect
def check_shape(value: Tensor, shape: list[int], name: str) -> None:
    """Raise RuntimeError unless ``value`` has the captured ``shape``; -1 stands for a dimension that is free.

    Graphs of the export front end hold the example's other sizes as constants, so a different size could give a wrong
    result without this check.
    """
    if value.dim() != len(shape):
        raise RuntimeError("input '" + name + "' has the wrong number of dimensions for the captured graph")
    for i in range(len(shape)):
        if shape[i] >= 0 and value.size(i) != shape[i]:
            raise RuntimeError(
                "input '" + name + "' does not have the shape that the graph was captured with; capture the model again "
                "with an example of the new shape"
            )


def output_padding(
    input: Tensor,
    output_size: list[int],
    stride: list[int],
    padding: list[int],
    kernel_size: list[int],
    dilation: list[int],
) -> list[int]:
    """Return the output padding, one int for each spatial dimension, that gives a transposed convolution ``output_size``.

    Source: the size formula of ``torch.nn.ConvTranspose2d``.
    """
    n = len(kernel_size)
    first_spatial = input.dim() - n
    wanted = output_size[len(output_size) - n :]
    extra: list[int] = []
    for d in range(n):
        smallest = (input.size(first_spatial + d) - 1) * stride[d] - 2 * padding[d] + dilation[d] * (kernel_size[d] - 1) + 1
        if wanted[d] < smallest or wanted[d] > smallest + stride[d] - 1:
            raise ValueError("requested an output size that this transposed convolution cannot give")
        extra.append(wanted[d] - smallest)
    return extra


@has_side_effect
def batch_norm_momentum(num_batches_tracked: Tensor | None, momentum: float | None, training: bool) -> float:
    """Count one batch while ``training`` and return the weight of its statistics in the running ones.

    ``momentum=None`` asks for the plain average over all batches, as ``torch.nn.BatchNorm2d`` documents.
    """
    if training and num_batches_tracked is not None:
        num_batches_tracked.add_(1)
        if momentum is None:
            return 1.0 / float(num_batches_tracked.item())
    if momentum is None:
        return 0.0
    return momentum


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    batched_dim: int,
) -> Tensor:
    """Apply ``F.instance_norm``; an ``input`` of fewer than ``batched_dim`` dimensions is one sample without a batch."""
    if input.dim() < batched_dim:
        single = F.instance_norm(input.unsqueeze(0), running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
        return single.squeeze(0)
    return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool,
    batch_first: bool,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute what ``torch.nn.MultiheadAttention`` does, from explicit parameters.

    Shapes and results are those of the module: with ``batch_first`` inputs are ``(N, L, E)``, else ``(L, N, E)``, and a
    two-dimensional query is one sequence without a batch. The eval-mode fast path of the module is left out on purpose:
    it reads parameters directly and gives the same result. Unlike the module the heads may have any width, that of the
    values may differ from that of queries and keys, and ``scale`` may differ from the inverse root of the width.
    """
    batched = query.dim() == 3
    query, key, value = _sequence_first(query, key, value, batched and batch_first, not batched)
    if key_padding_mask is not None and not batched:
        key_padding_mask = key_padding_mask.unsqueeze(0)
    padding = _additive(key_padding_mask, query)
    if is_causal and attn_mask is None:
        raise RuntimeError("is_causal is a hint about attn_mask, which is missing")
    if is_causal and padding is None and not need_weights:
        attn_mask = None  # the hint is enough
    else:
        attn_mask = _additive(attn_mask, query)
        is_causal = is_causal and padding is None
    length, batch, stack = query.size(0), query.size(1), query.size(1) * num_heads

    if in_proj_weight is not None:
        q, k, v = _project_packed(query, key, value, in_proj_weight, in_proj_bias, out_proj_weight.size(1))
    else:
        assert q_proj_weight is not None
        assert k_proj_weight is not None
        assert v_proj_weight is not None
        q, k, v = _project(query, key, value, q_proj_weight, k_proj_weight, v_proj_weight, in_proj_bias)
    if attn_mask is not None and attn_mask.dim() == 2:
        attn_mask = attn_mask.unsqueeze(0)
    added = 0
    if bias_k is not None and bias_v is not None:
        k = torch.cat([k, bias_k.repeat(1, batch, 1)])
        v = torch.cat([v, bias_v.repeat(1, batch, 1)])
        added += 1
    q = q.view(length, stack, q.size(2) // num_heads).transpose(0, 1)
    k = k.view(k.size(0), stack, k.size(2) // num_heads).transpose(0, 1)
    v = v.view(v.size(0), stack, v.size(2) // num_heads).transpose(0, 1)
    if add_zero_attn:
        k = torch.cat([k, torch.zeros([stack, 1, k.size(2)], dtype=k.dtype, device=k.device)], dim=1)
        v = torch.cat([v, torch.zeros([stack, 1, v.size(2)], dtype=v.dtype, device=v.device)], dim=1)
        added += 1
    mask = _attention_mask(attn_mask, padding, added, num_heads, k.size(1))
    output, weights = _attend(q, k, v, mask, batch, dropout if training else 0.0, is_causal, need_weights, scale)
    output = F.linear(output, out_proj_weight, out_proj_bias)
    output = output.view(length, batch, output.size(1))
    if weights is not None:
        if average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            weights = weights.squeeze(0)
    if not batched:
        output = output.squeeze(1)
    elif batch_first:
        output = output.transpose(1, 0)
    return output, weights


def _sequence_first(query: Tensor, key: Tensor, value: Tensor, swap: bool, single: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Bring all to ``(L, N, E)``; what was one tensor stays one, since self-attention is projected in one product."""
    if not (swap or single):
        return query, key, value
    new_query = query.transpose(1, 0) if swap else query.unsqueeze(1)
    if key is query:
        new_key = new_query
    else:
        new_key = key.transpose(1, 0) if swap else key.unsqueeze(1)
    if value is key:
        new_value = new_key
    else:
        new_value = value.transpose(1, 0) if swap else value.unsqueeze(1)
    return new_query, new_key, new_value


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Turn flags that say where not to look into minus infinity."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))


def _project_packed(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None, values: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Project by weights packed in the order q, k, v, where those of v have ``values`` rows."""
    rows = (weight.size(0) - values) // 2
    if key is value and rows == values:
        if query is key:
            packed = F.linear(query, weight, bias).unflatten(-1, [3, rows])
            packed = packed.unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
            return packed[0], packed[1], packed[2]
        w_q, w_kv = weight.split([rows, 2 * rows])
        b_q: Tensor | None = None
        b_kv: Tensor | None = None
        if bias is not None:
            b_q, b_kv = bias.split([rows, 2 * rows])
        both = F.linear(key, w_kv, b_kv).unflatten(-1, [2, rows])
        both = both.unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
        return F.linear(query, w_q, b_q), both[0], both[1]
    w_q, w_k, w_v = weight.split([rows, rows, values])
    return _project(query, key, value, w_q, w_k, w_v, bias)


def _project(
    query: Tensor, key: Tensor, value: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    b_q: Tensor | None = None
    b_k: Tensor | None = None
    b_v: Tensor | None = None
    if bias is not None:
        b_q, b_k, b_v = bias.split([w_q.size(0), w_k.size(0), w_v.size(0)])
    return F.linear(query, w_q, b_q), F.linear(key, w_k, b_k), F.linear(value, w_v, b_v)


def _attention_mask(mask: Tensor | None, padding: Tensor | None, added: int, num_heads: int, keys: int) -> Tensor | None:
    """Join both masks to one that broadcasts to ``(N * heads, L, S)``; ``added`` keys behind the others are seen by all."""
    if added > 0:
        mask = F.pad(mask, [0, added]) if mask is not None else None
        padding = F.pad(padding, [0, added]) if padding is not None else None
    if padding is None:
        return mask
    batch = padding.size(0)
    spread = padding.view(batch, 1, 1, keys).expand(-1, num_heads, -1, -1).reshape(batch * num_heads, 1, keys)
    return spread if mask is None else mask + spread


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    batch: int,
    dropout: float,
    is_causal: bool,
    need_weights: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor | None]:
    """Attend with stacks of heads ``(N * heads, L, e)``; returns ``(L * N, heads * e)``, and weights if they are needed."""
    heads, length, keys = q.size(0) // batch, q.size(1), k.size(1)
    if need_weights:
        factor = math.sqrt(1.0 / float(q.size(2))) if scale is None else scale
        if mask is not None:
            weights = torch.baddbmm(mask, q * factor, k.transpose(-2, -1))
        else:
            weights = torch.bmm(q * factor, k.transpose(-2, -1))
        weights = F.softmax(weights, dim=-1)
        if dropout > 0.0:
            weights = F.dropout(weights, p=dropout)
        output = torch.bmm(weights, v).transpose(0, 1).reshape(length * batch, heads * v.size(2))
        return output, weights.view(batch, heads, length, keys)
    if mask is not None:
        mask = mask.unsqueeze(0) if mask.size(0) == 1 else mask.view(batch, heads, -1, keys)
    width = v.size(2)
    q, k = q.view(batch, heads, length, q.size(2)), k.view(batch, heads, keys, k.size(2))
    output = F.scaled_dot_product_attention(q, k, v.view(batch, heads, keys, width), mask, dropout, is_causal, scale=scale)
    return output.permute(2, 0, 1, 3).reshape(batch * length, heads * width), None


def _zero_state(input: Tensor, batched: bool, batch_first: bool, layers: int, size: int) -> Tensor:
    batch = (input.size(0) if batch_first else input.size(1)) if batched else 1
    return torch.zeros(layers, batch, size, dtype=input.dtype, device=input.device)


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: list[Tensor],
    bias: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Compute what ``torch.nn.LSTM`` does, from an explicit list of ``weights``; shapes as documented there."""
    batched = input.dim() == 3
    layers = num_layers * (2 if bidirectional else 1)
    if hx is None:
        # The weights of the recurrent product have the sizes: (4 * hidden, hidden), or (4 * hidden, projected).
        h = _zero_state(input, batched, batch_first, layers, weights[1].size(1))
        c = _zero_state(input, batched, batch_first, layers, weights[1].size(0) // 4)
    else:
        h, c = hx
        if not batched:
            h, c = h.unsqueeze(1), c.unsqueeze(1)
    if not batched:
        input = input.unsqueeze(0 if batch_first else 1)
    out, h, c = torch.lstm(input, [h, c], weights, bias, num_layers, dropout, training, bidirectional, batch_first)
    if not batched:
        out, h, c = out.squeeze(0 if batch_first else 1), h.squeeze(1), c.squeeze(1)
    return out, (h, c)


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
    kind: str,
) -> tuple[Tensor, Tensor]:
    """Compute what ``torch.nn.GRU`` (``kind="gru"``) or ``torch.nn.RNN`` (``"rnn_tanh"``, ``"rnn_relu"``) does."""
    batched = input.dim() == 3
    layers = num_layers * (2 if bidirectional else 1)
    if hx is None:
        h = _zero_state(input, batched, batch_first, layers, weights[1].size(1))
    else:
        h = hx if batched else hx.unsqueeze(1)
    if not batched:
        input = input.unsqueeze(0 if batch_first else 1)
    if kind == "gru":
        out, h = torch.gru(input, h, weights, bias, num_layers, dropout, training, bidirectional, batch_first)
    elif kind == "rnn_tanh":
        out, h = torch.rnn_tanh(input, h, weights, bias, num_layers, dropout, training, bidirectional, batch_first)
    else:
        out, h = torch.rnn_relu(input, h, weights, bias, num_layers, dropout, training, bidirectional, batch_first)
    if not batched:
        out, h = out.squeeze(0 if batch_first else 1), h.squeeze(1)
    return out, h


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute what ``torch.nn.LSTMCell`` does, from explicit parameters."""
    batched = input.dim() == 2
    x = input if batched else input.unsqueeze(0)
    if hx is None:
        h = torch.zeros(x.size(0), weight_hh.size(1), dtype=x.dtype, device=x.device)
        c = h
    else:
        h, c = hx
        if not batched:
            h, c = h.unsqueeze(0), c.unsqueeze(0)
    h, c = torch.lstm_cell(x, [h, c], weight_ih, weight_hh, bias_ih, bias_hh)
    if not batched:
        h, c = h.squeeze(0), c.squeeze(0)
    return h, c


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    kind: str,
) -> Tensor:
    """Compute what ``torch.nn.GRUCell`` (``kind="gru"``) or ``torch.nn.RNNCell`` (``"rnn_tanh"``, ``"rnn_relu"``) does."""
    batched = input.dim() == 2
    x = input if batched else input.unsqueeze(0)
    if hx is None:
        h = torch.zeros(x.size(0), weight_hh.size(1), dtype=x.dtype, device=x.device)
    else:
        h = hx if batched else hx.unsqueeze(0)
    if kind == "gru":
        h = torch.gru_cell(x, h, weight_ih, weight_hh, bias_ih, bias_hh)
    elif kind == "rnn_tanh":
        h = torch.rnn_tanh_cell(x, h, weight_ih, weight_hh, bias_ih, bias_hh)
    else:
        h = torch.rnn_relu_cell(x, h, weight_ih, weight_hh, bias_ih, bias_hh)
    return h if batched else h.squeeze(0)


# All of the above, for tracers that have to keep them as they are.
ALL = (
    select_float,
    select_int,
    invert,
    check_none,
    check_shape,
    output_padding,
    batch_norm_momentum,
    instance_norm,
    multi_head_attention,
    lstm,
    gru,
    lstm_cell,
    rnn_cell,
)
