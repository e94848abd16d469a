"""A network that several tests of criteria score, and sums over slices taken one by one."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group


class Net(nn.Module):
    """Convolutions, one of them grouped, batch norms and an LSTM: units own several positions, some of one tensor twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=2)
        self.lstm = nn.LSTM(12, 5, batch_first=True)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(F.relu(self.norm(self.stem(x))))
        return self.fc(self.lstm(x.mean(3).transpose(1, 2))[0]).mean(1)


def batch(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def net(dtype: torch.dtype = torch.float64) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Net()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.copy_(torch.randn(parameter.shape))
    return made.to(dtype).eval()


def deps_of(model: nn.Module, x: Tensor | None = None) -> Dependencies:
    given = batch() if x is None else x
    dtype = next(model.parameters()).dtype
    return fxprune.analyze(fxprune.capture(model, given.to(dtype) if given.is_floating_point() else given))


def slices(tensors: dict[str, Tensor], group: Group) -> list[list[Tensor]]:
    """Return for each parameter axis of a group what each of its units owns there, one after the other."""
    return [
        [tensors[m.parameter].index_select(m.dim, torch.from_numpy(m.positions[unit])) for unit in range(group.size)]
        for m in group.members
        if not m.is_buffer
    ]


def parameters(gm: fx.GraphModule) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in gm.named_parameters()}


def loss(gm: fx.GraphModule) -> Tensor:
    return F.cross_entropy(gm(batch().to(next(gm.parameters()).dtype)), torch.tensor([1, 3]))
