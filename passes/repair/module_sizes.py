"""What modules of torch say about the sizes of their parameters, and how to bring it up to date after these shrank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

Sizes = Callable[[Any], dict[str, Any]]


def _convolution(m: Any) -> dict[str, Any]:
    return {"out_channels": m.weight.shape[0], "in_channels": m.weight.shape[1] * m.groups}


def _transposed(m: Any) -> dict[str, Any]:
    return {"in_channels": m.weight.shape[0], "out_channels": m.weight.shape[1] * m.groups}


def _features(m: Any) -> dict[str, Any]:
    held = next((t for t in (m.weight, m.bias, m.running_mean, m.running_var) if t is not None), None)
    return {} if held is None else {"num_features": held.shape[0]}


def _group_norm(m: Any) -> dict[str, Any]:
    return {} if m.weight is None else {"num_channels": m.weight.shape[0]}


def _recurrent(m: Any) -> dict[str, Any]:
    gates = {"LSTM": 4, "GRU": 3}.get(m.mode, 1)
    found = {"input_size": m.weight_ih_l0.shape[1], "hidden_size": m.weight_hh_l0.shape[0] // gates}
    return found | ({"proj_size": m.weight_hr_l0.shape[0]} if m.proj_size else {})


_SIZES: dict[type[nn.Module], Sizes] = {
    nn.Linear: lambda m: {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]},
    nn.Bilinear: lambda m: dict(zip(("out_features", "in1_features", "in2_features"), m.weight.shape, strict=True)),
    nn.modules.conv._ConvNd: _convolution,
    nn.modules.conv._ConvTransposeNd: _transposed,
    nn.modules.batchnorm._NormBase: _features,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: lambda m: {} if m.weight is None else {"normalized_shape": tuple(m.weight.shape)},
    nn.RMSNorm: lambda m: {} if m.weight is None else {"normalized_shape": tuple(m.weight.shape)},
    nn.Embedding: lambda m: {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]},
    nn.EmbeddingBag: lambda m: {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]},
    nn.PReLU: lambda m: {"num_parameters": m.weight.shape[0]},
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: lambda m: {"input_size": m.weight_ih.shape[1], "hidden_size": m.weight_hh.shape[1]},
}


def update_sizes(module: nn.Module) -> None:
    """Set the attributes in which a module of torch's own names the sizes of its tensors, in place."""
    for cls in type(module).__mro__:
        if cls in _SIZES:
            for name, value in _SIZES[cls](module).items():
                setattr(module, name, value)
            return


def put_tensor(module: nn.Module, attribute: str, tensor: Tensor) -> None:
    """Put a tensor where a module holds one of the same kind, a parameter or a buffer."""
    if isinstance(module, nn.RNNBase):
        setattr(module, attribute, tensor)  # it keeps a second list of its weights, which follows assignments
    elif isinstance(tensor, nn.Parameter):
        module._parameters[attribute] = tensor
    else:
        module._buffers[attribute] = tensor


def slice_tensor(tensor: Tensor, kept: Sequence[Tensor | None]) -> Tensor:
    """Return what is left of a tensor, given for each dimension the positions left, or None for all."""
    shares = [(round(4 * len(index) / tensor.shape[dim]), dim) for dim, index in enumerate(kept) if index is not None]
    # What removes most comes first; of two that remove about the same the outer one, whose rows are copied as they lie.
    for _, dim in sorted(shares):
        index = kept[dim]
        assert index is not None
        tensor = tensor.index_select(dim, index if tensor.device.type == "cpu" else index.to(tensor.device))
    return tensor
