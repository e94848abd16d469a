"""Convolutions of every dimension: plain, grouped, depthwise, transposed."""

from __future__ import annotations

import math
from typing import Any

from torch.nn import functional as F

from fxprune.rules.call import Call
from fxprune.rules.card import OpCard, Places, PositionsLeft, Work
from fxprune.rules.labels import Label
from fxprune.rules.notation import Pattern
from fxprune.rules.registry import register_aten, register_named

_UNGROUPED = "{b}[i] *s, o [i] *k, o -> {b}o *t"
_GROUPED = "{b}(g [i]) *s, (g o) [i] *k, (g o) -> {b}(g o) *t"
_TRANSPOSED = "{b}(g [i]) *s, (g [i]) o *k, (g o) -> {b}(g o) *t"


def _is_transposed(call: Call) -> bool:
    return bool(call.arguments.get("transposed", False)) or "conv_transpose" in call.op.name()


def _convolution(call: Call) -> str:
    text = _TRANSPOSED if _is_transposed(call) else _GROUPED if call["groups"] > 1 else _UNGROUPED
    # ``conv2d`` takes a sample without a batch as well.
    return text.format(b="b " if len(call.operand(0)) == len(call.operand(1)) else "")


def groups(call: Call) -> dict[str, int]:
    """Return the number of groups as the size of the axis ``g``."""
    return {"g": call["groups"]}


def groups_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    """Return the number of groups that are left, as the argument ``groups``."""
    return {"groups": left.size(call.axes["g"]) if "g" in call.axes else call["groups"]}


def _work(call: Call) -> list[Work]:
    """Return the work: a product with the whole kernel at each place of the output, or of the input if transposed."""
    weight = call.operand(1)
    plane = call.operand(0).shape if _is_transposed(call) else call.shapes[0]
    channels = plane[1 - len(weight)]
    return [Work(2 * math.prod(weight.shape) * math.prod(plane) // max(channels, 1), tuple(call.axes.values()))]


def _deformed(call: Call) -> str:
    """Return the pattern of a convolution at places that operand 2 gives, for all channels of one of its groups alike."""
    if call["n_weight_grps"] == 1:
        mask = "b (q !p) *t" if call["use_mask"] else "_"
        return f"b (q [i]) *s, o (q [i]) *k, b (q !r) *t, {mask}, o -> b o *t"
    mask = "b !p *t" if call["use_mask"] else "_"
    # Groups of both kinds may cut the channels at different places.
    inputs, group, i = ("(g [i])", "g", "[i]") if call["n_offset_grps"] == 1 else ("!c", "!g", "!i")
    return f"b {inputs} *s, ({group} o) {i} *k, b !r *t, {mask}, ({group} o) -> b ({group} o) *t"


def _both_groups(call: Call) -> dict[str, int]:
    return {"g": call["n_weight_grps"], "q": call["n_offset_grps"]}


def _both_groups_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    names = {"n_weight_grps": "g", "n_offset_grps": "q"}
    return {argument: left.size(call.axes[n]) if n in call.axes else call[argument] for argument, n in names.items()}


_DEFORMED = Pattern(_deformed, _GROUPED.format(b="b "), zeros="0*1+4", sizes=_both_groups)
_CONVOLUTION = Pattern(_convolution, _GROUPED.format(b="b "), zeros="0*1+2", sizes=groups)

for _names, _function in (
    ("conv1d conv1d.padding", F.conv1d),
    ("conv2d conv2d.padding", F.conv2d),
    ("conv3d conv3d.padding", F.conv3d),
    ("convolution _convolution", None),
):
    register_aten(_names, OpCard(_CONVOLUTION, groups_left, work=_work, places=Places(0, 1, 2, function=_function)))
register_aten(
    "conv_transpose1d conv_transpose2d.input conv_transpose3d.input convolution_overrideable mkldnn_convolution "
    "cudnn_convolution",
    OpCard(_CONVOLUTION, groups_left, work=_work),
)
register_named("torchvision::deform_conv2d", OpCard(_DEFORMED, _both_groups_left, work=_work))
