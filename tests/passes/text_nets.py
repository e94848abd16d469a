"""Small networks whose graphs are short enough to read."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Norms(nn.Module):
    """Layer norm and RMS norm over what can go, and a mean of it."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 8)
        self.norm = nn.LayerNorm(8)
        self.rms = nn.RMSNorm(8, eps=1e-6)
        self.down = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rms(torch.sigmoid(self.norm(self.up(x))))
        return self.down(x) + x.mean(-1, keepdim=True)


class Pools(nn.Module):
    """Softmax, maximum, variance and sum over what can go."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 8)
        self.down = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        spread = x.var(-1, keepdim=True) + x.amax(-1, keepdim=True)
        return self.down(x.softmax(-1)) + spread + torch.sigmoid(x).sum(-1, keepdim=True)


class Groups(nn.Module):
    """A group norm between a convolution and a grouped one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.second = nn.Conv2d(8, 8, 1, groups=2)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.fc(self.second(x).mean((2, 3)))


class Heads(nn.Module):
    """Attention whose code reads sizes: reshape, chunk, a scale, the batch merged with the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 36)
        self.out = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        width = q.shape[-1]
        q, k, v = (t.reshape(b, n, 3, width // 3).transpose(1, 2).reshape(b * 3, n, width // 3) for t in (q, k, v))
        weights = (q @ k.transpose(1, 2) * (width // 3) ** -0.5).softmax(-1)
        mixed = (weights @ v).view(b, 3, n, width // 3).transpose(1, 2)
        return self.out(mixed.reshape(b, n, width))


class Places(nn.Module):
    """Slices, a roll, an index table, a step, padding."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 8)
        self.down = nn.Linear(8, 2)
        self.tail = nn.Linear(4, 2)
        self.even = nn.Linear(4, 2)
        self.wide = nn.Linear(10, 2)
        self.register_buffer("order", torch.tensor([4, 5, 6, 7, 0, 1, 2, 3]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        y = x + x.roll(4, -1) + x[:, self.order]
        z = self.down(y) + self.tail(x[:, 4:]) + self.even(x[:, ::2])
        return z + self.wide(F.pad(x, (0, 2))) + x.new_zeros(x.shape[0], 2)


class Makers(nn.Module):
    """Repeats, expansions and new tensors of sizes that can go."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.down = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        first = self.token.expand(x.shape[0], -1, x.shape[2])
        x = torch.cat([first, x, x.new_zeros(x.shape[0], 1, 8)], 1)
        return self.down(x.repeat(1, 1, 2))


class Parts(nn.Module):
    """Splits of unequal halves, and a channel shuffle between grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.left = nn.Conv2d(4, 4, 1, groups=4)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.conv(x).split(4, dim=1)
        x = torch.cat([self.left(left), right], 1)
        x = x.view(x.size(0), 2, 4, x.size(2), x.size(3)).transpose(1, 2).reshape(x.size(0), 8, x.size(2), x.size(3))
        return self.fc(x.mean((2, 3)))


class Uneven(nn.Module):
    """Every third position, of which other ones are left than a slice can say."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 8)
        self.down = nn.Linear(8, 2)
        self.third = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.down(x) + self.third(x[:, ::3])
