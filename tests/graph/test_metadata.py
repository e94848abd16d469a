"""The keys of ``meta``: each lives through copies, pickles and shrinks as it says there."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.graph.metadata import BAKED, DESCRIBED, IS_WRAPPED, KEEPS, KEPT, METHODS, NODE_KEYS, REMOVED, Key
from fxprune.passes.lower import Lower

X = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(2, 5)
KEYS: list[Key[Any]] = [METHODS, KEPT, BAKED, REMOVED, KEEPS, *NODE_KEYS]


class Net(nn.Module):
    """Has something for every key."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        h = self.two(self.one(x).relu())
        h += x
        return self.head(F.linear(self.norm(h), self.one.weight))


def captured() -> fx.GraphModule:
    torch.manual_seed(0)
    return fxprune.capture(Net().double(), (X,))


def masked(gm: fx.GraphModule, ignore: str) -> fx.GraphModule:
    return fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.25, ignore=ignore))


def with_all_keys() -> fx.GraphModule:
    """Return a graph that was pruned in every way that leaves something in ``meta``."""
    gm = captured()
    fxprune.shrink(masked(gm, "stem"))
    fxprune.finalize(masked(gm, "stem"))
    fxprune.l1_unstructured(masked(gm, "head"), "one.weight", 1)
    first = next(iter(gm.graph.nodes))
    IS_WRAPPED.set(first, True)  # torch's alone
    DESCRIBED.set(first, None)  # of graphs from a pickle
    REMOVED.set(gm, {})  # of graphs on the meta device
    return gm


def keys_of(gm: fx.GraphModule) -> set[str]:
    return {key for holder in (gm, *gm.graph.nodes) for key in holder.meta}


def by_pickle(gm: fx.GraphModule) -> fx.GraphModule:
    return pickle.loads(pickle.dumps(gm))


def shrunk(gm: fx.GraphModule) -> fx.GraphModule:
    return fxprune.shrink(copy.deepcopy(gm))


def test_every_key_is_in_the_table() -> None:
    assert keys_of(with_all_keys()) == {key.name for key in KEYS}


@pytest.mark.parametrize(
    ("copier", "stays"),
    [
        (copy.copy, lambda key: True),
        (copy.deepcopy, lambda key: True),
        (by_pickle, lambda key: key.pickled),
        (shrunk, lambda key: key.shrunk),
    ],
)
def test_keys_live_through_what_the_table_says(
    copier: Callable[[fx.GraphModule], fx.GraphModule], stays: Callable[[Key[Any]], bool]
) -> None:
    gm = with_all_keys()
    survivor = copier(gm)
    for key in KEYS:
        assert (key.name in keys_of(survivor)) is stays(key), key.name


def test_sums_are_written_in_place_after_pickling() -> None:
    gm = captured()
    survivor = fxprune.shrink(by_pickle(masked(gm, "head")), example_inputs=X)
    assert "two += relu" in survivor.code
    assert survivor.code == fxprune.shrink(gm).code


def test_a_mask_takes_the_place_of_a_captured_read_after_pickling() -> None:
    gm = Lower(["one.weight"])(captured()).graph_module
    survivor = by_pickle(gm)
    for one in (gm, survivor):
        fxprune.l1_unstructured(one, "one.weight", 0.5)
    assert survivor.code == gm.code
