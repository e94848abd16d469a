"""Operators that join, repeat and pad: result positions are positions of operands, some of them repeated, or new."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fxprune.algebra.axes import Axis, concatenate
from fxprune.rules.call import Call
from fxprune.rules.card import OpCard, PositionsLeft
from fxprune.rules.labels import Label, Zero
from fxprune.rules.movement import places_left, replaced
from fxprune.rules.notation import Pattern
from fxprune.rules.parsing import marked
from fxprune.rules.registry import overloads, register


@dataclass(frozen=True)
class Concatenate:
    """Joins operands along a dimension; their other dimensions are coupled."""

    notation: str = "x a, x b -> x (a+b)"

    def apply(self, call: Call) -> list[Label]:
        """Return the label with the rows of all operands one after the other."""
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


@dataclass(frozen=True)
class Repeat:
    """Repeats whole dimensions (``repeat``, ``tile``): every repetition may go, and so may every position in all of them."""

    notation: str = "x -> (r x)"

    def apply(self, call: Call) -> list[Label]:
        """Return the label with repeated rows."""
        label, shape = call.operand(0), call.shapes[0]
        missing = len(shape) - len(label)
        axes, states = [], []
        for d, size in enumerate(shape):
            old = Axis.whole(1) if d < missing else label.axes[d - missing]
            state = Zero.FINITE if d < missing else label.zeros[d - missing]
            times = size // old.size if old.size else 1
            axes.append(old if times == 1 else call.units.fresh(times).merge(old))
            states.append(state if times == 1 else Zero.FINITE)
        return [Label(tuple(axes), tuple(states))]


@dataclass(frozen=True)
class RepeatInterleave:
    """Repeats every position a fixed number of times, next to each other."""

    notation: str = "x -> (x r)"

    def apply(self, call: Call) -> list[Label]:
        """Return the label with repeated rows."""
        label = call.operand(0)
        if call["dim"] is None:
            for axis in label.axes:
                call.keep_whole(axis, "is repeated over the flattened tensor")
            return [Label.whole(call.shapes[0])]
        d = call.dim()
        merged = label.axes[d].merge(call.units.fresh(call["repeats"]))
        return [replaced(label, {d: merged}, {d: Zero.FINITE})]


@dataclass(frozen=True)
class ConstantPad:
    """Adds positions that all hold the same value, any of which may go; a negative width takes positions away."""

    notation: str = "x -> (p+x+q)"

    def apply(self, call: Call) -> list[Label]:
        """Return the label with new units at the padded positions."""
        label, pad = call.operand(0), call["pad"]
        if call.arguments.get("mode", "constant") != "constant":
            return _padded_by_values(call)
        filled = call.arguments.get("value")
        # Padding with 1 along dimension 2 writes ones at the removed positions of dimension 1 as well.
        state = Zero.FINITE if filled and max(pad, default=0) > 0 else Zero.ZERO
        changes = {}
        for k in range(len(pad) // 2):
            d, (before, after) = len(label) - 1 - k, pad[2 * k : 2 * k + 2]
            if not before and not after:
                continue
            size = label.shape[d]
            kept = label.axes[d].take(np.arange(max(-before, 0), size - max(-after, 0)))
            parts = [call.units.fresh(before)] if before > 0 else []
            parts += [kept, *([call.units.fresh(after)] if after > 0 else [])]
            changes[d] = concatenate(parts)
        return [replaced(label, changes, {d: min(zero, state) for d, zero in enumerate(label.zeros)})]


def _padded_by_values(call: Call) -> list[Label]:
    label, pad = call.operand(0), call["pad"]
    padded = [len(label) - 1 - k for k in range(len(pad) // 2) if any(pad[2 * k : 2 * k + 2])]
    for d in padded:
        call.keep_whole(label.axes[d], "is padded with its own values")
    return [replaced(label, {d: call.whole(call.shapes[0][d], "is padded") for d in padded})]


def _stacked(call: Call) -> str:
    rank = len(call.shapes[0])
    result = marked(rank, [call["dim"] % rank], "!n")
    operand = " ".join(name for name in result if name != "!n")
    return f"{', '.join([operand] * len(call.operands))} -> {' '.join(result)}"


def _stacked_zeros(call: Call) -> str:
    return "+".join(str(i) for i in range(len(call.operands)))


def _repeats_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    name = "repeats" if "repeats" in call.arguments else "dims"
    label, result = call.operand(0), results[0]
    missing = len(result) - len(label)
    times = [
        left.size(axis) // max(left.size(label.axes[d - missing]) if d >= missing else 1, 1)
        for d, axis in enumerate(result.axes)
    ]
    return {name: times[len(times) - len(call[name]) :] if len(call[name]) < len(times) else times}


def _interleaved_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    if call["dim"] is None:
        return {}
    d = call.dim()
    return {"repeats": left.size(results[0].axes[d]) // max(left.size(call.operand(0).axes[d]), 1)}


def _pad_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    label, result, pad = call.operand(0), results[0], list(call["pad"])
    for k in range(len(pad) // 2):
        d = len(label) - 1 - k
        before, after = pad[2 * k : 2 * k + 2]
        axis, padded = label.axes[d], result.axes[d]
        flags, count = left(padded), places_left(left, axis)
        pad[2 * k] = int(flags[:before].sum()) if before > 0 else -count(-before)
        pad[2 * k + 1] = int(flags[padded.size - after :].sum()) if after > 0 else -(left.size(axis) - count(axis.size + after))
    return {"pad": pad}


register(overloads("cat concat concatenate"), Concatenate())
register(overloads("stack"), Pattern(_stacked, "x, x -> x !n", zeros=_stacked_zeros))
register(overloads("repeat tile"), OpCard(Repeat(), _repeats_left))
register(overloads("repeat_interleave.self_int"), OpCard(RepeatInterleave(), _interleaved_left))
register(overloads("constant_pad_nd pad"), OpCard(ConstantPad(), _pad_left))
