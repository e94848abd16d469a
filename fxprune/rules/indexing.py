"""Operators that pick positions by the values of a tensor: embeddings, indexing, gather and scatter."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fxprune.rules.call import Call
from fxprune.rules.card import Coded
from fxprune.rules.labels import Label, Zero
from fxprune.rules.movement import replaced, spliced
from fxprune.rules.notation import Pattern
from fxprune.rules.parsing import broadcasting, marked
from fxprune.rules.registry import register_aten
from fxprune.rules.views import reshape
from fxprune.torch_internals.operators import no_modes


def _look_up(call: Call, label: Label, d: int, index: Label) -> Label:
    """Return the label of the positions along dimension ``d`` that ``index`` picks.

    An entry of a constant index goes if the position goes that it names. With any other index the dimension stays whole.
    """
    axis, values = label.axes[d], index.constant
    if values is None or values.is_floating_point():
        call.keep_whole(axis, "is indexed by values that are not known")
        return spliced(label, d, d + 1, Label(index.axes, (Zero.FINITE,) * len(index)))
    with no_modes():
        flat = values.numpy().reshape(-1).astype(np.intp)
    positions = np.where(flat < 0, flat + axis.size, flat)
    if not len(index):
        call.keep_whole(axis.take(positions), "is picked by its index")
    states = []
    picked = reshape(call, Label((axis.take(positions),), (Zero.FINITE,)), index.shape)
    for one, other in zip(picked.axes, index.axes, strict=True):
        live = bool(call.units.resolve(one).size)  # entries that name whole positions may still go
        states.append(label.zeros[d] if live else Zero.FINITE)
        if live:
            call.couple(one, other)
    return spliced(label, d, d + 1, Label(index.axes, tuple(states)))


def _index_select(call: Call) -> list[Label]:
    """Pick positions along a dimension by the values of operand 1."""
    index, d = call.operand(1), call.dim()
    picked = _look_up(call, call.operand(0), d, index)
    # A scalar index picks one position and keeps the dimension.
    return [picked if len(index) else spliced(picked, d, d, Label.whole((1,), call.why("is picked by its index")))]


def _index(call: Call) -> list[Label]:
    """Pick elements as ``x[:, i, j]`` does, by tensors in place of some dimensions, broadcast against each other."""
    label = call.operand(0)
    dims, flags = _indexed(call)
    given = [index for index in call.operands[1:] if index is not None]
    if not flags and len(given) == 1:
        return [_look_up(call, label, dims[0], given[0])]
    # The indexed dimensions and the indices stay whole; the other dimensions pass.
    for index in given:
        for axis in index.axes:
            call.keep_whole(axis, "is an index together with others, or of flags")
    for d in dims:
        call.keep_whole(label.axes[d], "is indexed by several tensors, or by flags")
    shape = call.shapes[0]
    # The dimensions of the indices stand in place of neighbouring dimensions, and in front otherwise.
    at = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0
    rest = [d for d in range(len(label)) if d not in dims]
    picked = Label.whole(shape[at : at + len(shape) - len(rest)], call.why("is an index"))
    unindexed = Label(tuple(label.axes[d] for d in rest), tuple(label.zeros[d] for d in rest))
    return [spliced(unindexed, at, at, picked)]


def _indexed(call: Call) -> tuple[list[int], bool]:
    """Return the dimensions that indices stand for, and whether there are flags among them."""
    dims: list[int] = []
    at, any_flags = 0, False
    for index in call["indices"]:
        given = isinstance(index, Tensor)
        flags = given and not index.dtype.is_floating_point and index.dtype.itemsize == 1
        wide = index.dim() if flags else 1  # flags of k dimensions index k dimensions
        dims += range(at, at + wide) if given else ()
        at, any_flags = at + wide, any_flags or flags
    return dims, any_flags


def _gather(call: Call) -> list[Label]:
    """Pick elements along a dimension, which stays whole: ``out[i, j] = x[index[i, j], j]``."""
    label, index = call.operand(0), call.operand(1)
    if call["dim"] is None:
        for axis in label.axes:
            call.keep_whole(axis, "is flattened and picked from by values")
        return [Label(index.axes, (Zero.FINITE,) * len(index))]
    d = call.dim()
    axes, states = [], []
    for k, (one, two) in enumerate(zip(label.axes, index.axes, strict=True)):
        # ``take_along_dim`` broadcasts an index of size one, and operand 0 as well.
        wide = k != d and two.size == 1 and call.shapes[0][k] > 1
        axes.append(one if wide else two)
        states.append(Zero.FINITE if k == d else label.zeros[k])
        if k == d:
            call.keep_whole(one, "is gathered from by values")
        elif not wide and one.size >= two.size:
            call.couple(one.take(np.arange(two.size)), two)
    return [Label(tuple(axes), tuple(states))]


def _scatter(call: Call) -> list[Label]:
    """Write along a dimension, which stays whole: ``x[index[i, j], j] = source[i, j]``."""
    label, d = call.operand(0), call.dim()
    written = Zero.FINITE if call.arguments.get("value") else Zero.ZERO
    states = [Zero.FINITE if k == d else min(zero, written) for k, zero in enumerate(label.zeros)]
    for other in call.operands[1:]:
        if other is None or len(other) != len(label):
            continue
        for k, (one, two) in enumerate(zip(label.axes, other.axes, strict=True)):
            if k == d:
                call.keep_whole(one, "is written to at places given by values")
                call.keep_whole(two, "is written to places given by values")
            else:
                call.couple(one.take(np.arange(two.size)), two)
            # The integers of the index are not written.
            states[k] = min(states[k], Zero.ZERO if other is call.operands[1] else other.zeros[k])
    return [replaced(label, {}, dict(enumerate(states)))]


def _put(call: Call) -> str:
    """Return the pattern of a write through indices: the dimensions beside the indexed ones pass."""
    dims, flags = _indexed(call)
    tensors = [index for index in call["indices"] if isinstance(index, Tensor)]
    indices = ["" if label is None else f"*i{k}" for k, label in enumerate(call.operands[1:-1])]
    if dims != list(range(dims[0], dims[-1] + 1)) or (flags and len(tensors) > 1):
        return ", ".join(["*x", *indices, "*v"]) + " -> *y"
    names = marked(len(call.operand(0)), dims, "!x{}")
    picked = [f"!i_{k}" for k in range(1 if flags else max(t.dim() for t in tensors))]
    inner = [*names[: dims[0]], *picked, *names[dims[-1] + 1 :]]
    return ", ".join([" ".join(names), *indices, broadcasting(inner, call.operand(-1).shape)]) + f" -> {' '.join(names)}"


def _put_zeros(call: Call) -> str:
    return f"0+{len(call.operands) - 1}"


def _written_along(call: Call) -> str:
    """Return the pattern of a write, of operand 2 or of a number, to places along a dimension."""
    names, source = (" ".join(marked(len(call.operand(0)), [call.dim()], token)) for token in ("!x{}", "!i"))
    return f"{', '.join([names, '!i', source][: len(call.operands)])} -> {names}"


def _filled(call: Call) -> str:
    return "n" if call["value"] else "0"


def _bagged(call: Call) -> str:
    """Return the pattern of bags of embeddings, each a sum, a mean, or the largest, whose places are the last result."""
    largest = "!b d" if call.shapes[3:] == call.shapes[:1] else "_"
    return f"!v d, _, _, _ -> !b d, _, _, {largest}"


def _searched(call: Call) -> str:
    return "!v, ...x, !v -> ...x" if len(call.operand(0)) == 1 else "...x !v, ...x n, ...x !v -> ...x n"


register_aten("embedding", Pattern("!v d, ...b -> ...b d", zeros="0"))
register_aten(
    "embedding_bag embedding_bag.padding_idx _embedding_bag _embedding_bag_forward_only",
    Pattern(_bagged, "!v d, _, _, _ -> !b d, _, _, _", zeros="0, n, n, n"),
)
register_aten("index_select", Coded("x n, i -> x n[i]", _index_select))
register_aten("index.Tensor _unsafe_index.Tensor", Coded("x n y, i -> x i y", _index))
register_aten("gather take_along_dim", Coded("x !n, x i -> x i", _gather))
register_aten(
    "scatter.src scatter.value scatter_add scatter_reduce.two scatter.reduce scatter_add_",
    Coded("x !n, x !i, x !i -> x !n", _scatter),
)
register_aten("index_put index_put_ _unsafe_index_put", Pattern(_put, "x !n y, *i, x !i y -> x !n y", zeros=_put_zeros))
register_aten("masked_scatter", Pattern("*x, *m, *v -> *y"))
register_aten("index_add index_copy", Pattern(_written_along, "x !n, !i, x !i -> x !n", zeros="0+2"))
register_aten("index_fill.int_Scalar", Pattern(_written_along, "x !n, !i -> x !n", zeros=_filled))
register_aten("bucketize.Tensor", Pattern("...x, !v -> ...x"))
register_aten("searchsorted.Tensor", Pattern(_searched, "...x !v, ...x n -> ...x n"))
register_aten("one_hot", Pattern("...x -> ...x !n"))
