"""Networks of experts, whose layers are grouped products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.compare import relative_error


class Experts(nn.Module):
    """Three experts, who take the rows of their input in turn."""

    def __init__(self, width: int = 64, multiply: Callable[..., Tensor] = torch._grouped_mm) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.multiply = nn.Linear(4, 32), multiply
        self.wide = nn.Parameter(torch.randn(3, 2 * width, 32) / 6)
        self.narrow = nn.Parameter(torch.randn(3, width, 32) / 6)
        self.down = nn.Linear(32, 2)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        gate, value = self.multiply(torch.tanh(self.up(x)), self.wide.transpose(1, 2), offs=ends).chunk(2, -1)
        return self.down(self.multiply(torch.relu(gate) * value, self.narrow, offs=ends))


class Stacks(nn.Module):
    """Experts who all take as many rows; their products have no ends."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.narrow = nn.Parameter(torch.randn(3, 8, 64) / 6), nn.Parameter(torch.randn(3, 64, 8) / 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch._grouped_mm(torch.relu(torch._grouped_mm(x, self.wide)), self.narrow)


X, ENDS = torch.randn(8, 4), torch.tensor([2, 2, 8], dtype=torch.int32)
_DTYPES = [(torch.float32, "trace"), (torch.bfloat16, "trace"), (torch.bfloat16, "export")]


@pytest.mark.parametrize(("dtype", "frontend"), _DTYPES)
@pytest.mark.parametrize("amount", [0.5, 0.3, 9, 0.99])
@pytest.mark.parametrize("spelling", ["_grouped_mm", "functional", "positional"])
def test_experts_are_pruned(dtype: torch.dtype, frontend: Any, amount: float, spelling: str) -> None:
    functions: dict[str, Any] = {
        "_grouped_mm": torch._grouped_mm,
        "functional": getattr(nn.functional, "grouped_mm", torch._grouped_mm),  # torch 2.10
        "positional": lambda one, other, offs: torch._grouped_mm(one, other, offs, None, None),
    }
    model = Experts(multiply=functions[spelling]).to(dtype).eval()
    small = fxprune.prune(model, (X.to(dtype), ENDS), amount, frontend=frontend)
    step = 16 // dtype.itemsize
    left = -(-(64 - (amount if isinstance(amount, int) else round(amount * 64))) // step) * step
    assert small.get_parameter("narrow").shape[1] == left
    assert small.get_parameter("wide").shape[1] == 2 * left
    assert small.get_parameter("up.weight").shape[0] % step == 0
    assert small(X.to(dtype), ENDS).shape == (8, 2)  # its kernel takes the widths that are left


def test_the_masked_graph_and_what_it_becomes_agree_and_train() -> None:
    gm = fxprune.capture(Experts().eval(), (X, ENDS))
    plan = fxprune.plan(fxprune.analyze(gm), 0.5, scope="global")
    fxprune.mask(gm, plan)
    masked = gm(X, ENDS)
    small = fxprune.shrink(gm)
    assert relative_error(small(X, ENDS), masked) < 1e-5
    small(X, ENDS).sum().backward()
    assert small.get_parameter("wide").grad is not None
    # Two for each element: each row meets the matrix of one expert.
    wide, narrow = small.get_parameter("wide").shape, small.get_parameter("narrow").shape
    outside = 2 * 8 * (4 * wide[2] + 2 * narrow[2])
    assert plan.flops_after == outside + 2 * 8 * (wide[1] * wide[2] + narrow[1] * narrow[2])


def test_budgets_and_multiples_of_ones_own() -> None:
    deps = fxprune.analyze(fxprune.capture(Experts().bfloat16().eval(), (X.bfloat16(), ENDS)))
    for plan in (
        fxprune.plan(deps, max_params=0.4),
        fxprune.plan(deps, 0.5, round_to=3),
        fxprune.plan(deps, 0.4, scope="global"),
    ):
        assert {len(kept) % 8 for (name, dim), kept in plan.kept.items() if name in ("wide", "narrow") and dim > 0} <= {0}


def test_masks_that_leave_rows_that_the_kernel_does_not_take() -> None:
    """A width of another multiple is kept whole before any graph fails."""
    gm = fxprune.capture(Experts().eval(), (X, ENDS))
    fxprune.ln_structured(gm, "narrow", 3, n=2, dim=1)
    mask = torch.ones(3, 128, 32)
    mask[:, gm.get_buffer("narrow_mask").amin((0, 2)).bool().logical_not().repeat(2)] = 0
    before = gm(X, ENDS)
    fxprune.mask(gm, {"wide": mask})
    with pytest.warns(fxprune.PruneWarning, match=r"takes rows of a multiple of 4 elements, not of 61; give round_to=4"):
        small = fxprune.shrink(gm)
    assert relative_error(small(X, ENDS), before) < 1e-6
    assert small.get_parameter("narrow").shape == (3, 64, 32)


@pytest.mark.filterwarnings("ignore:the graph takes only batches")
@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_stacks_of_matrices(frontend: Any) -> None:
    x = torch.randn(3, 6, 8).bfloat16()
    small = fxprune.prune(Stacks().bfloat16().eval(), x, 0.5, frontend=frontend)
    assert small.get_parameter("wide").shape == (3, 8, 32)
    assert small.get_parameter("narrow").shape == (3, 32, 8)
    assert small(x).shape == (3, 6, 8)
