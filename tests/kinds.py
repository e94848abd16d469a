"""The kinds of parameters that tests mask: small modules, each with inputs and the names of its parameters.

Every kind builds equal modules and inputs each time it is asked, so that two sides of a comparison start alike.
"""

import copy
import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import fxprune

_SEED = 20


class Layer(nn.Module):
    """Calls one layer with the inputs it gets, so that the layer is a leaf of a model and not the model itself."""

    def __init__(self, layer: nn.Module, **options: Any) -> None:
        super().__init__()
        self.layer = layer
        self.options = options

    def forward(self, *inputs: Any) -> Any:
        return self.layer(*inputs, **self.options)


class MaskedAttention(nn.Module):
    """Attention with both of its masks, which are keyword inputs of the layer."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, **options)

    def forward(self, x: Tensor, padding: Tensor, attention: Tensor) -> Any:
        return self.layer(x, x, x, key_padding_mask=padding, attn_mask=attention, average_attn_weights=False)


class Upsampling(nn.Module):
    """A transposed convolution that is told the size of its output, as in a U-net."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 3, 3, stride=2, padding=1)
        self.layer = nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Any:
        return self.layer(torch.tanh(self.down(x)), output_size=x.size())


class Bare(nn.Module):
    """Parameters of no layer but of the model itself, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(3, 4))
        self.shift = nn.Parameter(torch.empty(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, self.scale)) @ self.scale + self.shift


class InParts(nn.Module):
    """Parameters of parts that are never called."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.empty(4, 4)) for _ in range(2)])
        self.shifts = nn.ParameterDict({"first": nn.Parameter(torch.empty(4))})

    def forward(self, x: Tensor) -> Any:
        first, last = self.scales
        return torch.tanh(x @ first + self.shifts["first"]) @ last


class Tied(nn.Module):
    """An embedding whose weight is also that of the linear layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Any:
        return self.head(torch.tanh(self.embed(tokens)))


class TiedInFunction(nn.Module):
    """An embedding whose weight is read a second time outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.embed(tokens)), self.embed.weight)


class Twice(nn.Module):
    """One layer at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.layer(torch.tanh(self.layer(x)))


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of parameter.

    Attributes:
        name: The key of the kind in `KINDS`.
        module: Makes the module; values of its tensors do not matter.
        inputs: Makes the positional inputs.
        parameters: The dotted names of the parameters to mask.
        hooks: Whether ``torch.nn.utils.prune`` gets this kind right.
        export: Whether ``torch.export`` can capture this kind.
    """

    name: str
    module: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    parameters: tuple[str, ...]
    hooks: bool = True
    export: bool = True

    def build(self) -> nn.Module:
        """Return the module in train mode, with values in which no two elements of a parameter are equal."""
        module = self.module()
        generator = torch.Generator().manual_seed(_SEED)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(0.0, 0.7, generator=generator)
            for name, buffer in module.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_(generator=generator)
                elif name.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5, generator=generator)
        return module


def _normal(*shapes: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
    def inputs() -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(_SEED + 1)
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)

    return inputs


def _whole(high: int, *shape: int) -> Callable[[], tuple[Tensor, ...]]:
    def inputs() -> tuple[Tensor, ...]:
        return (torch.randint(high, shape, generator=torch.Generator().manual_seed(_SEED + 1)),)

    return inputs


def _bags() -> tuple[Tensor, ...]:
    return torch.tensor([1, 2, 4, 5, 4, 3, 2, 6]), torch.tensor([0, 3, 5])


def _masked_attention_inputs() -> tuple[Tensor, ...]:
    (x,) = _normal((2, 5, 8))()
    padding = torch.tensor([[False] * 5, [False, False, False, True, True]])
    return x, padding, torch.ones(5, 5, dtype=torch.bool).triu(1)


def _with_states(layers: int, batch: int) -> Callable[[], tuple[Any, ...]]:
    def inputs() -> tuple[Any, ...]:
        x, h, c = _normal((5, batch, 4), (layers, batch, 3), (layers, batch, 3))()
        return x, (h, c)

    return inputs


def _cell_with_states() -> tuple[Any, ...]:
    x, h, c = _normal((3, 4), (3, 5), (3, 5))()
    return x, (h, c)


def _one(name: str, layer: Callable[[], nn.Module], inputs: Any, *parameters: str, **options: Any) -> Kind:
    """A kind of a single layer, masked in its weight and bias unless other parameters are named."""
    names = parameters or ("weight", "bias")
    return Kind(name, lambda: Layer(layer(), **options), inputs, tuple(f"layer.{p}" for p in names))


_CONVOLUTIONS = (
    _one("conv1d", lambda: nn.Conv1d(2, 3, 3), _normal((2, 2, 8))),
    _one("conv2d", lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1), _normal((2, 2, 8, 8))),
    _one("conv3d", lambda: nn.Conv3d(2, 3, 2), _normal((2, 2, 4, 4, 4))),
    _one("conv2d_grouped", lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2), _normal((2, 4, 8, 8))),
    _one("conv1d_circular", lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), _normal((2, 2, 8))),
    _one("conv2d_reflect", lambda: nn.Conv2d(2, 3, 3, padding="same", padding_mode="reflect"), _normal((2, 2, 6, 6))),
    _one("conv2d_no_bias", lambda: nn.Conv2d(2, 3, 3, bias=False), _normal((2, 2, 6, 6)), "weight"),
    _one("conv_transpose1d", lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, output_padding=1), _normal((2, 2, 5))),
    _one("conv_transpose2d", lambda: nn.ConvTranspose2d(2, 4, 3, groups=2, dilation=2), _normal((2, 2, 5, 5))),
    _one("conv_transpose3d", lambda: nn.ConvTranspose3d(2, 3, 2, padding=1), _normal((2, 2, 3, 3, 3))),
    Kind("conv_transpose2d_sized", Upsampling, _normal((2, 2, 8, 8)), ("down.weight", "layer.weight", "layer.bias")),
)

_PRODUCTS = (
    _one("linear", lambda: nn.Linear(5, 4), _normal((3, 5))),
    _one("linear_no_bias", lambda: nn.Linear(5, 4, bias=False), _normal((3, 2, 5)), "weight"),
    _one("bilinear", lambda: nn.Bilinear(3, 4, 2), _normal((3, 3), (3, 4))),
    _one("embedding", lambda: nn.Embedding(7, 4, padding_idx=2), _whole(7, 3, 5), "weight"),
    _one("embedding_bag", lambda: nn.EmbeddingBag(7, 4, mode="sum", padding_idx=4), _bags, "weight"),
    _one("embedding_bag_2d", lambda: nn.EmbeddingBag(7, 4, mode="max"), _whole(7, 3, 5), "weight"),
    _one("prelu", lambda: nn.PReLU(4), _normal((3, 4, 2)), "weight"),
    Kind("bare", Bare, _normal((3, 4)), ("scale", "shift")),
    # A hook runs when its module is called; torch computes the masked parameter once and then it is stale.
    Kind("in_parts", InParts, _normal((3, 4)), ("scales.0", "scales.1", "shifts.first"), hooks=False),
    Kind("tied", Tied, _whole(7, 3, 5), ("embed.weight",), hooks=False),
    Kind("tied_in_function", TiedInFunction, _whole(7, 3, 5), ("embed.weight",), hooks=False),
    Kind("twice", Twice, _normal((3, 4)), ("layer.weight", "layer.bias")),
)

_NORMS = (
    _one("batch_norm1d", lambda: nn.BatchNorm1d(4), _normal((6, 4))),
    _one("batch_norm2d", lambda: nn.BatchNorm2d(4), _normal((3, 4, 5, 5))),
    _one("batch_norm3d", lambda: nn.BatchNorm3d(4), _normal((3, 4, 2, 3, 3))),
    # Its train mode asks for the value of a counter, which torch.export does not know.
    dataclasses.replace(
        _one("batch_norm_average", lambda: nn.BatchNorm2d(4, momentum=None), _normal((3, 4, 5, 5))), export=False
    ),
    _one("batch_norm_untracked", lambda: nn.BatchNorm2d(4, track_running_stats=False), _normal((3, 4, 5, 5))),
    _one("layer_norm", lambda: nn.LayerNorm((3, 4)), _normal((2, 3, 4))),
    _one("group_norm", lambda: nn.GroupNorm(2, 4), _normal((2, 4, 5))),
    _one("instance_norm1d", lambda: nn.InstanceNorm1d(4, affine=True), _normal((2, 4, 6))),
    _one("instance_norm2d", lambda: nn.InstanceNorm2d(4, affine=True), _normal((2, 4, 5, 5))),
    _one("instance_norm3d", lambda: nn.InstanceNorm3d(4, affine=True), _normal((2, 4, 2, 3, 3))),
    _one("instance_norm2d_unbatched", lambda: nn.InstanceNorm2d(4, affine=True), _normal((4, 5, 5))),
    _one(
        "instance_norm1d_tracked",
        lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
        _normal((2, 4, 6)),
    ),
    _one(
        "instance_norm1d_tracked_unbatched",
        lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
        _normal((4, 6)),
    ),
    _one("rms_norm", lambda: nn.RMSNorm((3, 4)), _normal((2, 3, 4)), "weight"),
)

_RECURRENT = (
    _one("lstm", lambda: nn.LSTM(4, 3), _normal((5, 2, 4)), "weight_ih_l0", "weight_hh_l0", "bias_hh_l0"),
    _one(
        "lstm_deep",
        lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5, proj_size=2),
        _normal((2, 3, 4)),
        "weight_ih_l0",
        "weight_hr_l0_reverse",
        "weight_hh_l1_reverse",
        "bias_ih_l1",
    ),
    _one("lstm_with_states", lambda: nn.LSTM(4, 3, num_layers=2), _with_states(2, 3), "weight_ih_l1", "weight_hh_l0"),
    _one("lstm_unbatched", lambda: nn.LSTM(4, 3, bias=False), _normal((5, 4)), "weight_ih_l0", "weight_hh_l0"),
    _one(
        "gru",
        lambda: nn.GRU(4, 3, num_layers=2, bidirectional=True, dropout=0.5),
        _normal((5, 2, 4), (4, 2, 3)),
        "weight_ih_l0",
        "weight_hh_l1_reverse",
    ),
    _one("gru_unbatched", lambda: nn.GRU(4, 3), _normal((5, 4), (1, 3)), "weight_ih_l0", "weight_hh_l0"),
    _one("rnn_tanh", lambda: nn.RNN(4, 3, batch_first=True), _normal((2, 5, 4)), "weight_ih_l0", "weight_hh_l0"),
    _one("rnn_relu", lambda: nn.RNN(4, 3, nonlinearity="relu"), _normal((5, 2, 4)), "weight_ih_l0", "weight_hh_l0"),
    _one("lstm_cell", lambda: nn.LSTMCell(4, 5), _cell_with_states, "weight_ih", "weight_hh", "bias_ih"),
    _one("lstm_cell_unbatched", lambda: nn.LSTMCell(4, 5), _normal((4,)), "weight_ih", "bias_hh"),
    _one("gru_cell", lambda: nn.GRUCell(4, 5), _normal((3, 4), (3, 5)), "weight_ih", "weight_hh", "bias_ih"),
    _one("rnn_cell", lambda: nn.RNNCell(4, 5, bias=False), _normal((3, 4)), "weight_ih", "weight_hh"),
    _one("rnn_cell_unbatched", lambda: nn.RNNCell(4, 5, nonlinearity="relu"), _normal((4,), (5,)), "weight_ih", "weight_hh"),
)


def _attention(name: str, layer: Callable[[], nn.Module], inputs: Any, *parameters: str, **options: Any) -> Kind:
    # The output projection is never called as a module, so a hook on it runs once and then is stale
    # (pytorch/pytorch#69353).
    kind = _one(name, layer, inputs, *parameters, **options)
    return dataclasses.replace(kind, hooks="out_proj.weight" not in parameters)


_ATTENTION = (
    _attention(
        "attention",
        lambda: nn.MultiheadAttention(8, 2),
        _normal((5, 2, 8), (3, 2, 8), (3, 2, 8)),
        "in_proj_weight",
        "in_proj_bias",
    ),
    _attention(
        "attention_out_proj",
        lambda: nn.MultiheadAttention(8, 2, dropout=0.3),
        _normal((5, 2, 8), (3, 2, 8), (3, 2, 8)),
        "in_proj_weight",
        "out_proj.weight",
        "out_proj.bias",
    ),
    _attention(
        "attention_batch_first",
        lambda: nn.MultiheadAttention(8, 2, batch_first=True, bias=False),
        _normal((2, 5, 8), (2, 3, 8), (2, 3, 8)),
        "in_proj_weight",
        "out_proj.weight",
        need_weights=False,
    ),
    _attention(
        "attention_unbatched",
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        _normal((5, 8), (3, 8), (3, 8)),
        "in_proj_weight",
    ),
    _attention(
        "attention_separate",
        lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=4, add_bias_kv=True, add_zero_attn=True),
        _normal((5, 2, 8), (3, 2, 6), (3, 2, 4)),
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "bias_k",
    ),
    Kind(
        "attention_masked",
        lambda: MaskedAttention(batch_first=True),
        _masked_attention_inputs,
        ("layer.in_proj_weight", "layer.out_proj.weight"),
        hooks=False,
    ),
)

KINDS: dict[str, Kind] = {k.name: k for k in (*_CONVOLUTIONS, *_PRODUCTS, *_NORMS, *_RECURRENT, *_ATTENTION)}


@functools.cache
def _captured(kind: Kind) -> fx.GraphModule:
    return fxprune.capture(kind.build(), kind.inputs(), frontend="trace")


def captured(kind: Kind) -> fx.GraphModule:
    """Return the traced graph of a module of this kind, which shares nothing with any other."""
    return copy.deepcopy(_captured(kind))


def loss(output: Any) -> Tensor:
    """Return a number that every element of the output moves, each by another amount."""
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    weighted = [(leaf * torch.linspace(-1.0, 1.3, leaf.numel()).view_as(leaf)).sum() for leaf in leaves]
    return torch.stack(weighted).sum()


def readable(gm: fx.GraphModule) -> str:
    """Return the generated code without what makes it long: comments, blank lines and freed variables."""
    lines = (re.sub(r"(;\s+(\w+ = )+None)?\s*(#.*)?$", "", line) for line in gm.code.splitlines())
    return "\n".join(line for line in lines if line.strip())
