"""Operators that join, repeat and pad: result positions are positions of operands, some of them repeated, or new."""

from __future__ import annotations

from typing import Any

import numpy as np

from fxprune.algebra.axes import concatenate
from fxprune.rules.call import Call
from fxprune.rules.card import Coded, OpCard, PositionsLeft
from fxprune.rules.labels import Label, Zero
from fxprune.rules.movement import places_left, replaced
from fxprune.rules.notation import Pattern
from fxprune.rules.parsing import along, marked
from fxprune.rules.registry import register_aten
from fxprune.rules.views import sizes_left


def joined(call: Call) -> list[Label]:
    """Put operands one after the other along a dimension; their other dimensions are coupled."""
    # ``cat`` ignores operands of shape (0,).
    given = [label for label in call.operands if label is not None and label.shape != (0,)]
    if not given:
        return [Label.whole(call.shapes[0])]
    first, d = given[0], call["dim"] % len(given[0])
    for other in given[1:]:
        for k, (one, two) in enumerate(zip(first.axes, other.axes, strict=True)):
            if k != d:
                call.couple(one, two)
    # A whole axis has no removed positions, so its state says nothing about the joined axis.
    live = [[label.zeros[k] for label in given if not label.axes[k].is_whole] for k in range(len(first))]
    states = {k: min(zeros, default=Zero.FINITE) for k, zeros in enumerate(live)}
    return [replaced(first, {d: concatenate([label.axes[d] for label in given])}, states)]


def pad(call: Call) -> list[Label]:
    """Add positions that all hold the same value, any of which may go; a negative width takes positions away."""
    label, widths = call.operand(0), pad_widths(call)
    if call.arguments.get("mode", "constant") != "constant":
        for d in widths:
            call.keep_whole(label.axes[d], "is padded with its own values")
        return [replaced(label, {d: call.whole(call.shapes[0][d], "is padded") for d in widths})]
    # Padding with 1 along dimension 2 writes ones at the removed positions of dimension 1 as well.
    state = Zero.FINITE if call.arguments.get("value") and max(call["pad"], default=0) > 0 else Zero.ZERO
    changes = {}
    for d, (before, after) in widths.items():
        kept = label.axes[d].take(np.arange(max(-before, 0), label.shape[d] - max(-after, 0)))
        first, last = ([call.units.fresh(width)] if width > 0 else [] for width in (before, after))
        changes[d] = concatenate([*first, kept, *last])
    return [replaced(label, changes, {d: min(zero, state) for d, zero in enumerate(label.zeros)})]


def pad_widths(call: Call) -> dict[int, tuple[int, int]]:
    """Return how many positions a pad adds in front of and behind each dimension that it changes; fewer than 0 go."""
    widths, last = call["pad"], len(call.operand(0)) - 1
    return {last - k: pair for k, pair in enumerate(zip(widths[::2], widths[1::2], strict=True)) if any(pair)}


def _stacked(call: Call) -> str:
    rank = len(call.shapes[0])
    result = marked(rank, [call["dim"] % rank], "!n")
    operand = " ".join(name for name in result if name != "!n")
    return f"{', '.join([operand] * len(call.operands))} -> {' '.join(result)}"


def _stacked_zeros(call: Call) -> str:
    return "+".join(str(i) for i in range(len(call.operands)))


def _repeated(call: Call) -> str:
    """Return the pattern of repeated dimensions, in which new ones go in front, of the shape of operand 1 if there is one.

    Every repetition may go, and so may every position in all of them.
    """
    label, shape = call.operand(0), call.shapes[0]
    missing = len(shape) - len(label)
    names, before = marked(len(shape), range(missing), "1"), [*[1] * missing, *label.shape]
    sides = enumerate(zip(names, before, shape, strict=True))
    result = [name if old == new else f"(r{d} {name})" for d, (name, old, new) in sides]
    operands = [names[missing:], result][: len(call.operands)]
    return f"{', '.join(map(' '.join, operands))} -> {' '.join(result)}"


def _interleaved(call: Call) -> str:
    """Return the pattern of positions that are repeated next to each other; those of the flattened tensor stay whole."""
    return "*x -> *y" if call["dim"] is None else along("x{}", "(x{} r)")(call)


def _repeats_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    name = "repeats" if "repeats" in call.arguments else "dims"
    times = [left.size(call.axes[f"r{d}"]) if f"r{d}" in call.axes else 1 for d in range(len(results[0]))]
    return {name: times[len(times) - len(call[name]) :] if len(call[name]) < len(times) else times}


def _interleaved_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    if "r" not in call.axes:
        return {}
    size = None if call["output_size"] is None else left.size(results[0].axes[call.dim()])
    return {"repeats": left.size(call.axes["r"]), "output_size": size}


def _pad_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    label, result, widths = call.operand(0), results[0], list(call["pad"])
    for d, (before, after) in pad_widths(call).items():
        axis, padded = label.axes[d], result.axes[d]
        flags, count = left(padded), places_left(left, axis)
        k = 2 * (len(label) - 1 - d)
        widths[k] = int(flags[:before].sum()) if before > 0 else -count(-before)
        widths[k + 1] = int(flags[padded.size - after :].sum()) if after > 0 else -(left.size(axis) - count(axis.size + after))
    return {"pad": widths}


register_aten("cat concat concatenate", Coded("x a, x b -> x (a+b)", joined))
register_aten("stack", Pattern(_stacked, "x, x -> x !n", zeros=_stacked_zeros))
register_aten(
    "expand expand_as expand_copy broadcast_to",
    OpCard(Pattern(_repeated, "1 x -> n x", zeros="0"), sizes_left, keeps_numbers=True),
)
register_aten("repeat tile", OpCard(Pattern(_repeated, "x -> (r x)", zeros="0"), _repeats_left, keeps_numbers=True))
register_aten(
    "repeat_interleave.self_int", OpCard(Pattern(_interleaved, "x -> (x r)", zeros="0"), _interleaved_left, keeps_numbers=True)
)
# Each place of the result names the position that is repeated there.
register_aten("repeat_interleave.Tensor", Pattern("!n -> !k"))
register_aten("constant_pad_nd pad", OpCard(Coded("x -> (p+x+q)", pad), _pad_left))
