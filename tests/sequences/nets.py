"""The networks of the sequences: each has mixing points that a masked graph corrects."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Norms(nn.Module):
    """A residual stream below layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.n, self.m, self.k = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.last, self.h = nn.RMSNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        e = self.e(x)
        return self.h(self.last(e + self.k(torch.tanh(self.m(self.n(e))))))


class Means(nn.Module):
    """A mean and a softmax over channels, and a variance."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.g, self.h = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        e = self.e(x).sigmoid()
        g = self.g(e) * e.mean(-1, keepdim=True) + e.var(-1, keepdim=True)
        return self.h(g.softmax(-1)) + g.logsumexp(-1, keepdim=True)


class Convolutions(nn.Module):
    """Batch norms, a group norm and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.g, self.c, self.h = nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.n(self.a(x.unflatten(-1, (2, 1, 2)).repeat(1, 1, 5, 2).flatten(1, 2).unflatten(1, (2, 5)))))
        return self.h(F.relu(self.c(F.silu(self.g(self.b(a))) + a)).mean((2, 3)))


class Attention(nn.Module):
    """Attention over positions that are parameters, with a tied projection."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(6, 8))
        self.q, self.k, self.v, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.n, self.up, self.h = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(self.latents), self.v(self.latents)
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(-2, -3) for t in (q.unsqueeze(1), k.unsqueeze(0), v.unsqueeze(0)))
        k, v = (t.expand(x.shape[0], -1, -1, -1) for t in (k, v))
        h = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = self.n(h.squeeze(1))
        return self.h(h + F.linear(F.gelu(self.up(h)), self.up.weight.t()))


NETS = (Norms, Means, Convolutions, Attention)


def network(number: int) -> nn.Module:
    """Return a network in double precision, with norms that have seen data."""
    torch.manual_seed(number)
    net = NETS[number % len(NETS)]().double()
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.4)
    return net.eval()
