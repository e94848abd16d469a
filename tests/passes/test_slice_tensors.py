"""Parameters and buffers that lose positions lie in memory as before, which views and layouts of results depend on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.passes.bake import Bake
from tests.shrinking import assert_equal, assert_sizes, pruned


class ChannelsLast(nn.Module):
    """Its code views results in a way that only weights in channels_last allow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.last, self.fc = nn.Conv2d(8, 6, 1), nn.Linear(6 * 16, 4)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.depthwise(self.first(x).relu()))
        return self.fc(y.permute(0, 2, 3, 1).view(x.shape[0], -1))


class Transposed(nn.Module):
    """Its code views a parameter and a buffer of transposed memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.fc = nn.Parameter(torch.randn(6, 16).t()), nn.Linear(16, 4)
        self.register_buffer("scale", torch.rand(2, 16).t() + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scales = self.scale.t().view(2, 1, 16)  # type: ignore[operator]
        return self.fc((x @ self.weight.t()).relu() * scales)


class ThreeDimensions(nn.Module):
    """Its weights are permuted, as those that are stored with the output last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(3, 5, 8).permute(2, 1, 0))
        self.last = nn.Parameter(torch.randn(1, 8, 4).permute(2, 1, 0))

    def forward(self, x: Tensor) -> Tensor:
        first = self.first.permute(2, 1, 0).view(15, -1)
        y = torch.conv1d(x, self.first, padding=2).relu() * first.sum(0)[:, None]
        return torch.conv1d(y, self.last)


MODELS = {
    "channels_last": (ChannelsLast, torch.randn(2, 3, 4, 4)),
    "transposed": (Transposed, torch.randn(2, 6)),
    "permuted": (ThreeDimensions, torch.randn(2, 5, 7)),
}


def order(tensor: Tensor) -> list[int]:
    """Return the dimensions of a tensor as they lie in memory."""
    return sorted((dim for dim in range(tensor.dim()) if tensor.shape[dim] > 1), key=tensor.stride, reverse=True)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_dimensions_lie_in_memory_as_before(name: str, frontend: str) -> None:
    make, x = MODELS[name]
    found = pruned(make(), [x], frontend=frontend)
    assert_sizes(found)
    assert_equal(found, [x])
    assert found.small(x.double()).stride() == found.masked(x.double()).stride()
    whole = copy.deepcopy(found.masked)
    Bake()(whole)
    before = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    for tensor_name, tensor in (*found.small.named_parameters(), *found.small.named_buffers()):
        assert order(tensor) == order(before[tensor_name]), tensor_name
        assert tensor.numel() == tensor.untyped_storage().nbytes() // tensor.element_size()


def test_masks_of_torch_leave_weights_in_channels_last() -> None:
    x = torch.randn(2, 3, 4, 4)
    gm = fxprune.capture(ChannelsLast(), x, frontend="trace")
    fxprune.ln_structured(gm, "first.weight", 0.5, n=2, dim=0)
    fxprune.finalize(gm)
    assert gm.get_parameter("first.weight").is_contiguous(memory_format=torch.channels_last)
    fxprune.shrink(gm, from_zeros=True)
    assert gm.get_parameter("first.weight").is_contiguous(memory_format=torch.channels_last)
