"""Code within a switch of gradients or autocast is a graph in the graph, in which sizes and places are rewritten as outside."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fxprune
from fxprune.testing import check_graph
from tests.compare import relative_error

Body = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Two layers, the second of which is called in a region, as is what stands between them."""

    def __init__(self, body: Body, region: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.norm, self.scale = nn.LayerNorm(16), nn.Parameter(torch.rand(16))
        self.order = nn.Buffer(torch.arange(16).flip(0))
        self.body, self.region = body, region

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(self.region(lambda t: self.body(self, t), x))
        return y


def no_grad(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return f(x)


def nested(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        x = x * 2
        with torch.enable_grad():
            return f(x) + 1


def half(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = f(x)
    return y.to(x.dtype)


def twice(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        one = f(x)
    x = torch.tanh(x)
    with torch.no_grad():
        return one + f(x)


REGIONS: dict[str, Callable[..., Tensor]] = {
    "no_grad": no_grad,
    "nested": nested,
    "autocast": half,
    "twice": twice,
    "checkpoint": lambda f, x: checkpoint(f, x, use_reentrant=True),
}


def _heads(m: Net, x: Tensor) -> Tensor:
    y = torch.relu(m.a(x))
    b, n = y.shape[:2]
    y = y.view(b, n, 4, y.shape[-1] // 4).transpose(1, 2).reshape(b, 4 * n, y.shape[-1] // 4)
    return torch.tanh(m.b(y.view(b, 4, n, -1).transpose(1, 2).reshape(b, n, -1)))


def _attention(m: Net, x: Tensor) -> Tensor:
    q, k = (m.a(t).view(len(x), -1, 2, 8).transpose(1, 2) for t in (x, x + 1))
    return m.b(F.scaled_dot_product_attention(q, k, k).transpose(1, 2).reshape(len(x), -1, 16))


def _halves(m: Net, x: Tensor) -> Tensor:
    one, other = m.a(x).chunk(2, -1)
    return m.b(torch.cat([other, F.silu(one)], -1))


BODIES: dict[str, Body] = {
    "heads": _heads,
    "attention": _attention,
    "numbers": lambda m, x: m.b(torch.relu(m.a(x)).view(x.shape[0], x.shape[1], 4, 4).flip(3).reshape(-1, 16)).view(2, 5, 12),
    "halves": _halves,
    "split": lambda m, x: m.b(torch.cat([t * 2 for t in torch.relu(m.a(x)).split([4, 12], -1)], -1)),
    "slices": lambda m, x: m.b(torch.cat([torch.relu(m.a(x))[..., 8:], m.a(x)[..., :8]], -1)),
    "steps": lambda m, x: m.b(torch.cat([torch.relu(m.a(x))[..., ::2], torch.relu(m.a(x))[..., 1::2]], -1)),
    "table": lambda m, x: m.b(torch.relu(m.a(x)).index_select(-1, m.order)),
    "own scale": lambda m, x: m.b(torch.sigmoid(m.a(x)) * m.scale),
    "expand": lambda m, x: m.b(torch.relu(m.a(x)) * m.scale.view(1, 1, 16).expand(x.shape[0], 1, 16)),
    "rescaled": lambda m, x: m.b(torch.relu(m.a(x)) * m.a(x).shape[-1] ** -0.5),
    "norm": lambda m, x: m.b(m.norm(m.a(x))),
    "softmax": lambda m, x: m.b(m.a(x).softmax(-1)),
}
# What combines channels by their number is corrected on the way into a node, and not in it.
WHOLE = {"norm", "softmax"}


_CASES = [*((body, "no_grad") for body in BODIES), *((body, region) for region in REGIONS for body in ("heads", "table"))]


@pytest.mark.filterwarnings("ignore::fxprune.CaptureWarning", "ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(("body", "region"), dict.fromkeys(_CASES))
def test_what_stands_in_a_region_is_rewritten(body: str, region: str) -> None:
    x = torch.randn(2, 5, 6).double()
    gm = fxprune.capture(Net(BODIES[body], REGIONS[region]).double().eval(), x)
    deps = fxprune.analyze(gm)
    fxprune.mask(gm, fxprune.plan(deps, 0.5))
    masked = gm(x)
    small = fxprune.shrink(gm)
    check_graph(small)
    tolerance = 1e-2 if region == "autocast" else 1e-9
    for graph in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert relative_error(graph(x), masked) < tolerance
    assert small.get_parameter("a.weight").shape[0] == (16 if body in WHOLE else 8)
    again = fxprune.analyze(small)
    fxprune.shrink(fxprune.mask(small, fxprune.plan(again, 0.5)))
    assert small.get_parameter("a.weight").shape[0] == (16 if body in WHOLE else 4)


class Control(nn.Module):
    """What a loop or a branch reads stays whole, and the rest of the network does not."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.one, self.two, self.middle = nn.Linear(16, 16), nn.Linear(16, 16), middle

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.b(torch.relu(self.a(x))))
        out: Tensor = self.d(torch.relu(self.c(self.middle(self, y))))
        return out


def _turned(y: Tensor) -> Tensor:
    return y.reshape(y.shape[0], 4, 4).flip(1).reshape(y.shape[0], 16)


def _looped(m: Any, y: Tensor) -> Tensor:
    found: Tensor = while_loop(lambda i, t: i < 3, lambda i, t: (i + 1, torch.tanh(m.one(t))), (torch.tensor(0), y))[1]
    return found


def _scanned(m: Any, y: Tensor) -> Tensor:
    found: Tensor = scan(lambda c, t: (torch.tanh(m.one(c)) + t, c * t), torch.zeros_like(y[0]), y)[1]
    return found


@pytest.mark.parametrize(
    "middle",
    [
        lambda m, y: torch.cond(y.sum() > 0, lambda t: t * 2, torch.sin, (y,)),
        lambda m, y: torch.cond(y.sum() > 0, lambda t: m.one(t), lambda t: m.two(t), (y,)),
        lambda m, y: torch.cond(y.sum() > 0, _turned, torch.sin, (torch.cond(y.max() > 1, torch.sin, torch.cos, (y,)),)),
        _looped,
        _scanned,
    ],
)
def test_loops_and_branches(middle: Any) -> None:
    x = torch.randn(5, 6).double()
    model = Control(middle).double().eval()
    gm = fxprune.capture(model, x)
    deps = fxprune.analyze(gm)
    assert "whole: cannot be analysed: " in str(deps.explain("b.weight", 0))
    small = fxprune.prune(model, x, 0.5)
    assert small.get_parameter("a.weight").shape == (8, 6)
    assert small.get_parameter("b.weight").shape == (16, 8)
    assert small.get_parameter("c.weight").shape == (6, 16)
    assert small(x).shape == (5, 3)


@pytest.mark.filterwarnings("ignore::fxprune.CaptureWarning")
def test_another_batch_after_shrinking() -> None:
    model = Net(_heads, no_grad).double().eval()
    small = fxprune.prune(model, torch.randn(2, 5, 6).double(), 0.5)
    assert small(torch.randn(3, 5, 6).double()).shape == (3, 5, 3)
