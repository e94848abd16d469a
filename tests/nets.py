"""Small networks that several tests capture."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DropPath(nn.Module):
    """Stochastic depth for each sample, with an early return as timm and others write it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * x.new_empty(shape).bernoulli_(keep).div_(keep)


class Block(nn.Module):
    """A residual block with every kind of mode dependence that a graph can keep."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)
        self.path = DropPath(0.3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        y = F.dropout(self.drop(y), 0.1, self.training)
        y = F.dropout2d(y, p=0.2 if self.training else 0.0)
        return x + self.path(y)


class ConvNet(nn.Module):
    """Convolutions, batch norms, residuals, stochastic depth and a classifier; input (batch, 3, height, width)."""

    def __init__(self, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(blocks)])
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class SequenceNet(nn.Module):
    """Embedding, LSTM, attention, bare parameter, tied output; input (batch, length) of token numbers."""

    def __init__(self, vocabulary: int = 11, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, dropout=0.2, batch_first=True)
        self.attend = nn.MultiheadAttention(width, 2, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.randn(width))
        self.out = nn.Linear(width, vocabulary, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        hidden, _ = self.lstm(self.embed(tokens))
        attended, _ = self.attend(hidden, hidden, hidden, need_weights=False)
        hidden = self.norm(hidden + attended) * self.scale
        return {"logits": self.out(hidden), "hidden": hidden}


@dataclasses.dataclass
class Result:
    """A dataclass that a model may return."""

    logits: Tensor
    hidden: Tensor


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms other statistics and weights than those of the identity; returns the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is None or "norm" not in type(module).__name__.lower() or not tensor.is_floating_point():
                    continue
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.copy_(noise + 0.5 if name in ("weight", "running_var") else noise - 0.5)
    return model
