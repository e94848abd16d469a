"""Convolutional networks and their groups.

In the texts, channels of a residual stream come first. A unit of a channel always owns the statistics of its batch norms.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def pooled(x: Tensor) -> Tensor:
    """Return the mean over height and width."""
    return x.mean((2, 3))


def conv_norm(width: int, out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution without bias and its batch norm, both of which keep height and width at stride 1."""
    conv = nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


class BasicBlock(nn.Module):
    def __init__(self, width: int, middle: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, middle, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = None if width == out else conv_norm(width, out, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Residual(nn.Module):
    """A residual network with two blocks, the second of which changes width and resolution; as torchvision's ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.block0 = BasicBlock(4, 5, 4, 1)
        self.block1 = BasicBlock(4, 6, 9, 2)
        self.fc = nn.Linear(9, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.block1(self.block0(torch.relu(self.bn(self.conv(x)))))))


RESIDUAL = """
4: conv.weight[0] bn.weight[0] bn.bias[0] block0.conv1.weight[1] block0.conv2.weight[0] block0.bn2.weight[0] block0.bn2.bias[0]
   block1.conv1.weight[1] block1.downsample.0.weight[1]
   bn.running_mean[0] bn.running_var[0] block0.bn2.running_mean[0] block0.bn2.running_var[0]
5: block0.conv1.weight[0] block0.bn1.weight[0] block0.bn1.bias[0] block0.conv2.weight[1]
   block0.bn1.running_mean[0] block0.bn1.running_var[0]
6: block1.conv1.weight[0] block1.bn1.weight[0] block1.bn1.bias[0] block1.conv2.weight[1]
   block1.bn1.running_mean[0] block1.bn1.running_var[0]
9: block1.conv2.weight[0] block1.bn2.weight[0] block1.bn2.bias[0]
   block1.downsample.0.weight[0] block1.downsample.1.weight[0] block1.downsample.1.bias[0] fc.weight[1]
   block1.bn2.running_mean[0] block1.bn2.running_var[0] block1.downsample.1.running_mean[0] block1.downsample.1.running_var[0]
"""


class DenseLayer(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1)


class Dense(nn.Module):
    """Two dense layers and a transition: every consumer sees the channels of all sources before it, each its own group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.layer0 = DenseLayer(5, 4)
        self.layer1 = DenseLayer(9, 6)
        self.norm = nn.BatchNorm2d(15)
        self.transition = nn.Conv2d(15, 8, 1)
        self.fc = nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.layer0(self.stem(x)))
        x = self.transition(torch.relu(self.norm(x)))
        return self.fc(pooled(F.avg_pool2d(x, 2)))


DENSE = """
5: stem.weight[0] stem.bias[0] layer0.norm.weight[0] layer0.norm.bias[0] layer0.conv.weight[1]
   layer1.norm.weight[0] layer1.norm.bias[0] layer1.conv.weight[1] norm.weight[0] norm.bias[0] transition.weight[1]
   layer0.norm.running_mean[0] layer0.norm.running_var[0] layer1.norm.running_mean[0] layer1.norm.running_var[0]
   norm.running_mean[0] norm.running_var[0]
4: layer0.conv.weight[0] layer1.norm.weight[0] layer1.norm.bias[0] layer1.conv.weight[1]
   norm.weight[0] norm.bias[0] transition.weight[1]
   layer1.norm.running_mean[0] layer1.norm.running_var[0] norm.running_mean[0] norm.running_var[0]
6: layer1.conv.weight[0] norm.weight[0] norm.bias[0] transition.weight[1] norm.running_mean[0] norm.running_var[0]
8: transition.weight[0] transition.bias[0] fc.weight[1]
"""


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Turn channels of order (group, channel) into order (channel, group)."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2).contiguous()
    return x.view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """The unit of ShuffleNetV2 at stride 1: one half of the channels passes, the other goes through a branch."""

    def __init__(self, half: int, middle: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(half, middle, 1)
        self.conv1 = nn.Conv2d(middle, middle, 3, padding=1, groups=middle)
        self.conv2 = nn.Conv2d(middle, half, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, dim=1)
        two = torch.relu(self.conv2(self.conv1(torch.relu(self.conv0(two)))))
        return channel_shuffle(torch.cat((one, two), dim=1), 2)


class ShuffleNet(nn.Module):
    """A stem, units that split and shuffle channels, and a classifier."""

    def __init__(self, *middles: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.units = nn.Sequential(*[ShuffleUnit(4, middle) for middle in middles])
        self.fc = nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.units(torch.relu(self.stem(x)))))


# The shuffle views the 4 channels that pass (the first of the stem) and the 4 of the branch as (2, 4): column i goes as one.
# Each of the 2 rows could go as well, but no other unit owns the same axes as either.
SHUFFLE = """
4: stem.weight[0] stem.bias[0] units.0.conv2.weight[0] units.0.conv2.bias[0] fc.weight[1]*2
4: stem.weight[0] stem.bias[0] units.0.conv0.weight[1]
5: units.0.conv0.weight[0] units.0.conv0.bias[0] units.0.conv1.weight[0] units.0.conv1.bias[0] units.0.conv2.weight[1]
"""

# The columns of the first shuffle lie in pairs: 0 and 1 in the half that passes the second unit, 2 and 3 in the half that
# enters its branch. In the second shuffle the pair of column i < 2 meets the outputs 2i and 2i + 1 of the branch, which have
# to go with it: one half without the other would leave no rectangle.
SHUFFLE_TWICE = """
4: stem.weight[0] stem.bias[0] units.0.conv0.weight[1]
5: units.0.conv0.weight[0] units.0.conv0.bias[0] units.0.conv1.weight[0] units.0.conv1.bias[0] units.0.conv2.weight[1]
2: stem.weight[0] stem.bias[0] units.0.conv2.weight[0] units.0.conv2.bias[0]
   units.1.conv2.weight[0]*2 units.1.conv2.bias[0]*2 fc.weight[1]*4
2: stem.weight[0] stem.bias[0] units.0.conv2.weight[0] units.0.conv2.bias[0] units.1.conv0.weight[1]*2
6: units.1.conv0.weight[0] units.1.conv0.bias[0] units.1.conv1.weight[0] units.1.conv1.bias[0] units.1.conv2.weight[1]
"""


class GroupedShuffleNet(nn.Module):
    """The unit of ShuffleNet's first version: grouped convolution, shuffle, depthwise and grouped convolution, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.conv0 = nn.Conv2d(12, 18, 1, groups=3)
        self.conv1 = nn.Conv2d(18, 18, 3, padding=1, groups=18)
        self.conv2 = nn.Conv2d(18, 12, 1, groups=3)
        self.fc = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv1(channel_shuffle(torch.relu(self.conv0(x)), 3))
        return self.fc(pooled(torch.relu(x + self.conv2(y))))


# The stream has 3 conv groups of 4 channels. conv0 gives (3 groups g, 6 channels); the shuffle makes it (6, 3), of which
# conv2 reads (3 groups h, 2 channels b, 3): so the 6 channels are (h, b). The residual ties the output of conv2's group h to
# the input of conv0's group h: g and h are one kind of unit, and channel (g, h, b) goes with group g, with group h, and with b.
# Group 0 takes (0, h, b) and (g, 0, b): 5 pairs of 9, times 2. The second dimension of conv2.weight is (b, g).
# unsure: the units of the first group own common positions, (g, h, b) belongs to groups g and h. The mathematics allows them;
# an analysis whose units have to be disjoint, or to vary along one dimension, would leave these 3 groups whole.
GROUPED_SHUFFLE = """
3: stem.weight[0]*4 stem.bias[0]*4 conv0.weight[0]*10 conv0.bias[0]*10 conv1.weight[0]*10 conv1.bias[0]*10
   conv2.weight[0]*4 conv2.weight[1]*2 conv2.bias[0]*4 fc.weight[1]*4
4: stem.weight[0]*3 stem.bias[0]*3 conv0.weight[1] conv2.weight[0]*3 conv2.bias[0]*3 fc.weight[1]*3
2: conv0.weight[0]*9 conv0.bias[0]*9 conv1.weight[0]*9 conv1.bias[0]*9 conv2.weight[1]*3
"""


class SqueezeExcite(nn.Module):
    """A convolution whose channels are scaled by a gate made from their means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(8, 5, 1)
        self.fc2 = nn.Conv2d(5, 8, 1)
        self.head = nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn(self.conv(x)))
        x = x * torch.sigmoid(self.fc2(F.relu(self.fc1(self.pool(x)))))
        return self.fc(self.pool(self.head(x)).flatten(1))


SQUEEZE_EXCITE = """
8: conv.weight[0] bn.weight[0] bn.bias[0] fc1.weight[1] fc2.weight[0] fc2.bias[0] head.weight[1]
   bn.running_mean[0] bn.running_var[0]
5: fc1.weight[0] fc1.bias[0] fc2.weight[1]
6: head.weight[0] head.bias[0] fc.weight[1]
"""


class Grouped(nn.Module):
    """A grouped convolution: 2 groups of 3 input and 5 output channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 10, 3, padding=1, groups=2)
        self.bn = nn.BatchNorm2d(10)
        self.fc = nn.Linear(10, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(torch.relu(self.bn(self.conv(self.stem(x))))))


GROUPED = """
2: stem.weight[0]*3 stem.bias[0]*3 conv.weight[0]*5 conv.bias[0]*5 bn.weight[0]*5 bn.bias[0]*5 fc.weight[1]*5
   bn.running_mean[0]*5 bn.running_var[0]*5
3: stem.weight[0]*2 stem.bias[0]*2 conv.weight[1]
5: conv.weight[0]*2 conv.bias[0]*2 bn.weight[0]*2 bn.bias[0]*2 fc.weight[1]*2 bn.running_mean[0]*2 bn.running_var[0]*2
"""


class Separable(nn.Module):
    """An inverted residual block: expansion, depthwise convolution, projection, each with its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 5, 3)
        self.expand = conv_norm(5, 8)
        self.depthwise = conv_norm(8, 8, 3, groups=8)
        self.project = conv_norm(8, 5)
        self.fc = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu6(self.depthwise(F.relu6(self.expand(x))))
        return self.fc(pooled(x + self.project(y)))


SEPARABLE = """
5: stem.0.weight[0] stem.1.weight[0] stem.1.bias[0] expand.0.weight[1]
   project.0.weight[0] project.1.weight[0] project.1.bias[0] fc.weight[1]
   stem.1.running_mean[0] stem.1.running_var[0] project.1.running_mean[0] project.1.running_var[0]
8: expand.0.weight[0] expand.1.weight[0] expand.1.bias[0]
   depthwise.0.weight[0] depthwise.1.weight[0] depthwise.1.bias[0] project.0.weight[1]
   expand.1.running_mean[0] expand.1.running_var[0] depthwise.1.running_mean[0] depthwise.1.running_var[0]
"""


class DepthMultiplier(nn.Module):
    """A depthwise convolution that makes 3 output channels of each of 5 input channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 5, 3, padding=1)
        self.depthwise = nn.Conv2d(5, 15, 3, padding=1, groups=5)
        self.fc = nn.Linear(15, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(torch.relu(self.depthwise(torch.relu(self.stem(x))))))


DEPTH_MULTIPLIER = """
5: stem.weight[0] stem.bias[0] depthwise.weight[0]*3 depthwise.bias[0]*3 fc.weight[1]*3
3: depthwise.weight[0]*5 depthwise.bias[0]*5 fc.weight[1]*5
"""


class UNet(nn.Module):
    """One step down and up: the decoder reads the skip connection and the transposed convolution, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.down0 = conv_norm(3, 4, 3)
        self.down1 = nn.Conv2d(4, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 5, 2, stride=2)
        self.merge = nn.Conv2d(9, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.down0(x))
        x = self.up(torch.relu(self.down1(F.max_pool2d(skip, 2))))
        return self.head(torch.relu(self.merge(torch.cat([skip, x], dim=1))))


UNET = """
4: down0.0.weight[0] down0.1.weight[0] down0.1.bias[0] down1.weight[1] merge.weight[1] down0.1.running_mean[0]
   down0.1.running_var[0]
8: down1.weight[0] down1.bias[0] up.weight[0]
5: up.weight[1] up.bias[0] merge.weight[1]
6: merge.weight[0] merge.bias[0] head.weight[1]
"""


class PixelShuffle(nn.Module):
    """An upsampler: of 5 * 3 * 3 channels, 3 * 3 become pixels; the last shuffle gives the image, which stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.Conv2d(8, 45, 3, padding=1)
        self.last = nn.Conv2d(5, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.shuffle(self.up(torch.relu(self.conv(x)))), 0.2)
        return F.pixel_shuffle(self.last(x), 2)


PIXEL_SHUFFLE = """
8: conv.weight[0] conv.bias[0] up.weight[1]
5: up.weight[0]*9 up.bias[0]*9 last.weight[1]
"""


class ResponseNorm(nn.Module):
    """Global response normalisation, as in ConvNeXt-V2: channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        norm = norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (x * norm) + self.beta + x


class ConvNeXt(nn.Module):
    """A block of ConvNeXt-V2 between a stem and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 2, stride=2)
        self.dwconv = nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.norm = nn.LayerNorm(5, eps=1e-6)
        self.pwconv1 = nn.Linear(5, 11)
        self.grn = ResponseNorm(11)
        self.pwconv2 = nn.Linear(11, 5)
        self.head = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(self.grn(F.gelu(self.pwconv1(y))))
        return self.head(pooled(x + y.permute(0, 3, 1, 2)))


CONVNEXT = """
5: stem.weight[0] stem.bias[0] dwconv.weight[0] dwconv.bias[0] norm.weight[0] norm.bias[0] pwconv1.weight[1]
   pwconv2.weight[0] pwconv2.bias[0] head.weight[1]
11: pwconv1.weight[0] pwconv1.bias[0] grn.gamma[3] grn.beta[3] pwconv2.weight[1]
"""
