"""The card of each standard layer: all that passes need to know of a class of ``torch.nn``.

How to add a standard layer (no other file lists classes of layers, but a layer whose call writes into its own parameters is
named in ``graph/side_effects.py`` as well):

1. Register its class below with a :class:`LeafCard`; classes with the same facts share a card.
2. ``form``: ``own_forward`` if ``forward`` has no branch on a tensor's rank, on the mode or on another argument's presence;
   else write a function of the layer and its arguments, whose branches stand in a function of ``functional/layers.py``.
3. ``shapes``: which attributes follow from the shapes of its tensors; ``arguments``: which attributes its operator takes.
4. Add a sample to ``SAMPLES`` of ``tests/functional/test_leaf_cards.py``, a kind to ``tests/kinds.py`` if it can be masked,
   and print the cards anew (the command stands at the top of that test).
5. An operator that has no rule yet gets one in ``rules/``.

Composite modules (``nn.Transformer*``, ``nn.AdaptiveLogSoftmaxWithLoss``), which capture traces through, need no card, nor do
layers that have neither parameters nor arguments that change.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn import functional as F

from fxprune.errors import LoweringError
from fxprune.functional import layers

LeafForm = Callable[..., Any]

# A size in terms of an attribute: ``input_size``, ``4*hidden_size``, ``in_channels/groups``.
_SIZE = re.compile(r"(?:(\d+)\*)?(\w+)(?:/(\w+))?")


@dataclasses.dataclass(frozen=True)
class LeafCard:
    """The facts of a class of layers.

    ``LeafCard(shapes={"weight": "out_channels in_channels/groups"})`` says that a convolution's weight is of shape
    (out_channels, in_channels / groups, ...), so that ``out_channels`` is ``weight.shape[0]`` and ``in_channels`` is
    ``weight.shape[1] * groups``; dimensions that are not named give nothing. ``"*normalized_shape"`` is the whole shape.

    Attributes:
        form: a function that computes the layer. Its first argument looks like the layer, but parameters, buffers and the
            ``training`` flag are graph proxies, and ``call`` makes a node of a function. None if there is no such form.
        shapes: the shapes of its parameters and buffers, by name, in terms of its attributes.
        arguments: by argument of its operator, the attribute that holds it, where the argument changes with sizes.
        takes_bias: whether a layer without a bias can be given one, as it adds the bias to sums over all its weights.
        shrinks_written_out: whether it has to be written out before it shrinks, since its attributes cannot say the sizes
            that are left.
    """

    form: LeafForm | None = None
    shapes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict)
    takes_bias: bool = False
    shrinks_written_out: bool = False

    def sizes(self, layer: nn.Module) -> dict[str, Any]:
        """Return the attributes that follow from the shapes of the layer's tensors."""
        found: dict[str, Any] = {}
        for name, words in self.shapes.items():
            if (tensor := layer._parameters.get(name, layer._buffers.get(name))) is None:
                continue
            if words.startswith("*"):
                found[words[1:]] = tuple(tensor.shape)
            else:
                for size, (times, attribute, parts) in zip(tensor.shape, _SIZE.findall(words), strict=False):
                    found[attribute] = size // int(times or 1) * (getattr(layer, parts) if parts else 1)
        return found


CARDS: dict[type[nn.Module], LeafCard] = {}
_NO_CARD = LeafCard()


def card_of(layer: type[nn.Module]) -> LeafCard:
    """Return the card of a class, or of the standard layer that it derives from; an empty one where there is none."""
    return next((CARDS[cls] for cls in layer.__mro__ if cls in CARDS), _NO_CARD)


def is_standard(layer: type[nn.Module]) -> bool:
    """Tell whether a class is torch's own or derives from one that has a card."""
    return layer.__module__.partition(".")[0] == "torch" or card_of(layer) is not _NO_CARD


def is_opaque(module: nn.Module) -> bool:
    """Tell whether a module of torch's own has parameters but no functional form, so that it must not stay a leaf."""
    return card_of(type(module)).form is None and next(iter(module.parameters()), None) is not None


def update_sizes(layer: nn.Module) -> None:
    """Set the attributes in which a standard layer names the sizes of its tensors, in place."""
    for name, value in card_of(type(layer)).sizes(layer).items():
        setattr(layer, name, value)


def _register(*classes: type[nn.Module], card: LeafCard) -> None:
    CARDS.update(dict.fromkeys(classes, card))


def own_forward(m: Any, *args: Any, **kwargs: Any) -> Any:
    """The form of layers whose ``forward`` has no branches."""
    return type(m._module).forward(m, *args, **kwargs)


# Linear maps and tables.

_register(nn.Linear, card=LeafCard(own_forward, {"weight": "out_features in_features"}, takes_bias=True))
_register(nn.Bilinear, card=LeafCard(own_forward, {"weight": "out_features in1_features in2_features"}))
_register(nn.Embedding, nn.EmbeddingBag, card=LeafCard(own_forward, {"weight": "num_embeddings embedding_dim"}))
_register(nn.PReLU, card=LeafCard(own_forward, {"weight": "num_parameters"}))


# Convolutions.

_register(
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    card=LeafCard(own_forward, {"weight": "out_channels in_channels/groups"}, arguments={"groups": "groups"}, takes_bias=True),
)  # fmt: skip


def _conv_transpose(m: Any, x: Any, output_size: Any = None) -> Any:
    extra = m.output_padding
    if output_size is not None:
        extra = m.call(layers.output_padding, x, output_size, m.stride, m.padding, m.kernel_size, m.dilation)
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(m.kernel_size) - 1]
    return convolve(x, m.weight, m.bias, m.stride, m.padding, extra, m.groups, m.dilation)


_register(
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    card=LeafCard(_conv_transpose, {"weight": "in_channels out_channels/groups"}, arguments={"groups": "groups"}),
)  # fmt: skip


# Norms.

_FEATURES = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), "num_features")


def _batch_norm(m: Any, x: Any) -> Any:
    mean, var = m.running_mean, m.running_var
    if mean is None and var is None:
        return F.batch_norm(x, None, None, m.weight, m.bias, True, m.momentum or 0.0, m.eps)
    if not m.track_running_stats:
        raise LoweringError("a batch norm that has running statistics but does not track them has no functional form")
    training = m.training
    momentum = m.call(layers.batch_norm_momentum, m.num_batches_tracked, m.momentum, training)
    return F.batch_norm(x, mean, var, m.weight, m.bias, training, momentum, m.eps)


_register(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, card=LeafCard(_batch_norm, _FEATURES))
_register(nn.SyncBatchNorm, card=LeafCard(None, _FEATURES))  # its training step is a collective operation


def _instance_norm(m: Any, x: Any) -> Any:
    # Without tracked statistics the input's own are used in both modes.
    from_input = m.training if m.track_running_stats else True
    classes = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    batched_dim = next(rank for rank, cls in enumerate(classes, 3) if isinstance(m._module, cls))
    return m.call(
        layers.instance_norm,
        x, m.running_mean, m.running_var, m.weight, m.bias, from_input, m.momentum or 0.0, m.eps, batched_dim,
    )  # fmt: skip


_register(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, card=LeafCard(_instance_norm, _FEATURES))
_register(nn.GroupNorm, card=LeafCard(own_forward, {"weight": "num_channels"}, arguments={"num_groups": "num_groups"}))
_register(
    nn.LayerNorm, nn.RMSNorm,
    card=LeafCard(own_forward, {"weight": "*normalized_shape"}, arguments={"normalized_shape": "normalized_shape"}),
)  # fmt: skip


# Attention: the module knows heads of one width only.


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


_register(nn.MultiheadAttention, card=LeafCard(_multi_head_attention, shrinks_written_out=True))


# Recurrent layers.


def _settings(m: Any) -> list[Any]:
    """Return the weights of a recurrent layer as a list, and its options."""
    kinds = ["weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if m.bias else ()), *(("weight_hr",) if m.proj_size else ())]
    ways = ("", "_reverse") if m.bidirectional else ("",)
    weights = [getattr(m, f"{kind}_l{layer}{way}") for layer in range(m.num_layers) for way in ways for kind in kinds]
    return [weights, m.bias, m.num_layers, float(m.dropout), m.training, m.bidirectional, m.batch_first]


def _lstm(m: Any, input: Any, hx: Any = None) -> Any:
    return m.call(layers.lstm, input, hx, *_settings(m))


def _gru(m: Any, input: Any, hx: Any = None) -> Any:
    return m.call(layers.gru, input, hx, *_settings(m), m.mode.lower())


_register(nn.LSTM, card=LeafCard(_lstm, {"weight_ih_l0": "4*hidden_size input_size", "weight_hr_l0": "proj_size hidden_size"}))
_register(nn.GRU, card=LeafCard(_gru, {"weight_ih_l0": "3*hidden_size input_size"}))
_register(nn.RNN, card=LeafCard(_gru, {"weight_ih_l0": "hidden_size input_size"}))


def _lstm_cell(m: Any, input: Any, hx: Any = None) -> Any:
    return m.call(layers.lstm_cell, input, hx, m.weight_ih, m.weight_hh, m.bias_ih, m.bias_hh)


def _rnn_cell(m: Any, input: Any, hx: Any = None) -> Any:
    kind = "gru" if isinstance(m._module, nn.GRUCell) else f"rnn_{m.nonlinearity}"
    return m.call(layers.rnn_cell, input, hx, m.weight_ih, m.weight_hh, m.bias_ih, m.bias_hh, kind)


_register(nn.LSTMCell, card=LeafCard(_lstm_cell, {"weight_ih": "4*hidden_size input_size"}))
_register(nn.GRUCell, card=LeafCard(_rnn_cell, {"weight_ih": "3*hidden_size input_size"}))
_register(nn.RNNCell, card=LeafCard(_rnn_cell, {"weight_ih": "hidden_size input_size"}))


# Layers without parameters that have sizes as arguments.

_register(nn.ChannelShuffle, card=LeafCard(arguments={"groups": "groups"}))
_register(nn.Unflatten, card=LeafCard(arguments={"sizes": "unflattened_size"}))
_register(
    nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
    nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d,
    nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d,
    card=LeafCard(arguments={"pad": "padding"}),
)  # fmt: skip
