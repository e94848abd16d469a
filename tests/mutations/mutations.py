"""Mutations: what a wrong rewriting would leave in a shrunk graph, one fault at a time.

A mutation changes the graph in place and says what it did; it returns "" where the graph has nothing of its kind.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

Mutation = Callable[[fx.GraphModule, fx.GraphModule, random.Random], str]


def _tensors(gm: fx.GraphModule, buffers: bool = False) -> list[tuple[str, Tensor]]:
    """Return the parameters, or the buffers, of which positions were taken out."""
    kept = gm.meta.get("fxprune.kept") or {}
    named = gm.named_buffers() if buffers else gm.named_parameters()
    return [(n, t) for n, t in named if t.is_floating_point() and any(k is not None and len(k) > 1 for k in kept.get(n, ()))]


def _axis(gm: fx.GraphModule, name: str, draw: random.Random) -> tuple[int, Tensor]:
    """Return a dimension that lost positions, and the positions that are left."""
    kept = gm.meta["fxprune.kept"][name]
    dim = draw.choice([d for d, k in enumerate(kept) if k is not None and len(k) > 1])
    return dim, kept[dim]


def _swap(gm: fx.GraphModule, draw: random.Random, *, buffers: bool) -> str:
    if not (found := _tensors(gm, buffers)):
        return ""
    name, tensor = draw.choice(found)
    dim, _ = _axis(gm, name, draw)
    a, b = draw.sample(range(tensor.shape[dim]), 2)
    order = torch.arange(tensor.shape[dim])
    order[a], order[b] = b, a
    with torch.no_grad():
        tensor.copy_(tensor.index_select(dim, order))
    return f"{name}: positions {a} and {b} of dimension {dim} swapped"


def swapped_channels(masked: fx.GraphModule, gm: fx.GraphModule, draw: random.Random) -> str:
    """Two positions of a parameter change places."""
    return _swap(gm, draw, buffers=False)


def statistics_of_wrong_channels(masked: fx.GraphModule, gm: fx.GraphModule, draw: random.Random) -> str:
    """Two positions of a buffer change places."""
    return _swap(gm, draw, buffers=True)


def wrong_index(masked: fx.GraphModule, gm: fx.GraphModule, draw: random.Random) -> str:
    """A position that was to go stays in place of one that was to stay."""
    if not (found := _tensors(gm)):
        return ""
    name, tensor = draw.choice(found)
    dim, kept = _axis(gm, name, draw)
    larger = dict(masked.named_parameters())
    source = larger.get(name, larger.get(f"{name}_orig"))
    if source is None:
        return ""
    gone = sorted(set(range(source.shape[dim])) - set(kept.tolist()))
    everything = gm.meta["fxprune.kept"][name]
    if not gone:
        return ""
    place, wrong = draw.randrange(tensor.shape[dim]), draw.choice(gone)
    part = source.detach().narrow(dim, wrong, 1)
    for d, positions in enumerate(everything):
        if d != dim and positions is not None:
            part = part.index_select(d, positions)
    with torch.no_grad():
        tensor.narrow(dim, place, 1).copy_(part)
    return f"{name}: position {wrong} of the larger graph at place {place} of dimension {dim}"


def shifted_indices(masked: fx.GraphModule, gm: fx.GraphModule, draw: random.Random) -> str:
    """All positions of an axis are one place off."""
    if not (found := _tensors(gm)):
        return ""
    name, tensor = draw.choice(found)
    dim, _ = _axis(gm, name, draw)
    with torch.no_grad():
        tensor.copy_(tensor.roll(1, dim))
    return f"{name}: dimension {dim} is one off"


def _numbers(gm: fx.GraphModule, kind: type) -> list[tuple[fx.Node, int | str, Any]]:
    found = []
    for node in gm.graph.nodes:
        if node.op in ("call_function", "call_method"):
            places: list[tuple[int | str, Any]] = [*enumerate(node.args), *node.kwargs.items()]
            found += [(node, at, value) for at, value in places if type(value) is kind and value not in (0, 1, -1)]
    return found


def _write(gm: fx.GraphModule, node: fx.Node, at: int | str, value: Any) -> None:
    if isinstance(at, int):
        node.update_arg(at, value)
    else:
        node.update_kwarg(at, value)
    gm.recompile()


def stale_scale(masked: fx.GraphModule, gm: fx.GraphModule, draw: random.Random) -> str:
    """A constant in the code, such as the scale of attention, is that of another width."""
    if not (found := _numbers(gm, float)):
        return ""
    node, at, value = draw.choice(found)
    _write(gm, node, at, value * draw.choice([2.0, 0.5, 2**0.5]))
    return f"node {node.name!r}: {value} is another number"


def wrong_size(masked: fx.GraphModule, gm: fx.GraphModule, draw: random.Random) -> str:
    """A size, a split or a number of groups in the code is another one."""
    lists = [
        (node, at, value)
        for node in gm.graph.nodes
        if node.op in ("call_function", "call_method")
        for at, value in [*enumerate(node.args), *node.kwargs.items()]
        if isinstance(value, list | tuple) and len(value) > 1 and all(type(n) is int for n in value) and len(set(value)) > 1
    ]
    numbers = _numbers(gm, int)
    if not lists and not numbers:
        return ""
    if lists and (not numbers or draw.random() < 0.5):
        node, at, value = draw.choice(lists)
        a, b = draw.choice([(a, b) for a in range(len(value)) for b in range(a) if value[a] != value[b]])
        changed = list(value)
        changed[a], changed[b] = changed[b], changed[a]
        _write(gm, node, at, changed)
        return f"node {node.name!r}: {value} became {changed}"
    node, at, value = draw.choice(numbers)
    other = draw.choice([value - 1, value + 1, value * 2])
    _write(gm, node, at, other)
    return f"node {node.name!r}: {value} became {other}"


def one_mode_only(masked: fx.GraphModule, gm: fx.GraphModule, draw: random.Random) -> str:
    """A layer that differs by mode has another option."""
    modules = [(n, m) for n, m in gm.named_modules() if isinstance(m, nn.Dropout | nn.modules.batchnorm._BatchNorm)]
    if not modules:
        return ""
    name, module = draw.choice(modules)
    if isinstance(module, nn.Dropout):
        module.p = 0.9 - module.p
    elif draw.random() < 0.5:
        module.momentum = 0.7
    elif module.track_running_stats and module.running_mean is not None:
        module.track_running_stats = False
        module.running_mean = module.running_var = None
    return f"{name}: other options"


def lost_bias(masked: fx.GraphModule, gm: fx.GraphModule, draw: random.Random) -> str:
    """A bias is zero."""
    found = [(n, p) for n, p in gm.named_parameters() if "bias" in n and bool(p.any())]
    if not found:
        return ""
    name, bias = draw.choice(found)
    with torch.no_grad():
        bias.zero_()
    return f"{name} is zero"


def other_width(masked: fx.GraphModule, gm: fx.GraphModule, draw: random.Random) -> str:
    """A normalisation counts removed positions, as its statistics are off by the share of them."""
    found = [(n, t) for n, t in _tensors(gm) if t.dim() == 1]
    if not found:
        return ""
    name, tensor = draw.choice(found)
    with torch.no_grad():
        tensor.mul_(1 + 1 / (tensor.numel() + 1))
    return f"{name}: scaled by one position more"


MUTATIONS: tuple[Mutation, ...] = (
    swapped_channels,
    statistics_of_wrong_channels,
    wrong_index,
    shifted_indices,
    stale_scale,
    wrong_size,
    one_mode_only,
    lost_bias,
    other_width,
)
