"""Places: picks of positions - ``x[...]``, index tables - among the positions that are left."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.abstract.fakes import examples_of
from fxprune.algebra.axes import Axis, Index
from fxprune.analysis.remaining import Remaining
from fxprune.passes.repair.numbers import Numbers
from fxprune.rules.call import Call
from fxprune.rules.labels import Label
from fxprune.rules.movement import places_left, slice_left

_aten = torch.ops.aten
_BY_INDEX = (_aten.index_select.default, _aten.index.Tensor, _aten._unsafe_index.Tensor)


def rewrite_item(gm: fx.GraphModule, node: fx.Node, numbers: Numbers) -> None:
    """Rewrite ``x[...]``, in place.

    A slice with a step becomes an index table where its places among the positions left are uneven.
    """
    source, items = node.args
    label = numbers.before(source)
    assert isinstance(source, fx.Node)
    if not isinstance(label, Label):
        return
    many = isinstance(items, tuple)
    new: list[Any] = list(items) if isinstance(items, tuple) else [items]
    tables: list[tuple[int, Any]] = []
    for place, item, d, result_dim in _walk(new, label, numbers):
        axis = label.axes[d]
        if not numbers.kept.shrinks_axis(axis):
            continue
        if isinstance(item, slice):
            new[place], table = _slice(node, item, axis, numbers)
            if table is not None:
                tables.append((result_dim, table))
        elif isinstance(numbers.before(item), int):
            old = numbers.before(item)
            left = places_left(numbers.kept, axis)(old % axis.size)
            left = left if old >= 0 else left - numbers.kept.size(axis)
            new[place] = item if left == old else numbers.fitted(node, item, left, is_size=False)
        elif isinstance(item, fx.Node):
            new[place] = _renumbered(gm, node, numbers.before(item), axis, numbers.kept)
        else:  # a list of places, such as [2, 0, 1], which keeps its length
            new[place] = _left(np.asarray(numbers.before(item)), axis, numbers.kept).tolist()
    node.args = (source, tuple(new) if many else new[0])
    if tables:
        _pick_besides(gm, node, tables)


def _pick_besides(gm: fx.GraphModule, node: fx.Node, tables: list[tuple[int, Any]]) -> None:
    """Let a node pick by tables along some dimensions; it keeps its name, by which its label is known."""
    with gm.graph.inserting_before(node):
        last = gm.graph.call_function(operator.getitem, node.args)
        for dim, places in tables[:0:-1]:
            last = gm.graph.call_function(torch.index_select, (last, dim, _table(gm, node, torch.from_numpy(places))))
    dim, places = tables[0]
    node.target, node.args = torch.index_select, (last, dim, _table(gm, node, torch.from_numpy(places)))


def _walk(items: list[Any], label: Label, numbers: Numbers) -> Iterator[tuple[int, Any, int, int]]:
    """Yield each item that picks along a dimension: its place, the item, the dimension, and the result's dimension."""
    used = sum(_width(item) for item in items)
    d = result = 0
    for place, item in enumerate(items):
        if item is Ellipsis:
            d, result = d + len(label) - used, result + len(label) - used
        elif item is None:
            result += 1
        else:
            yield place, item, d, result
            d += _width(item)
            value = numbers.before(item)
            result += len(value) if isinstance(value, Label) else 1 if isinstance(value, slice) else np.ndim(value)


def _width(item: Any) -> int:
    """Return how many dimensions an item takes."""
    return 0 if item is None or item is Ellipsis or isinstance(item, bool) else 1


def _slice(node: fx.Node, item: slice, axis: Axis, numbers: Numbers) -> tuple[slice, Any]:
    """Return the slice of the positions left; where its places are uneven, a slice of everything and the places as a table."""
    old = slice(*(numbers.before(part) for part in (item.start, item.stop, item.step)))
    flags = numbers.kept(axis)
    found = slice_left(flags, old)
    if found is None:
        return slice(None), _sliced(old, axis, numbers.kept)
    start, stop, step = found
    parts = [
        None if given is None and wanted == default else numbers.fitted(node, given, wanted, is_size=False)
        for given, wanted, default in ((item.start, start, 0), (item.stop, stop, int(flags.sum())), (item.step, step, 1))
    ]
    return slice(*parts), None


def renumber(gm: fx.GraphModule, node: fx.Node, call: Call, numbers: Numbers) -> None:
    """Let a call that picks by a constant index name the places of the positions left, in place."""
    if call.op not in _BY_INDEX:
        return
    axes = {id(index): axis for index, axis in _picks(call) if numbers.kept.shrinks_axis(axis)}

    def replaced(given: fx.Node) -> Any:
        index = numbers.before(given)
        return _renumbered(gm, node, index, axes[id(index)], numbers.kept) if id(index) in axes else given

    node.args, node.kwargs = fx.map_arg(node.args, replaced), fx.map_arg(node.kwargs, replaced)


def picks_from_less(call: Call, kept: Remaining) -> bool:
    """Tell whether a call picks by an index from an axis that loses positions, so that the index has to name other places."""
    return call.op in _BY_INDEX and any(kept.shrinks_axis(axis) for _, axis in _picks(call))


def _picks(call: Call) -> Iterator[tuple[Label, Axis]]:
    """Yield for each index tensor its label and the axis that it picks from."""
    label = call.operand(0)
    if call.op is _aten.index_select.default:
        yield call.operand(1), label.axes[call.dim()]
        return
    d, operands = 0, iter(call.operands[1:])
    for given in call["indices"]:
        if isinstance(given, Tensor):
            index = next(operands)
            assert index is not None
            if given.dtype in (torch.bool, torch.uint8):
                d += given.dim()
                continue
            yield index, label.axes[d]
        else:
            next(operands, None)
        d += 1


def _renumbered(gm: fx.GraphModule, node: fx.Node, index: Label, axis: Axis, kept: Remaining) -> fx.Node:
    """Return a node that reads the index table with the places among the positions left."""
    assert index.constant is not None
    values = index.constant.numpy()[np.ix_(*(kept.index(a) for a in index.axes))]
    return _table(gm, node, torch.from_numpy(_left(values, axis, kept)))


def _left(places: Index, axis: Axis, kept: Remaining) -> Index:
    """Return the places of positions, which are left, among the positions that are left."""
    return np.asarray((np.cumsum(kept(axis)) - 1)[np.where(places < 0, places + axis.size, places)])


def _sliced(item: slice, axis: Axis, kept: Remaining) -> Index:
    """Return the places that a slice picks among the positions that are left."""
    picked = np.arange(axis.size)[item]
    return _left(picked[kept(axis)[picked]], axis, kept)


def _table(gm: fx.GraphModule, node: fx.Node, values: Tensor) -> fx.Node:
    name = next(f"index_table_{k}" for k in range(len(gm.graph.nodes)) if f"index_table_{k}" not in gm._buffers)
    tensor = next(iter((*gm.parameters(), *gm.buffers(), *examples_of(node))))  # a region has no tensors of its own
    gm.register_buffer(name, values.to(device=tensor.device, dtype=torch.long))
    with gm.graph.inserting_before(node):
        return gm.graph.create_node("get_attr", name)


def pick_unevenly(gm: fx.GraphModule, node: fx.Node, call: Call, numbers: Numbers) -> bool:
    """Replace a slice operator by an index table where its places are uneven; tell whether they are."""
    if call.op not in (_aten.slice.Tensor, _aten.slice_copy.Tensor):
        return False
    d = call.dim()
    axis = call.operand(0).axes[d]
    given = slice(call["start"], call["end"], call["step"])
    if slice_left(numbers.kept(axis), given) is not None:
        return False
    table = _table(gm, node, torch.from_numpy(_sliced(given, axis, numbers.kept)))
    node.op, node.target = "call_function", torch.index_select
    node.args, node.kwargs = (node.args[0], d, table), {}
    return True
