"""Torch-Pruning, called as its own examples call it, so that both sides of a comparison do the same work."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def torch_pruned(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], amount: float = 0.5, everywhere: bool = False
) -> nn.Module:
    """Prune a model in place by Torch-Pruning, by group magnitude, and return it.

    It is told what its examples tell it: which layers make the result, and how many heads each attention has.

    Args:
        model: the model.
        args: positional inputs.
        kwargs: keyword inputs.
        amount: the share of channels to remove.
        everywhere: rank the channels of all groups together, instead of taking the share of each.
    """
    import torch_pruning

    pruner = torch_pruning.pruner.BasePruner(
        model,
        _by_name(model, args, kwargs) if kwargs or len(args) > 1 else args[0],
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=amount,
        global_pruning=everywhere,
        ignored_layers=_heads(model, args, kwargs),
        num_heads=_attentions(model),
        round_to=_round_to(model),
        output_transform=_sum,
    )
    pruner.step()
    for module, heads in pruner.num_heads.items():
        _tell(model, module, heads)
    for module in model.modules():  # torchvision's ViT asks for the width that it was built with
        first = getattr(module, "conv_proj", None)
        if isinstance(first, nn.Conv2d) and isinstance(getattr(module, "hidden_dim", None), int):
            vars(module)["hidden_dim"] = first.out_channels
    return model


def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def _sum(result: Any) -> Tensor:
    """Return one number that depends on all results, whatever holds them."""
    leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    if not leaves and hasattr(result, "to_tuple"):
        leaves = [leaf for leaf in pytree.tree_leaves(result.to_tuple()) if isinstance(leaf, Tensor)]
    return torch.stack([leaf.sum() for leaf in leaves]).sum()


def _heads(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[nn.Module]:
    """Return the layers that make a result: those whose value it is, else the last that has as many channels."""
    made: dict[int, nn.Module] = {}
    kept: list[Any] = []  # so that no address is used twice
    widths: dict[int, nn.Module] = {}  # the last layer of each number of channels

    def note(module: nn.Module, _: Any, result: Any) -> None:
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            widths[len(module.weight)] = module
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor):
                made[leaf.data_ptr()] = module
                kept.append(leaf)

    layers = [m for m in model.modules() if not list(m.children()) and list(m.parameters())]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            result = model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    values = result.to_tuple() if hasattr(result, "to_tuple") else result
    found = []
    for leaf in pytree.tree_leaves(values):
        if isinstance(leaf, Tensor):
            channels = leaf.shape[1 if leaf.dim() > 3 else -1] if leaf.dim() else 0
            found.append(made.get(leaf.data_ptr(), widths.get(channels)))
    return [layer for layer in dict.fromkeys(found) if layer is not None]


_QUERIES = ("qkv", "query", "q_proj", "k_proj", "v_proj", "key", "value", "q", "kv", "c_attn")
_COUNTS = ("num_heads", "num_attention_heads", "n_heads")


def _attentions(model: nn.Module) -> dict[nn.Module, int]:
    """Return the projections of every attention, with its number of heads."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        heads = next((getattr(module, name) for name in _COUNTS if isinstance(getattr(module, name, None), int)), None)
        if heads is None:
            continue
        for name in _QUERIES:
            layer = getattr(module, name, None)
            if isinstance(layer, nn.Linear):
                found[layer] = heads
    return found


def _round_to(model: nn.Module) -> int | None:
    """Return what widths have to be multiples of for torch's own attention, whose heads it does not prune."""
    heads = [module.num_heads for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    return math.lcm(*heads) if heads else None


def _tell(model: nn.Module, layer: nn.Module, heads: int) -> None:
    """Let the attention around a pruned projection know its new sizes, as Torch-Pruning's examples do."""
    for module in model.modules():
        if layer not in module.children() or not isinstance(layer, nn.Linear):
            continue
        width = layer.out_features // (3 if getattr(module, "qkv", None) is layer else 1)
        for name, value in {
            "num_heads": heads,
            "num_attention_heads": heads,
            "head_dim": width // heads,
            "attention_head_size": width // heads,
            "all_head_size": width,
            "attn_dim": width,
        }.items():
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, value)
