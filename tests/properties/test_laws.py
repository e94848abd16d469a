"""Laws of masking, on random networks with random methods."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune.passes import Finalize, Mask
from fxprune.testing import check_graph
from tests.compare import assert_same, relative_error


class RandomNet(nn.Module):
    """Layers of random kinds, some used twice, some weights tied, some residual; input (batch, 6)."""

    def __init__(self, kinds: list[str], tied: bool) -> None:
        super().__init__()
        self.kinds = kinds
        self.layers = nn.ModuleList(self._make(kind) for kind in kinds)
        self.scale = nn.Parameter(torch.randn(6))
        self.last = nn.Linear(6, 6)
        first = self.layers[0]
        if tied and isinstance(first, nn.Linear):
            self.last.weight = first.weight

    def _make(self, kind: str) -> nn.Module:
        makers: dict[str, Any] = {
            "linear": lambda: nn.Linear(6, 6),
            "twice": lambda: nn.Linear(6, 6, bias=False),
            "norm": lambda: nn.LayerNorm(6),
            "batch": lambda: nn.BatchNorm1d(6),
            "conv": lambda: nn.Conv1d(2, 2, 3, padding=1, groups=2),
            "prelu": lambda: nn.PReLU(6),
            "residual": lambda: nn.Linear(6, 6),
            "drop": lambda: nn.Dropout(0.3),
        }
        module: nn.Module = makers[kind]()
        return module

    def forward(self, x: Tensor) -> Tensor:
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            if kind == "twice":
                x = layer(torch.tanh(layer(x)))
            elif kind == "conv":
                x = layer(x.unflatten(1, (2, 3))).flatten(1)
            elif kind == "residual":
                x = x + layer(x)
            else:
                x = layer(x)
        return self.last(x * self.scale)


KINDS = st.lists(
    st.sampled_from(["linear", "twice", "norm", "batch", "conv", "prelu", "residual", "drop"]), min_size=1, max_size=5
)
SETTINGS = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def build(kinds: list[str], tied: bool, seed: int) -> tuple[nn.Module, Any]:
    torch.manual_seed(seed)
    model = RandomNet(kinds, tied).double()
    return model, fxprune.capture(model, torch.randn(3, 6, dtype=torch.double), frontend="trace")


def prune(data: st.DataObject, gm: Any) -> None:
    base = sorted({n.removesuffix("_orig") for n, _ in gm.named_parameters()})
    for name in data.draw(st.lists(st.sampled_from(base), min_size=1, max_size=6)):
        method = data.draw(st.sampled_from(["l1", "random", "ln", "mask", "identity"]))
        amount = data.draw(st.floats(0, 1))
        parameters = dict(gm.named_parameters(remove_duplicate=False))
        shape = parameters[name if name in parameters else f"{name}_orig"].shape
        if method == "l1":
            fxprune.l1_unstructured(gm, name, amount)
        elif method == "random":
            fxprune.random_unstructured(gm, name, amount)
        elif method == "ln" and len(shape) > 1 and not fxprune.is_pruned(gm):
            fxprune.ln_structured(gm, name, amount, n=2, dim=0)
        elif method == "mask":
            fxprune.custom_from_mask(gm, name, torch.rand(shape) > amount)
        else:
            fxprune.identity(gm, name)


@SETTINGS
@given(KINDS, st.booleans(), st.integers(0, 2**16), st.data())
def test_masked_is_dense_times_mask_and_finalize_gives_the_text_back(
    kinds: list[str], tied: bool, seed: int, data: st.DataObject
) -> None:
    model, gm = build(kinds, tied, seed)
    text, parameters = gm.code, dict(gm.named_parameters())
    prune(data, gm)
    check_graph(gm)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            mask = dict(gm.named_buffers(remove_duplicate=False)).get(f"{name}_mask")
            if mask is not None:
                parameter.mul_(mask)
    x = torch.randn(4, 6, dtype=torch.double)
    assert_same(gm, expected, (x,))
    masked = copy.deepcopy(gm)
    fxprune.finalize(gm)
    check_graph(gm)
    assert gm.code == text
    assert all(p is parameters[n] for n, p in gm.named_parameters())
    assert list(gm.state_dict()) == list(model.state_dict())
    assert_same(gm, masked, (x,))


@SETTINGS
@given(KINDS, st.booleans(), st.integers(0, 2**16))
def test_amount_zero_is_the_identity_and_a_pass_twice_is_once(kinds: list[str], tied: bool, seed: int) -> None:
    model, gm = build(kinds, tied, seed)
    text = gm.code
    names = [n for n, _ in gm.named_parameters()]
    assert not Finalize()(gm).modified
    assert gm.code == text
    fxprune.global_unstructured(gm, names, fxprune.L1Unstructured, amount=0)
    x = torch.randn(4, 6, dtype=torch.double)
    assert_same(gm, model, (x,))
    masks = {n.removesuffix("_mask"): b.clone() for n, b in gm.named_buffers() if n.endswith("_mask")}
    once = gm.code
    assert not Mask(masks)(gm).modified
    assert gm.code == once
    assert Finalize()(gm).modified
    assert gm.code == text
    assert relative_error(gm.eval()(x), model.eval()(x)) <= 1e-12
