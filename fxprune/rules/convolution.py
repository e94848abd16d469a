"""Convolutions of every dimension: plain, grouped, depthwise, transposed."""

from __future__ import annotations

from fxprune.rules.call import Call
from fxprune.rules.notation import Pattern
from fxprune.rules.registry import overloads, register

_UNGROUPED = "{b}[i] *s, o [i] *k, o -> {b}o *t"
_GROUPED = "{b}(g [i]) *s, (g o) [i] *k, (g o) -> {b}(g o) *t"
_TRANSPOSED = "{b}(g [i]) *s, (g [i]) o *k, (g o) -> {b}(g o) *t"


def _convolution(call: Call) -> str:
    transposed = bool(call.arguments.get("transposed", False)) or "conv_transpose" in call.op.name()
    text = _TRANSPOSED if transposed else _GROUPED if call["groups"] > 1 else _UNGROUPED
    # Below autograd there always is a batch; the functions above take a single sample, too.
    return text.format(b="b " if len(call.operand(0)) == len(call.operand(1)) else "")


def _groups(call: Call) -> dict[str, int]:
    return {"g": call["groups"]}


CONVOLUTION = Pattern(_convolution, _GROUPED.format(b="b "), zeros="0*1+2", sizes=_groups)

register(
    overloads(
        "convolution _convolution convolution_overrideable conv1d conv2d conv3d conv1d.padding conv2d.padding conv3d.padding "
        "conv_transpose1d conv_transpose2d.input conv_transpose3d.input mkldnn_convolution cudnn_convolution"
    ),
    CONVOLUTION,
)
