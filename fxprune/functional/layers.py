"""The functions that fxprune's graphs call besides torch's own.

Each is a plain annotated function that TorchScript compiles, ``torch.export`` traces through and ``torch.compile`` inlines.
Functions with an effect (a check, a counter) are registered as such, so that dead-code elimination keeps them.
"""

import inspect
import warnings

import torch
from torch import Tensor
from torch.fx.node import has_side_effect
from torch.nn import functional as F

from fxprune.errors import CaptureWarning
from fxprune.functional.attention import additive, as_batch, attend, attention_mask, behind, by_head, project, project_packed
from fxprune.torch_internals.graphs import assert_async


def select_float(training: bool, in_train: float, in_eval: float) -> float:
    """Return ``in_train`` while ``training``, else ``in_eval``: a number that the model chose by its mode.

    Example: ``dropout_p = select_float(self.attn.training, 0.1, 0.0)``.
    """
    return in_train if training else in_eval


def select_int(training: bool, in_train: int, in_eval: int) -> int:
    """Return ``in_train`` while ``training``, else ``in_eval``, for whole numbers."""
    return in_train if training else in_eval


def invert(training: bool) -> bool:
    """Return ``not training``, for a flag that the model sets in eval mode only."""
    return not training


@has_side_effect
def add_if_(input: Tensor, number: int | float, condition: bool) -> None:
    """Add ``number`` to ``input`` in place if ``condition`` holds; else write nothing.

    For counters that a model increases in one mode only: ``add_if_(num_batches_tracked, 1, self.bn.training)``.
    """
    if condition:
        input.add_(number)


@has_side_effect
def check_none(value: Tensor | None, message: str) -> None:
    """Raise RuntimeError with ``message`` unless ``value`` is None, as it was when the graph was captured."""
    if value is not None:
        raise RuntimeError(message)


@has_side_effect
def check_shape(value: Tensor, shape: list[int], name: str) -> None:
    """Raise RuntimeError unless ``value`` has the captured ``shape``, in which -1 stands for any size.

    Graphs of the export front end hold all other sizes as constants, so that another size would give a wrong result.
    """
    if value.dim() != len(shape):
        raise RuntimeError("input '" + name + "' has the wrong number of dimensions for the captured graph")
    for i in range(len(shape)):
        if shape[i] >= 0 and value.size(i) != shape[i]:
            raise RuntimeError(
                "input '" + name + "' does not have the shape that the graph was captured with; capture the model again "
                "with an example of the new shape"
            )


@has_side_effect
def check_dtype(value: Tensor, dtypes: list[torch.dtype], message: str) -> None:
    """Raise RuntimeError with ``message`` unless ``value`` has one of ``dtypes``."""
    if value.dtype not in dtypes:
        raise RuntimeError(message)


@has_side_effect
def check_autocast(value: Tensor, message: str) -> None:
    """Warn with ``message`` under autocast for the device of ``value``; not in compiled code."""
    if not torch.jit.is_scripting():
        device = value.device.type
        on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if on and not torch.compiler.is_compiling():
            warnings.warn(message, CaptureWarning, stacklevel=2)


@has_side_effect
def check_contiguous(value: Tensor, expected: bool, message: str) -> None:
    """Raise RuntimeError with ``message`` unless ``value`` is contiguous, or is not, as expected."""
    if value.is_contiguous() != expected:
        raise RuntimeError(message)


@has_side_effect
def check_requires_grad(value: Tensor, expected: bool, message: str) -> None:
    """Raise RuntimeError with ``message`` unless ``value`` requires gradients, or does not, as expected."""
    if value.requires_grad != expected:
        raise RuntimeError(message)


@has_side_effect
def check_constant(value: Tensor, expected: list[float], message: str) -> None:
    """Raise RuntimeError with ``message`` unless ``value`` has the ``expected`` elements, in the order of a flat list."""
    same = value.flatten().cpu() == torch.tensor(expected, dtype=value.dtype, device=torch.device("cpu"))
    if torch.jit.is_scripting():  # where the operator counts as dead code
        if not bool(same.all()):
            raise RuntimeError(message)
    else:
        assert_async(same.all(), message)


def output_padding(
    input: Tensor, output_size: list[int], stride: list[int], padding: list[int], kernel_size: list[int], dilation: list[int]
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
    """Count a batch while ``training``, and return the weight of its statistics in the running statistics.

    ``momentum=None`` is the plain average over all batches, as ``torch.nn.BatchNorm2d`` documents.
    """
    if training and num_batches_tracked is not None:
        num_batches_tracked.add_(1)
        if momentum is None:
            return 1.0 / float(num_batches_tracked.item())
    return 0.0 if momentum is None else momentum


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
    """Compute ``torch.nn.MultiheadAttention`` from explicit parameters.

    Shapes and results are those of the module: with ``batch_first`` inputs are ``(N, L, E)``, else ``(L, N, E)``, and a
    two-dimensional query is one sequence without a batch. The eval-mode fast path of the module is left out on purpose:
    it reads parameters directly and gives the same result. Unlike in the module heads may have any width, values another
    width than queries and keys, and ``scale`` may differ from the inverse root of the width.
    """
    batched = query.dim() == 3
    first = batch_first or not batched  # whether the batch comes first
    if not batched:
        query, key, value = as_batch(query, key, value)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    padding = additive(key_padding_mask, query)
    if is_causal and attn_mask is None:
        raise RuntimeError("is_causal is a hint about attn_mask, which is missing")
    if is_causal and padding is None and not need_weights:
        attn_mask = None  # the hint is enough
    else:
        attn_mask = additive(attn_mask, query)
        is_causal = is_causal and padding is None

    if in_proj_weight is not None:
        q, k, v = project_packed(query, key, value, in_proj_weight, in_proj_bias, out_proj_weight.size(1))
    else:
        assert q_proj_weight is not None
        assert k_proj_weight is not None
        assert v_proj_weight is not None
        q, k, v = project(query, key, value, q_proj_weight, k_proj_weight, v_proj_weight, in_proj_bias)
    added = 0
    if bias_k is not None and bias_v is not None:
        k, v = behind(k, bias_k, first), behind(v, bias_v, first)
        added += 1
    q, k, v = by_head(q, num_heads, first), by_head(k, num_heads, first), by_head(v, num_heads, first)
    if add_zero_attn:
        k, v = F.pad(k, [0, 0, 0, 1]), F.pad(v, [0, 0, 0, 1])
        added += 1
    mask = attention_mask(attn_mask, padding, added, q.size(0), num_heads)
    output, weights = attend(q, k, v, mask, dropout if training else 0.0, is_causal, need_weights, scale)
    output = output.transpose(1, 2) if first else output.permute(2, 0, 1, 3)
    output = F.linear(output.flatten(-2), out_proj_weight, out_proj_bias)
    if weights is not None:
        if average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            weights = weights.squeeze(0)
    return output if batched else output.squeeze(0), weights


def _zero_state(input: Tensor, batch_dim: int, layers: int, size: int) -> Tensor:
    return torch.zeros(layers, input.size(batch_dim), size, dtype=input.dtype, device=input.device)


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
    """Compute ``torch.nn.LSTM`` from an explicit list of ``weights``; shapes as documented there."""
    batched, batch_dim = input.dim() == 3, 0 if batch_first else 1
    if not batched:
        input = input.unsqueeze(batch_dim)
    layers = num_layers * (2 if bidirectional else 1)
    if hx is None:
        # The weights of the recurrent product have the sizes: (4 * hidden, hidden), or (4 * hidden, projected).
        h = _zero_state(input, batch_dim, layers, weights[1].size(1))
        c = _zero_state(input, batch_dim, layers, weights[1].size(0) // 4)
    else:
        h, c = hx
        if not batched:
            h, c = h.unsqueeze(1), c.unsqueeze(1)
    out, h, c = torch.lstm(input, [h, c], weights, bias, num_layers, dropout, training, bidirectional, batch_first)
    if not batched:
        out, h, c = out.squeeze(batch_dim), h.squeeze(1), c.squeeze(1)
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
    """Compute ``torch.nn.GRU`` (``kind="gru"``) or ``torch.nn.RNN`` (``"rnn_tanh"``, ``"rnn_relu"``)."""
    batched, batch_dim = input.dim() == 3, 0 if batch_first else 1
    if not batched:
        input = input.unsqueeze(batch_dim)
    layers = num_layers * (2 if bidirectional else 1)
    if hx is None:
        h = _zero_state(input, batch_dim, layers, weights[1].size(1))
    else:
        h = hx if batched else hx.unsqueeze(1)
    if kind == "gru":
        out, h = torch.gru(input, h, weights, bias, num_layers, dropout, training, bidirectional, batch_first)
    elif kind == "rnn_tanh":
        out, h = torch.rnn_tanh(input, h, weights, bias, num_layers, dropout, training, bidirectional, batch_first)
    else:
        out, h = torch.rnn_relu(input, h, weights, bias, num_layers, dropout, training, bidirectional, batch_first)
    if not batched:
        out, h = out.squeeze(batch_dim), h.squeeze(1)
    return out, h


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute ``torch.nn.LSTMCell`` from explicit parameters."""
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
    """Compute ``torch.nn.GRUCell`` (``kind="gru"``) or ``torch.nn.RNNCell`` (``"rnn_tanh"``, ``"rnn_relu"``)."""
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


_DEFINED = [value for value in list(globals().values()) if inspect.isfunction(value) and value.__module__ == __name__]
ALL = tuple(function for function in _DEFINED if not function.__name__.startswith("_"))
"""The public functions of this file, which tracers keep as calls."""
