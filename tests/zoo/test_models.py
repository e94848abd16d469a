"""Real models: captured, pruned, trained, finalized, exported, in float64 with random weights and norm statistics."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.prune import L1Unstructured
from torch.utils import _pytree as pytree

import fxprune
from fxprune.testing import check_graph
from tests.compare import assert_same, relative_error, run, tensors_of
from tests.zoo import shim
from tests.zoo.models import ENTRIES, build, example

shim.install()
pytest.importorskip("timm")
pytest.importorskip("transformers")

# What these libraries, and torch inside them, warn of is not ours to test.
pytestmark = pytest.mark.filterwarnings("ignore")


def double_example(name: str, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def to_double(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    cast: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(to_double, example(name, batch))
    return cast


# Half of the time of all models, and little that the others do not show.
_SLOW = {"resnet50", "googlenet", "vit_b_32", "mvitv2_tiny", "efficientformer_l1", "levit_128"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in _SLOW else ()) for n in ENTRIES])
def test_captured_pruned_trained_finalized_and_exported(name: str) -> None:
    model = build(name).double()
    args, kwargs = double_example(name, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gm = fxprune.capture(model, args, kwargs)
    follows_mode = not any(issubclass(w.category, fxprune.CaptureWarning) for w in caught)
    assert follows_mode or name == "googlenet"  # it gives another kind of result in train mode
    check_graph(gm)
    assert list(gm.state_dict()) == list(model.state_dict())
    compare_at_two_batch_sizes(gm, model, name, follows_mode)
    captured_text = gm.code
    parameters = dict(gm.named_parameters())

    first, *others = [n for n, p in parameters.items() if p.dim() > 1]
    fxprune.l1_unstructured(gm, first, amount=0.5)
    halves = {n: L1Unstructured(0.5).compute_mask(parameters[n], torch.ones_like(parameters[n])) for n in others}
    fxprune.mask(gm, halves)  # all at once, so that the graph is rewritten once
    check_graph(gm)
    assert 0.45 < fxprune.summary(gm).sparsity < 0.51  # small models have many biases
    train_one_step(gm, args, kwargs)
    gm.eval()
    with torch.no_grad():
        masked = gm(*args, **kwargs)
    fxprune.finalize(gm)
    assert gm.code == captured_text
    assert all(p is parameters[n] for n, p in gm.named_parameters())
    with torch.no_grad():
        assert relative_error(gm(*args, **kwargs), masked) <= 1e-9
        ts = fxprune.to_torchscript(gm, args, kwargs, method="script")
        assert relative_error(reload(ts)(*args, *kwargs.values()), masked) <= 1e-9


def compare_at_two_batch_sizes(gm: torch.fx.GraphModule, model: torch.nn.Module, name: str, follows_mode: bool) -> None:
    for batch in (2, 3):
        args, kwargs = double_example(name, batch)
        if follows_mode:
            assert_same(gm, model, args, kwargs)
        else:
            assert relative_error(run(copy.deepcopy(gm), args, kwargs), run(copy.deepcopy(model), args, kwargs)) <= 1e-9


def train_one_step(gm: torch.fx.GraphModule, args: Any, kwargs: Any) -> None:
    gm.train()
    optimizer = torch.optim.SGD(gm.parameters(), lr=1e-3)
    tensors_of(gm(*args, **kwargs))[0].square().mean().backward()
    before = {n: p.detach().clone() for n, p in gm.named_parameters()}
    optimizer.step()
    assert any(not torch.equal(p, before[n]) for n, p in gm.named_parameters())


def reload(ts: torch.jit.ScriptModule) -> Any:
    file = io.BytesIO()
    torch.jit.save(ts, file)
    file.seek(0)
    return torch.jit.load(file)
