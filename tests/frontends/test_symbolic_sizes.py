"""Functions of torch take the sizes of inputs as symbolic values, so a traced graph takes inputs of other sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.compare import relative_error

Use = Callable[[Tensor, int, int], Tensor]

USES: dict[str, Use] = {
    "reshape": lambda y, b, t: torch.reshape(y, (b, t, 2, -1)).flatten(2),
    "reshape to a list": lambda y, b, t: torch.reshape(y, [b * t, -1]).view(b, t, -1),
    "narrow": lambda y, b, t: torch.narrow(y, 1, 0, t),
    "dims of a sum": lambda y, b, t: torch.sum(y, dim=(y.dim() - 1,), keepdim=True),
    "roll": lambda y, b, t: torch.roll(y, (t // 2,), (1,)),
    "broadcast_to": lambda y, b, t: torch.broadcast_to(y[:1], (b, t, 8)),
    "tile": lambda y, b, t: torch.tile(y[:1], (b, 1, 1)),
    "zeros of a tuple": lambda y, b, t: torch.zeros((b, t, 1)),
    "zeros": lambda y, b, t: torch.zeros(b, t, 1),
    "zeros of a shape": lambda y, b, t: torch.zeros(y.shape),
    "ones of one size": lambda y, b, t: torch.ones(b)[:, None, None],
    "full": lambda y, b, t: torch.full((b, 1, 1), 2.0),
    "a causal mask": lambda y, b, t: torch.ones(t, t, dtype=torch.bool).tril().to(y) @ y,
    "empty": lambda y, b, t: torch.empty(b, t, 1, dtype=y.dtype).fill_(2),
    "rand": lambda y, b, t: (torch.rand(b, t, 1) < 2).to(y),
    "eye": lambda y, b, t: torch.eye(t).to(y) @ y,
}


class Net(nn.Module):
    def __init__(self, use: Use) -> None:
        super().__init__()
        self.l, self.use = nn.Linear(8, 8), use

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        y = self.l(x)
        return y + self.use(y, b, t)


@pytest.mark.parametrize("use", USES.values(), ids=list(USES))
def test_functions_take_sizes(use: Use) -> None:
    model = Net(use).double()
    gm = fxprune.capture(model, torch.randn(2, 3, 8).double(), frontend="trace")
    for x in (torch.randn(2, 3, 8), torch.randn(3, 5, 8), torch.randn(1, 1, 8)):
        assert relative_error(gm(x.double()), model(x.double())) <= 1e-9


def test_a_question_that_the_code_catches_spoils_the_trace_whatever_torch_asks_besides() -> None:
    def catching(y: Tensor, b: int, t: int) -> Tensor:
        y = y + torch.zeros((b, t, 1))
        try:
            y = torch.reshape(y * len(range(b)), (b, t, 8))
        except ValueError:
            y = torch.reshape(y, (b, t, 8))
        return torch.narrow(y, 1, 0, t)

    with pytest.raises(fxprune.CaptureError, match="catches an error that only the capture raises"):
        fxprune.capture(Net(catching), torch.randn(2, 3, 8), frontend="trace")
