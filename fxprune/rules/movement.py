"""Operators that pick, order and join positions: every result position is a position of an operand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fxprune.algebra.axes import Axis, Index, concatenate
from fxprune.rules.call import Call
from fxprune.rules.labels import Label, Zero
from fxprune.rules.notation import Pattern
from fxprune.rules.registry import overloads, register


def replaced(label: Label, changes: dict[int, Axis], states: dict[int, Zero] | None = None) -> Label:
    """Return a label with other axes in some dimensions."""
    axes = tuple(changes.get(d, axis) for d, axis in enumerate(label.axes))
    return Label(axes, tuple((states or {}).get(d, zero) for d, zero in enumerate(label.zeros)))


@dataclass(frozen=True)
class Take:
    """Picks positions along some dimensions of operand 0.

    Attributes:
        notation: the rule as text.
        pick: what gives, for each result in turn, the picked positions by dimension.
    """

    notation: str
    pick: Callable[[Call], Sequence[dict[int, Index]]]

    def apply(self, call: Call) -> list[Label]:
        """Return a label with the rows of the picked positions for each result."""
        label = call.operand(0)
        return [replaced(label, {d: label.axes[d].take(i) for d, i in picked.items()}) for picked in self.pick(call)]


def _slice(call: Call) -> list[dict[int, Index]]:
    d = call.dim()
    return [{d: np.arange(call.operand(0).shape[d])[slice(call["start"], call["end"], call["step"])]}]


def _narrow(call: Call) -> list[dict[int, Index]]:
    d = call.dim()
    start = call["start"] % call.operand(0).shape[d] if call["start"] < 0 else call["start"]
    return [{d: np.arange(start, start + call["length"])}]


def _pieces(call: Call) -> list[dict[int, Index]]:
    """Return the consecutive pieces that the results are, by their sizes."""
    d = call.dim()
    ends = np.cumsum([0, *(shape[d] for shape in call.shapes)])
    return [{d: np.arange(start, end)} for start, end in itertools.pairwise(ends)]


def _flip(call: Call) -> list[dict[int, Index]]:
    shape = call.operand(0).shape
    return [{d % len(shape): np.arange(shape[d])[::-1].copy() for d in call["dims"]}]


def _roll(call: Call) -> list[dict[int, Index]]:
    shape = call.operand(0).shape
    if not call["dims"]:
        # Of one dimension the flattened tensor is the tensor.
        return [{d: np.roll(np.arange(n), call["shifts"][0]) for d, n in enumerate(shape)}]
    picked: dict[int, Index] = {}
    for shift, d in zip(call["shifts"], call.dims("dims"), strict=True):
        picked[d] = np.roll(picked.get(d, np.arange(shape[d])), shift)
    return [picked]


@dataclass(frozen=True)
class Roll(Take):
    """A roll; without dimensions it runs over the flattened tensor, which has to stay whole."""

    def apply(self, call: Call) -> list[Label]:
        """Return the label with rolled rows."""
        if not call["dims"] and len(call.operand(0)) > 1:
            for axis in call.operand(0).axes:
                call.keep_whole(axis, "is rolled over the flattened tensor")
        return super().apply(call)


@dataclass(frozen=True)
class Select:
    """Picks single positions, which can never go: ``select`` one, ``unbind`` all."""

    notation: str

    def apply(self, call: Call) -> list[Label]:
        """Freeze the picked positions and return labels without the dimension."""
        label, d = call.operand(0), call.dim()
        indices = [call["index"]] if "index" in call.arguments else range(label.shape[d])
        picked = label.axes[d].take(np.array([i % label.shape[d] for i in indices], np.intp))
        call.keep_whole(picked, "is picked by its index")
        rest = Label(label.axes[:d] + label.axes[d + 1 :], label.zeros[:d] + label.zeros[d + 1 :])
        return [rest for _ in call.shapes]


@dataclass(frozen=True)
class Concatenate:
    """Joins operands along a dimension; the others are coupled."""

    notation: str = "x a, x b -> x (a+b)"

    def apply(self, call: Call) -> list[Label]:
        """Return the label with the rows of all operands one after the other."""
        # Concatenation passes over one-dimensional empty tensors of any shape.
        given = [label for label in call.operands if label is not None and label.shape != (0,)]
        if not given:
            return [Label.whole(call.shapes[0])]
        first, d = given[0], call["dim"] % len(given[0])
        for other in given[1:]:
            for k, (one, two) in enumerate(zip(first.axes, other.axes, strict=True)):
                if k != d:
                    call.couple(one, two)
        # What cannot go says nothing about what stands where something went.
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
    """Adds positions of one value, any of which may go; a negative width takes positions away."""

    notation: str = "x -> (p+x+q)"

    def apply(self, call: Call) -> list[Label]:
        """Return the label with new units at the padded positions."""
        label, pad = call.operand(0), call["pad"]
        if call.arguments.get("mode", "constant") != "constant":
            return _padded_by_values(call)
        filled = call.arguments.get("value")
        # Where something else than zero is filled in, it stands at the removed positions of every other dimension as well.
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


@dataclass(frozen=True)
class Unfold:
    """Cuts a dimension into windows: it stays whole."""

    notation: str = "!x -> !n !w"

    def apply(self, call: Call) -> list[Label]:
        """Return the label with an axis of windows and one of places in a window."""
        label, d = call.operand(0), call.dim("dimension")
        call.keep_whole(label.axes[d], "is cut into windows")
        base = replaced(label, {d: call.whole(call.shapes[0][d], "counts windows")})
        return [Label((*base.axes, call.whole(call["size"], "is a window")), (*base.zeros, Zero.FINITE))]


@dataclass(frozen=True)
class SliceScatter:
    """Writes operand 1 over a slice of operand 0."""

    notation: str = "x n, x k -> x n"

    def apply(self, call: Call) -> list[Label]:
        """Couple the written slice with what is written there."""
        label, source, d = call.operand(0), call.operand(1), call.dim()
        place = np.arange(label.shape[d])[slice(call["start"], call["end"], call["step"])]
        for k, (one, two) in enumerate(zip(label.axes, source.axes, strict=True)):
            call.couple(one.take(place) if k == d else one, two)
        return [replaced(label, {}, {k: min(label.zeros[k], source.zeros[k]) for k in range(len(label))})]


@dataclass(frozen=True)
class SelectScatter:
    """Writes operand 1 over one position of operand 0."""

    notation: str = "x !i, x -> x !i"

    def apply(self, call: Call) -> list[Label]:
        """Freeze the written position, couple the other dimensions."""
        label, source, d = call.operand(0), call.operand(1), call.dim()
        call.keep_whole(label.axes[d].take(np.array([call["index"] % label.shape[d]])), "is picked by its index")
        rest = [k for k in range(len(label)) if k != d]
        for k, other in zip(rest, source.axes, strict=True):
            call.couple(label.axes[k], other)
        return [replaced(label, {}, {k: min(label.zeros[k], source.zeros[i]) for i, k in enumerate(rest)})]


def _stacked(call: Call) -> str:
    rank = len(call.shapes[0])
    d = call["dim"] % rank
    names = [f"x{k}" for k in range(rank - 1)]
    return f"{', '.join([' '.join(names)] * len(call.operands))} -> {' '.join([*names[:d], '!n', *names[d:]])}"


def _stacked_zeros(call: Call) -> str:
    return "+".join(str(i) for i in range(len(call.operands)))


def _between(call: Call) -> str:
    """Return the pattern of an operator along one dimension, in which every position counts."""
    label, d = call.operand(0), call.dim() if "dim" in call.arguments else -1
    names = " ".join(f"!x{k}" if k == d % max(len(label), 1) else f"x{k}" for k in range(len(label)))
    return f"{names} -> " + ", ".join([names] * len(call.shapes))


def _diagonal(call: Call) -> str:
    rank = len(call.operand(0))
    pair = (call["dim1"] % rank, call["dim2"] % rank)
    names = [f"!x{k}" if k in pair else f"x{k}" for k in range(rank)]
    return f"{' '.join(names)} -> {' '.join([name for k, name in enumerate(names) if k not in pair])} !n"


def _diag_embed(call: Call) -> str:
    """Return the pattern of a diagonal matrix; beside the main diagonal places count."""
    rank = len(call.shapes[0])
    pair = (call["dim1"] % rank, call["dim2"] % rank)
    rest = [f"x{k}" for k in range(rank - 2)]
    names = iter(rest)
    before, after = ("!i", "!j") if call["offset"] else ("i", "i")
    result = [after if k in pair else next(names) for k in range(rank)]
    return f"{' '.join([*rest, before])} -> {' '.join(result)}"


register(overloads("slice.Tensor slice_copy.Tensor"), Take("x n -> x n[start:end:step]", _slice))
register(overloads("narrow narrow_copy"), Take("x n -> x n[start:start+length]", _narrow))
register(
    overloads(
        "split.Tensor split.sizes split_with_sizes chunk unsafe_split.Tensor unsafe_split_with_sizes unsafe_chunk "
        "tensor_split.sections tensor_split.indices split_copy.Tensor split_with_sizes_copy"
    ),
    Take("x (a+b) -> x a, x b", _pieces),
)
register(overloads("flip"), Take("x n -> x n[::-1]", _flip))
register(overloads("roll"), Roll("x n -> x n[-shift:]+n[:-shift]", _roll))
register(overloads("select.int select_copy.int"), Select("x !i -> x"))
register(overloads("unbind.int unbind_copy.int"), Select("x !i -> x, x"))
register(overloads("cat concat concatenate"), Concatenate())
register(overloads("stack"), Pattern(_stacked, "x, x -> x !n", zeros=_stacked_zeros))
register(overloads("repeat tile"), Repeat())
register(overloads("repeat_interleave.self_int"), RepeatInterleave())
register(overloads("constant_pad_nd pad"), ConstantPad())
register(overloads("unfold unfold_copy"), Unfold())
register(overloads("slice_scatter"), SliceScatter())
register(overloads("select_scatter"), SelectScatter())
register(overloads("tril triu tril_ triu_"), Pattern("...x !i !j -> ...x !i !j", zeros="0"))
register(overloads("diagonal diagonal_copy"), Pattern(_diagonal, "x !i !j -> x !n", zeros="0"))
register(overloads("diag_embed"), Pattern(_diag_embed, "x i -> x i i", zeros="0"))
# Sums of ones count positions: with some of them gone they would count other ones.
register(overloads("cumsum cumprod cummax cummin"), Pattern(_between, "x !n -> x !n", zeros="0, n"))
register(overloads("logcumsumexp argsort argsort.stable"), Pattern(_between, "x !n -> x !n", zeros="n"))
register(overloads("sort sort.stable"), Pattern(_between, "x !n -> x !n, x !n", zeros="0, n"))
