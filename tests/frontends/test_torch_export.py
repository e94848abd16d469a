"""The export front end: graphs that hold whichever kernel torch takes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import fxprune
from tests.compare import relative_error, run


class Attention(nn.Module):
    """Attention as most models write it out: the result is laid out anew before the heads are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(heads.transpose(1, 2).contiguous().view(batch, length, width))


class Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


@functools.cache
def captured(net: Callable[[], nn.Module], training: bool, by: SDPBackend) -> tuple[nn.Module, Tensor, fx.GraphModule]:
    """Return a model, its input and its graph, which no test changes."""
    model, x = net().train(training), torch.randn(2, 5, 8)
    with sdpa_kernel(by):
        return model, x, fxprune.capture(model, x, frontend="export")


@pytest.mark.parametrize("net", [Attention, Multihead])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("captured_by", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("run_by", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_heads_are_joined_whichever_kernel_made_them(
    net: Callable[[], nn.Module], training: bool, captured_by: SDPBackend, run_by: SDPBackend
) -> None:
    model, x, gm = captured(net, training, captured_by)
    with sdpa_kernel(run_by):
        assert relative_error(run(gm, (x,)), run(model, (x,))) <= 1e-5
