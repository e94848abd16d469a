"""How the plain arguments of operators change when positions go: shapes, bounds, counts, shifts.

Each function takes a call as it was analysed and what is left of every axis, and returns the arguments that a call on what is
left needs, by name. An operator that is not listed here needs none: its arguments name no positions and no sizes of axes
that can shrink.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fxprune.algebra.axes import Axis
from fxprune.analysis.remaining import Flags, Remaining
from fxprune.errors import RuleError
from fxprune.rules.call import Call
from fxprune.rules.labels import Label
from fxprune.rules.registry import overloads

Results = tuple[Label, ...]
Shrinking = Callable[[Call, Results, Remaining], dict[str, Any]]

_SHRINKING: dict[Any, Shrinking] = {}


def shrunk_arguments(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    """Return the arguments that a call needs when only some positions are left, those that stay the same included.

    Args:
        call: the call, as analysed.
        results: the labels of what it returned.
        kept: what is left.

    Raises:
        RuleError: no arguments say it, as where a slice with a step would have to pick uneven places.
    """
    shrinking = _SHRINKING.get(call.op)
    return {} if shrinking is None else shrinking(call, results, kept)


def _for(names: str) -> Callable[[Shrinking], Shrinking]:
    def register(shrinking: Shrinking) -> Shrinking:
        for op in overloads(names):
            _SHRINKING[op] = shrinking
        return shrinking

    return register


def _is_argument(call: Call, name: str) -> bool:
    return name in call.arguments


@_for(
    "view _unsafe_view reshape _reshape_alias view_copy _reshape_copy expand expand_copy broadcast_to unflatten.int "
    "zeros ones full rand randn randint randint.low new_zeros new_ones new_full new_empty empty.memory_format "
    "rand.generator randn.generator normal.float_float"
)
def _sizes(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    shape = list(kept.shape(results[0]))
    if _is_argument(call, "sizes"):
        d = call.dim()
        return {"sizes": shape[d : d + len(call["sizes"])]}
    return {"shape" if _is_argument(call, "shape") else "size": shape}


@_for("repeat tile")
def _repeats(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    name = "repeats" if _is_argument(call, "repeats") else "dims"
    label, result = call.operand(0), results[0]
    missing = len(result) - len(label)
    times = [
        kept.size(axis) // max(kept.size(label.axes[d - missing]) if d >= missing else 1, 1)
        for d, axis in enumerate(result.axes)
    ]
    return {name: times[len(times) - len(call[name]) :] if len(call[name]) < len(times) else times}


@_for("repeat_interleave.self_int")
def _interleaved(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    if call["dim"] is None:
        return {}
    d = call.dim()
    return {"repeats": kept.size(results[0].axes[d]) // max(kept.size(call.operand(0).axes[d]), 1)}


@_for(
    "split.Tensor split.sizes split_with_sizes unsafe_split.Tensor unsafe_split_with_sizes split_copy.Tensor "
    "split_with_sizes_copy"
)
def _split(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    d, name = call.dim(), "split_sizes" if "split_sizes" in call.arguments else "split_size"
    sizes = [kept.size(label.axes[d]) for label in results]
    return {name: sizes if sizes != [label.shape[d] for label in results] else call[name]}


@_for("chunk unsafe_chunk tensor_split.sections")
def _chunk(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    d, name = call.dim(), "sections" if "sections" in call.arguments else "chunks"
    sizes = [kept.size(label.axes[d]) for label in results]
    # Sizes in place of a number: the caller calls split then.
    return {name: sizes if sizes != [label.shape[d] for label in results] else call[name]}


@_for("tensor_split.indices")
def _split_at(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    d = call.dim()
    return {"indices": [int(end) for end in np.cumsum([kept.size(label.axes[d]) for label in results])[:-1]]}


def places_left(kept: Remaining, axis: Axis) -> Callable[[int], int]:
    """Return what gives the place of a position among those left: how many are left before it."""
    counts = np.concatenate([[0], np.cumsum(kept(axis))])
    return lambda position: int(counts[position])


def slice_left(flags: Flags, given: slice) -> tuple[int, int, int] | None:
    """Return start, stop and step of a slice among the positions left; None where its places are uneven.

    Args:
        flags: for each position whether it is left.
        given: the slice.
    """
    start, stop, step = given.indices(len(flags))
    before = np.concatenate([[0], np.cumsum(flags)])
    if step == 1:
        return int(before[start]), int(before[max(stop, start)]), 1
    picked = np.arange(start, stop, step)
    places = before[picked[flags[picked]]]
    steps = np.unique(np.diff(places))
    if len(steps) > 1:
        return None
    if not len(places):
        return 0, 0, 1
    return int(places[0]), int(places[-1]) + 1, int(steps[0]) if len(steps) else 1


def _bounds(call: Call, axis: Axis, kept: Remaining) -> dict[str, Any]:
    """Return the bounds of a slice among what is left."""
    given = {name: call[name] for name in ("start", "end", "step")}
    if kept.size(axis) == axis.size:
        return given
    found = slice_left(kept(axis), slice(*given.values()))
    if found is None:
        raise RuleError(f"a slice with step {given['step']} would have to pick uneven places of what is left")
    return dict(zip(given, found, strict=True))


@_for("slice.Tensor slice_copy.Tensor slice_scatter")
def _slice(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    return _bounds(call, call.operand(0).axes[call.dim()], kept)


@_for("narrow narrow_copy")
def _narrow(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    d = call.dim()
    axis = call.operand(0).axes[d]
    start = call["start"] % axis.size if call["start"] < 0 else call["start"]
    return {"start": places_left(kept, axis)(start), "length": kept.size(results[0].axes[d])}


@_for("select.int select_copy.int select_scatter")
def _select(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    axis = call.operand(0).axes[call.dim()]
    if kept.size(axis) == axis.size:
        return {"index": call["index"]}
    place = places_left(kept, axis)(call["index"] % axis.size)
    return {"index": place if call["index"] >= 0 else place - kept.size(axis)}


@_for("roll")
def _roll(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    label = call.operand(0)
    if not call["dims"]:
        if len(label) != 1:
            return {}
        return {"shifts": [_shift(call["shifts"][0], label.axes[0], kept)]}
    if len(set(call.dims("dims"))) < len(call["dims"]):
        return {}
    pairs = zip(call["shifts"], call.dims("dims"), strict=True)
    return {"shifts": [_shift(shift, label.axes[d], kept) for shift, d in pairs]}


def _shift(shift: int, axis: Axis, kept: Remaining) -> int:
    left = kept.size(axis)
    if left == axis.size:
        return shift
    # What was the last part comes first.
    moved = shift % axis.size
    shifted = left - places_left(kept, axis)(axis.size - moved)
    return shifted if shift >= 0 else shifted - left


@_for("constant_pad_nd pad")
def _pad(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    label, result, pad = call.operand(0), results[0], list(call["pad"])
    for k in range(len(pad) // 2):
        d = len(label) - 1 - k
        before, after = pad[2 * k : 2 * k + 2]
        axis, padded = label.axes[d], result.axes[d]
        if kept.size(axis) == axis.size and kept.size(padded) == padded.size:
            continue
        flags, count = kept(padded), places_left(kept, axis)
        pad[2 * k] = int(flags[:before].sum()) if before > 0 else -count(-before)
        pad[2 * k + 1] = int(flags[padded.size - after :].sum()) if after > 0 else -(kept.size(axis) - count(axis.size + after))
    return {"pad": pad}


@_for("layer_norm native_layer_norm rms_norm _fused_rms_norm")
def _normalized(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    inner = len(call["normalized_shape"])
    return {"normalized_shape": list(kept.shape(results[0])[-inner:])}


@_for("group_norm native_group_norm")
def _group_norm(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    groups = kept.size(call.axes["g"])
    if "num_groups" in call.arguments:
        return {"num_groups": groups}
    shape = kept.shape(results[0])
    return {"N": shape[0], "C": shape[1], "HxW": math.prod(shape[2:]), "group": groups}


@_for("channel_shuffle native_channel_shuffle")
def _shuffle(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    return {"groups": kept.size(call.axes["g"])}


@_for(
    "convolution _convolution convolution_overrideable conv1d conv2d conv3d conv1d.padding conv2d.padding conv3d.padding "
    "conv_transpose1d conv_transpose2d.input conv_transpose3d.input mkldnn_convolution cudnn_convolution"
)
def _convolution(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    return {"groups": kept.size(call.axes["g"]) if "g" in call.axes else call["groups"]}


@_for(
    "scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention "
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_cudnn_attention _scaled_dot_product_attention_math_for_mps "
    "_scaled_dot_product_fused_attention_overrideable"
)
def _attention(call: Call, results: Results, kept: Remaining) -> dict[str, Any]:
    """The scale stays that of the whole head, as a mask leaves it."""
    axis = call.operand(0).axes[-1]
    if call["scale"] is not None or kept.size(axis) == axis.size:
        return {"scale": call["scale"]}
    return {"scale": 1.0 / math.sqrt(axis.size)}
