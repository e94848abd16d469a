"""The functional forms of leaf modules: what each computes, written over its own parameters.

A form is a plain function ``form(m, *args, **kwargs)`` where ``m`` looks like the module but whose parameters, buffers and
``training`` flag are graph proxies. Modules whose ``forward`` runs straight through need no form of their own: their
class's ``forward`` is the form. The others branch on ranks, modes or None, and are written here.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from fxprune.errors import LoweringError
from fxprune.functional import layers
from fxprune.graph.paths import join

LeafForm = Callable[..., Any]

# forward() has no branch on a tensor's rank, on the mode or on another argument's presence.
_STRAIGHT: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.PReLU,
)

_FORMS: dict[type[nn.Module], LeafForm] = {}


def form_of(leaf: type[nn.Module]) -> LeafForm | None:
    """Return the functional form of a leaf module class, or None if there is none."""
    for cls in leaf.__mro__:
        if cls in _FORMS:
            return _FORMS[cls]
        if cls in _STRAIGHT:
            return leaf.forward
    return None


class LeafView:
    """Looks like ``module`` to its own ``forward``, with get_attr proxies for its tensors and its ``training`` flag."""

    def __init__(self, module: nn.Module, path: str, graph: fx.Graph) -> None:
        self.__dict__.update(_module=module, _path=path, _graph=graph, _tracer=fx.proxy.GraphAppendingTracer(graph))

    def __getattr__(self, name: str) -> Any:
        module = self._module
        if name in module._parameters or name in module._buffers:
            value = getattr(module, name)
            return None if value is None else self._read(name)
        if name == "training":
            return self._read(name)
        if name in module._modules:
            return LeafView(module._modules[name], join(self._path, name), self._graph)
        member = getattr(type(module), name, None)
        if isinstance(member, types.FunctionType):
            return types.MethodType(member, self)
        return getattr(module, name)

    def _read(self, name: str) -> fx.Proxy:
        target = join(self._path, name)
        node = self._graph.create_node("get_attr", target)
        # Straight into __dict__: one read for each name.
        proxy = self.__dict__[name] = fx.Proxy(node, self._tracer)
        return proxy

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Proxy:
        """Emit one call of ``function``."""
        proxy = self._tracer.create_proxy("call_function", function, args, kwargs)
        assert isinstance(proxy, fx.Proxy)
        return proxy


def _form(*leaves: type[nn.Module]) -> Callable[[LeafForm], LeafForm]:
    def register(form: LeafForm) -> LeafForm:
        for leaf in leaves:
            _FORMS[leaf] = form
        return form

    return register


@_form(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def _conv_transpose(m: Any, x: Any, output_size: Any = None) -> Any:
    extra = m.output_padding
    if output_size is not None:
        extra = m.call(layers.output_padding, x, output_size, m.stride, m.padding, m.kernel_size, m.dilation)
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(m.kernel_size) - 1]
    return convolve(x, m.weight, m.bias, m.stride, m.padding, extra, m.groups, m.dilation)


@_form(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(m: Any, x: Any) -> Any:
    mean, var = m.running_mean, m.running_var
    if mean is None and var is None:
        return F.batch_norm(x, None, None, m.weight, m.bias, True, m.momentum or 0.0, m.eps)
    if not m.track_running_stats:
        raise LoweringError("a batch norm that has running statistics but does not track them has no functional form")
    training = m.training
    momentum = m.call(layers.batch_norm_momentum, m.num_batches_tracked, m.momentum, training)
    return F.batch_norm(x, mean, var, m.weight, m.bias, training, momentum, m.eps)


@_form(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def _instance_norm(m: Any, x: Any) -> Any:
    # Without tracked statistics the input's own are used in both modes.
    from_input = m.training if m.track_running_stats else True
    batched_dim = m._get_no_batch_dim() + 1
    return m.call(
        layers.instance_norm,
        x, m.running_mean, m.running_var, m.weight, m.bias, from_input, m.momentum or 0.0, m.eps, batched_dim,
    )  # fmt: skip


@_form(nn.MultiheadAttention)
def _multi_head_attention(m: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
    names = ("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")
    options = dict(zip(names, args, strict=False)) | kwargs
    separate = {n: getattr(m, n) for n in ("q_proj_weight", "k_proj_weight", "v_proj_weight")}
    return m.call(
        layers.multi_head_attention,
        query, key, value, m.embed_dim, m.num_heads, m.in_proj_weight, m.in_proj_bias, m.bias_k, m.bias_v,
        m.add_zero_attn, m.dropout, m.out_proj.weight, m.out_proj.bias, m.training, m.batch_first,
        **separate, **options,
    )  # fmt: skip


def _flat_weights(m: Any) -> list[Any]:
    return [getattr(m, name) for name in m._flat_weights_names]


@_form(nn.LSTM)
def _lstm(m: Any, input: Any, hx: Any = None) -> Any:
    return m.call(
        layers.lstm,
        input, hx, _flat_weights(m), m.bias, m.num_layers, float(m.dropout), m.training, m.bidirectional,
        m.batch_first,
    )  # fmt: skip


@_form(nn.GRU, nn.RNN)
def _gru(m: Any, input: Any, hx: Any = None) -> Any:
    return m.call(
        layers.gru,
        input, hx, _flat_weights(m), m.bias, m.num_layers, float(m.dropout), m.training, m.bidirectional,
        m.batch_first, m.mode.lower(),
    )  # fmt: skip


@_form(nn.LSTMCell)
def _lstm_cell(m: Any, input: Any, hx: Any = None) -> Any:
    return m.call(layers.lstm_cell, input, hx, m.weight_ih, m.weight_hh, m.bias_ih, m.bias_hh)


@_form(nn.GRUCell, nn.RNNCell)
def _rnn_cell(m: Any, input: Any, hx: Any = None) -> Any:
    kind = f"rnn_{m.nonlinearity}" if hasattr(m._module, "nonlinearity") else "gru"
    return m.call(layers.rnn_cell, input, hx, m.weight_ih, m.weight_hh, m.bias_ih, m.bias_hh, kind)


def is_opaque(module: nn.Module) -> bool:
    """Tell whether a module of torch's own has parameters but no functional form, so that it must not stay a leaf."""
    return form_of(type(module)) is None and next(iter(module.parameters()), None) is not None


def emit(module: nn.Module, path: str, graph: fx.Graph, args: Any, kwargs: Any) -> fx.Node:
    """Write the functional form of ``module`` into ``graph`` at its insertion point.

    Args:
        module: a leaf module; only its configuration is read.
        path: its dotted path; parameters are read from there.
        graph: the graph to write into.
        args: the positional arguments of the call, with nodes of ``graph`` in them.
        kwargs: the keyword arguments of the call.

    Returns:
        The node that holds the module's result.

    Raises:
        LoweringError: if the class has no functional form, or this call of it has none. Nodes written so far stay; the
            caller removes them.
    """
    form = form_of(type(module))
    if form is None:
        raise LoweringError(f"modules of class {type(module).__name__} have no functional form")
    view = LeafView(module, path, graph)

    def to_proxy(node: fx.Node) -> Any:
        return fx.Proxy(node, view._tracer)

    try:
        result = form(view, *fx.map_arg(args, to_proxy), **fx.map_arg(kwargs, to_proxy))
    except Exception as error:  # whatever a module's forward raises on proxies
        raise LoweringError(f"this call of {type(module).__name__} has no functional form: {error}") from error
    assert isinstance(result, fx.Proxy)
    return result.node


__all__ = ["emit", "form_of", "is_opaque"]

# Kept out of the table on purpose: torch.nn.SyncBatchNorm, whose training step is a collective operation, and the
# composite modules (nn.Transformer*, nn.AdaptiveLogSoftmaxWithLoss), which capture traces through.
