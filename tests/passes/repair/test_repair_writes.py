"""What is written into a part of a tensor is written into the same part of what is left of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.shrinking import assert_equal, pruned

Write = Callable[[Tensor, Tensor, Tensor], object]


class Writes(nn.Module):
    """Writes into a constant, into zeros that take part in a sum, and into what a layer gives, as a function says.

    Args:
        write: takes the three, of shapes (4, 8), (batch, 8) and (batch, 8).
    """

    def __init__(self, write: Write) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        constant, zeros = x.new_zeros(4, 8), torch.zeros_like(y)
        self.write(constant, zeros, y)
        return self.c(self.b(torch.relu(y) + zeros) + constant.sum(0))


def _slices(c: Tensor, z: Tensor, y: Tensor) -> None:
    c[1:3, 2:6] = 2
    c[-1] = 1
    z[:, 2:6] = y[:, 2:6]
    z[..., 3] = 1.0
    z[0, None, 1:3] = 4


def _by_tensors(c: Tensor, z: Tensor, y: Tensor) -> None:
    z[:, [1, 3]] = 2.0
    z[y > 0] = 1.0


def _later(c: Tensor, z: Tensor, y: Tensor) -> None:
    picked = y[:, 1::3]
    y.mul_(2)
    z[:, :3] += picked


_WRITES: dict[str, Write] = {
    "slices": _slices,
    "every other place of a constant": lambda c, z, y: c[1:3, ::2].fill_(2),
    "every other place, from as many side by side": lambda c, z, y: z[:, ::2].copy_(y[:, 4:]),
    "a slice of every third place": lambda c, z, y: z[:, 1:7:3][:, 1:].copy_(y[:, 3:4]),
    "every other place in each head": lambda c, z, y: y.view(-1, 2, 4)[..., ::2].add_(1),
    "what every third place shows": _later,
    "a head": lambda c, z, y: z.view(-1, 2, 4)[:, 1].copy_(y[:, :4]),
    "a part of the transposed": lambda c, z, y: y.T[2:4].fill_(1),
}


@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.parametrize("write", _WRITES.values(), ids=_WRITES)
@pytest.mark.parametrize("seed", range(3))
def test_writes_go_where_they_went(write: Write, frontend: str, seed: int) -> None:
    torch.manual_seed(seed)
    x, more = torch.randn(5, 6), torch.randn(2, 6)
    found = pruned(Writes(write), (x,), frontend=frontend)
    assert_equal(found, (x,), (more,))
    assert len(found.small.get_parameter("b.weight")) == 4


@pytest.mark.parametrize("index", [slice(None, None, 2), slice(1, 6, 3)])
def test_a_written_slice_with_a_step_costs_no_more_than_the_step(index: slice) -> None:
    found = pruned(Writes(lambda c, z, y: c[:, index].fill_(2)), (torch.randn(5, 6),))
    group = next(g for g in found.deps.groups if any(m.name == "b.weight" and m.dim == 0 for m in g.members))
    assert len(group.units) > 1


def test_an_assignment_is_a_write_to_a_view() -> None:
    gm = fxprune.capture(Writes(_slices).eval(), torch.randn(5, 6), frontend="trace")
    calls = [node.target for node in gm.graph.nodes if node.op == "call_method"]
    assert calls.count("fill_") == 4
    assert calls.count("copy_") == 1


def test_an_assignment_by_an_index_of_tensors_is_left_to_export() -> None:
    model, x = Writes(_by_tensors).eval(), torch.randn(5, 6)
    gm = fxprune.capture(model, x)
    torch.testing.assert_close(gm(x), model(x))
    with pytest.raises(fxprune.CaptureError, match=r"the code assigns to .* by an index of tensors"):
        fxprune.capture(model, x, frontend="trace")
