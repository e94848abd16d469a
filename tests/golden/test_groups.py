"""Groups of small networks, against what was worked out by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from tests.golden.registry import NETS, Net
from tests.golden.whole import OF_TRANSFORMERS, whole

# What the libraries, and torch inside them, warn of is not ours to test.
pytestmark = pytest.mark.filterwarnings("ignore")

# Here some units have positions in common, each of which goes with any of them.
_OVERLAPPING = {"shuffle_grouped"}

_MEMBER = re.compile(r"(?P<name>[\w.]+)\[(?P<dim>\d+)\](?:\*(?P<positions>\d+))?")

every_net = pytest.mark.parametrize("net", NETS.values(), ids=NETS)


def build(net: Net) -> nn.Module:
    if net.name in OF_TRANSFORMERS:
        pytest.importorskip("transformers")
    return net.build()


def lines(text: str) -> list[str]:
    """Return a golden text as sorted lines, one for each group."""
    return sorted(" ".join(group.split()) for group in re.split(r"(?:^|\s)(?=\d+:)", text) if group.strip())


def rendered(groups: Any, model: nn.Module) -> list[str]:
    """Return groups as the lines of a golden text: those of several units that own some parameter."""
    parameters = [name for name, _ in model.named_parameters()]
    order = {name: i for i, name in enumerate([*parameters, *dict(model.named_buffers())])}

    def text(group: Any) -> str:
        members = sorted(group.members, key=lambda member: (order[member.name], member.dim))
        counts = [member.positions.shape[1] for member in members]
        words = [f"{m.name}[{m.dim}]" + (f"*{p}" if p > 1 else "") for m, p in zip(members, counts, strict=True)]
        return f"{group.size}: {' '.join(words)}"

    owned = [group for group in groups if group.size > 1 and {member.name for member in group.members} & set(parameters)]
    return sorted(text(group) for group in owned)


@every_net
def test_groups_are_those_worked_out_by_hand(net: Net) -> None:
    model = build(net)
    deps = fxprune.analyze(fxprune.capture(model, net.inputs(2)))
    assert rendered(deps.groups, model) == lines(net.expected)


@every_net
def test_groups_are_the_same_behind_the_export_front_end(net: Net) -> None:
    assert rendered(whole(net.name, "export").deps.groups, build(net)) == lines(net.expected)


@every_net
def test_golden_texts_fit_their_networks(net: Net) -> None:
    model = build(net)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    tensors = {**parameters, **buffers}
    order = {name: i for i, name in enumerate(tensors)}
    for line in lines(net.expected):
        size, _, text = line.partition(": ")
        found = [_MEMBER.fullmatch(word) for word in text.split()]
        members = [(m["name"], int(m["dim"]), int(m["positions"] or 1)) for m in found if m is not None]
        assert len(members) == len(found), line
        places = [(order[name], dim) for name, dim, _ in members]
        assert places == sorted(set(places)), line
        assert int(size) > 1, line
        assert members[0][0] in parameters, line
        for name, dim, positions in members:
            units = 1 if net.name in _OVERLAPPING else int(size)
            assert units * positions <= tensors[name].shape[dim], (line, name)


@every_net
def test_networks_take_any_batch(net: Net) -> None:
    model = build(net)
    with torch.no_grad():
        for batch in (1, 2, 3):
            assert model(*net.inputs(batch)).shape[0] == batch
