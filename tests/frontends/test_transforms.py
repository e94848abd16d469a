"""Models that call torch.func or higher-order operators: what is captured is exact, and the process is as before."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

import fxprune


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def net(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class Mapped(Net):
    def forward(self, x: Tensor) -> Tensor:
        return vmap(self.net)(x)


class MappedTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return vmap(vmap(lambda row: row * 2, in_dims=1), in_dims=0)(self.net(x).unsqueeze(1)).flatten(1)


class Directional(Net):
    def forward(self, x: Tensor) -> Tensor:
        return jvp(self.net, (x,), (torch.ones_like(x),))[1]


class Scanned(Net):
    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops.associative_scan import associative_scan

        return associative_scan(lambda a, b: a + b, self.net(x), dim=1, combine_mode="generic")


class Gradient(Net):
    def forward(self, x: Tensor) -> Tensor:
        return grad(lambda y: self.net(y).sum())(x)


class Jacobian(Net):
    def forward(self, x: Tensor) -> Tensor:
        return vmap(jacrev(self.net))(x).flatten(1)


class Ensemble(Net):
    def forward(self, x: Tensor) -> Tensor:
        one = dict(self.a.named_parameters())
        many = {name: torch.stack([p, p * 2]) for name, p in one.items()}
        return vmap(lambda state: functional_call(self.a, state, (x,)))(many).sum(0)


def levels() -> int:
    return len(torch._C._functorch.get_interpreter_stack() or ())


# Some of them fix the batch size, which is warned of.
@pytest.mark.filterwarnings("ignore::fxprune.CaptureWarning", "ignore::fxprune.PruneWarning")
@pytest.mark.parametrize("kind", [Mapped, MappedTwice, Directional, Scanned, Ensemble])
def test_transforms_that_are_written_out(kind: type[Net]) -> None:
    torch.manual_seed(0)
    model, x = kind().eval().double(), torch.randn(3, 4).double()
    gm = fxprune.capture(model, x)
    assert levels() == 0
    other = torch.randn(3, 4).double()
    assert torch.allclose(gm(other), model(other), rtol=1e-9, atol=1e-9)
    fxprune.prune(model, x, 0.5)
    assert levels() == 0
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("kind", [Gradient, Jacobian])
def test_transforms_that_nobody_writes_out_are_refused_or_exact(kind: type[Net]) -> None:
    torch.manual_seed(0)
    model, x = kind().eval().double(), torch.randn(3, 4).double()
    before = model(x)
    try:
        gm = fxprune.capture(model, x)
    except fxprune.CaptureError:
        pass
    else:
        assert torch.allclose(gm(x), before)
        fxprune.analyze(gm)
    assert levels() == 0
    assert torch.equal(model(x), before)


# Torch compiles these operators on their first call in a process, so the cases have a process of their own.
_FLOW = """
import torch, fxprune
from torch import nn
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4)

class Cond(Net):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda z: z * 2, lambda z: z + 1, (self.l(x),))

class While(Net):
    def forward(self, x):
        return while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, self.l(y)), (torch.tensor(0), x))[1]

class Scan(Net):
    def forward(self, x):
        return scan(lambda c, y: (c + y, c * y), torch.zeros(4), self.l(x), dim=0)[1]

x = torch.randn(2, 4)
for kind in (Cond, While, Scan):
    model = kind().eval()
    if {first}:
        model(x)
    for frontend in ("trace", "export"):
        try:
            gm = fxprune.capture(model, x, frontend=frontend)
        except fxprune.InputError:
            raise
        except fxprune.CaptureError as error:
            assert frontend == "trace", error
        else:
            for y in (x, torch.ones(2, 4), -torch.ones(2, 4)):
                assert torch.equal(gm(y), model(y))
    for _ in range(2):
        model(x)
"""


@pytest.mark.parametrize("first", [True, False])
def test_control_flow_is_captured_and_works_afterwards(first: bool) -> None:
    code = _FLOW.format(first=first)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
