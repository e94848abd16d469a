"""Graphs and plans in pickles: those of the version before the modules were moved still load, run and go on."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.testing import check_graph
from fxprune.torch_internals.tensors import pytree
from fxprune.torch_internals.versions import VERSION

_STORED = Path(__file__).parent / "stored"  # by version 0.1.0, each with an input and what the graph gave for it


# Stored by torch 2.13, with nested inputs, which older versions of torch describe otherwise.
_NESTED = ("attention", "exported")
_readable = [
    name
    for name in ("attention", "captured", "exported", "masked", "methods", "shrunk")
    if VERSION >= (2, 13) or name not in _NESTED
]


def stored(name: str) -> Any:
    return pickle.loads((_STORED / f"{name}.pkl").read_bytes())


def test_a_graph_that_this_torch_cannot_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(spec: pytree.TreeSpec, state: object) -> None:
        raise pickle.UnpicklingError("state is not a dictionary")

    gm = fxprune.capture(nn.Linear(3, 2), torch.randn(2, 3), frontend="export")
    stored = pickle.dumps(gm)
    monkeypatch.setattr(pytree.TreeSpec, "__setstate__", refuse, raising=False)
    with pytest.raises(pickle.UnpicklingError, match=r"graph of Linear was pickled with another version.*load it with that"):
        pickle.loads(stored)


@pytest.mark.parametrize("name", _readable)
def test_a_stored_graph_computes_what_it_did(name: str) -> None:
    gm, x, expected = stored(name)
    check_graph(gm)
    torch.testing.assert_close(gm(x), expected)
    again = pickle.loads(pickle.dumps(gm))
    torch.testing.assert_close(again(x), expected)


@pytest.mark.parametrize("name", [name for name in ("attention", "masked") if name in _readable])
def test_a_stored_masked_graph_shrinks(name: str) -> None:
    gm, x, expected = stored(name)
    elements = sum(p.numel() for p in gm.parameters())
    fxprune.shrink(gm, example_inputs=x)
    torch.testing.assert_close(gm(x), expected)
    assert sum(p.numel() for p in gm.parameters()) < elements


def test_a_stored_graph_keeps_the_record_of_its_methods() -> None:
    gm, x, expected = stored("methods")
    fxprune.l1_unstructured(gm, "a.weight", 0.2)
    assert [type(method).__name__ for method in gm.meta["fxprune.methods"]["a.weight"]] == [
        "L1Unstructured",
        "LnStructured",
        "L1Unstructured",
    ]
    assert not torch.equal(gm(x), expected)


def test_a_stored_plan_fits_the_graph_that_it_was_made_for() -> None:
    plan, text = stored("plan")
    assert plan.to_json() == text
    gm, x, _ = stored("captured")
    masked, _, expected = stored("masked")
    gm.graph.find_nodes(op="placeholder")[0].meta["val"] = x  # example values do not pickle
    fxprune.mask(gm, plan)
    torch.testing.assert_close(gm(x), expected)
    assert gm.code == masked.code
