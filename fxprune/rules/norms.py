"""Normalisations: batch, instance, group, layer, RMS and weight norm, under all their ATen names."""

from __future__ import annotations

import math
from typing import Any

import torch

from fxprune.functional import over_kept
from fxprune.rules.call import Call
from fxprune.rules.card import OpCard, OverKept, PositionsLeft
from fxprune.rules.labels import Label
from fxprune.rules.notation import Pattern
from fxprune.rules.registry import register_aten


def _results(first: str, call: Call) -> str:
    """Return the results of a norm: its output, then statistics, whose axes carry no units."""
    return ", ".join([first] + ["_"] * (len(call.shapes) - 1))


def _batch_norm(call: Call) -> str:
    """Return the pattern of a batch norm: statistics run over the batch and all places, in train mode at least.

    Without running statistics they do so in both modes, as where a batch norm standardises weights.
    """
    if call.arguments.get("running_mean") is None:
        places = " ".join(f"[s{k}]" for k in range(len(call.operand(0)) - 2))
        return f"[b] c {places}, c, c, c, c -> {_results(f'[b] c {places}', call)}"
    return f"!b c *s, c, c, c, c -> {_results('!b c *s', call)}"


def _groups(call: Call) -> dict[str, int]:
    return {"g": call.arguments.get("num_groups") or call["group"]}


def _group_norm(call: Call) -> str:
    return f"b (g [c]) *s, (g [c]), (g [c]) -> {_results('b (g [c]) *s', call)}"


def _groups_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    groups = left.size(call.axes["g"])
    if "num_groups" in call.arguments:
        return {"num_groups": groups}
    shape = left.shape(results[0])
    return {"N": shape[0], "C": shape[1], "HxW": math.prod(shape[2:]), "group": groups}


def _over_last(call: Call) -> str:
    """Return the pattern of a norm over the last dimensions, those of ``normalized_shape``."""
    inner = " ".join(f"[c{k}]" for k in range(len(call["normalized_shape"])))
    return f"...b {inner}, {inner}, {inner} -> {_results(f'...b {inner}', call)}"


def _normalized_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    inner = len(call["normalized_shape"])
    return {"normalized_shape": list(left.shape(results[0])[-inner:])}


def _over_last_plain(call: Call) -> dict[str, Any]:
    eps = torch.finfo(call["input"].dtype).eps if call["eps"] is None else call["eps"]
    return {"normalized_shape": list(call["normalized_shape"]), "eps": eps}


def _weight_norm(call: Call) -> str:
    """Return the pattern of ``g * v / |v|``, the norm over all dimensions but one."""
    rank, kept = len(call.operand(0)), call["dim"]
    names = [f"x{k}" if k == kept else f"[x{k}]" for k in range(rank)]
    scale = ["1" if size == 1 else f"x{k}" for k, size in enumerate(call.operand(1).shape)]
    return f"{' '.join(names)}, {' '.join(scale)} -> {_results(' '.join(names), call)}"


def _unless_running(call: Call) -> str:
    """Return how zeros travel: a zero channel has mean zero, but a running mean of 0.3 turns it into -0.3."""
    return "0*1+2" if call.operands[3:4] in ([], [None]) else "n*1+2"


_BATCH_NORM = Pattern(
    _batch_norm, "!b c *s, c, c, c, c -> !b c *s", zeros=_unless_running, mixed_zeros="n*1+2", mixes="normalize"
)
_GROUP_NORM = Pattern(
    _group_norm,
    "b (g [c]) *s, (g [c]), (g [c]) -> b (g [c]) *s",
    zeros="0*1+2",
    mixed_zeros="n*1+2",
    mixes="normalize",
    sizes=_groups,
)
_LAYER_NORM = Pattern(_over_last, "...b [c], [c], [c] -> ...b [c]", zeros="0*1+2", mixed_zeros="n*1+2", mixes="normalize")
# Without a shift a zero stays zero.
_RMS_NORM = Pattern(_over_last, "...b [c], [c] -> ...b [c]", zeros="0*1", mixes="normalize")
_AFFINE = ("input", "weight", "bias")

register_aten(
    "batch_norm", OpCard(_BATCH_NORM, over_kept=OverKept(over_kept.batch_norm_of_kept, _AFFINE, ("eps",)), batch_norm_scale=1)
)
register_aten(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional _native_batch_norm_legit.no_stats "
    "_native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm _batch_norm_impl_index "
    "_batch_norm_with_update _batch_norm_with_update_functional _batch_norm_no_update",
    OpCard(_BATCH_NORM, batch_norm_scale=1),
)
register_aten("instance_norm", Pattern("b c *s, c, c, c, c -> b c *s", zeros=_unless_running))
register_aten(
    "group_norm", OpCard(_GROUP_NORM, _groups_left, OverKept(over_kept.group_norm_of_kept, _AFFINE, ("num_groups", "eps")))
)
register_aten("native_group_norm", OpCard(_GROUP_NORM, _groups_left))
register_aten(
    "layer_norm", OpCard(_LAYER_NORM, _normalized_left, OverKept(over_kept.layer_norm_of_kept, _AFFINE, _over_last_plain))
)
register_aten("native_layer_norm", OpCard(_LAYER_NORM, _normalized_left))
register_aten(
    "rms_norm", OpCard(_RMS_NORM, _normalized_left, OverKept(over_kept.rms_norm_of_kept, ("input", "weight"), _over_last_plain))
)
register_aten("_fused_rms_norm", OpCard(_RMS_NORM, _normalized_left))
register_aten(
    "_weight_norm _weight_norm_interface",
    # A row of zeros has norm zero, so that zero is divided by zero.
    Pattern(_weight_norm, "o [i], o 1 -> o [i]", zeros="u", mixed_zeros="z", mixes="norm"),
)
