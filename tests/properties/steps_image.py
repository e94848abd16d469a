"""Steps of random programs on images, (batch, channels, height, width)."""

from __future__ import annotations

import math

from tests.properties.program import Builder, Value


def _large(value: Value) -> bool:
    return min(value.shape[2:]) >= 3


def _even(value: Value) -> bool:
    return all(size % 2 == 0 for size in value.shape[2:])


def convolution(b: Builder) -> None:
    x, kernel = b.pick(4), b.choice((1, 3))
    stride = b.choice((1, 1, 2)) if min(x.shape[2:]) > 3 else 1
    padding = f", padding={kernel // 2}" if kernel > 1 and (b.maybe(0.7) or not _large(x)) else ""
    text = f"nn.Conv2d({x.width}, {b.width()}, {kernel}, stride={stride}{padding}, bias={b.maybe()})"
    b.emit(f"{b.module(text, x)}({x})", x)


def same_convolution(b: Builder) -> None:
    x = b.pick(4)
    mode = b.choice(("zeros", "reflect", "circular")) if _large(x) else "zeros"
    b.emit(f"{b.module(f'nn.Conv2d({x.width}, {x.width}, 3, padding=1, padding_mode={mode!r})', x)}({x})", x)


def grouped_convolution(b: Builder) -> None:
    x = b.pick(4)
    groups = b.divisor(x.width)
    out = groups * b.choice((2, 3, x.width // groups))
    b.emit(f"{b.module(f'nn.Conv2d({x.width}, {out}, 3, padding=1, groups={groups})', x)}({x})", x)


def depthwise_convolution(b: Builder) -> None:
    x, times = b.pick(4), b.choice((1, 1, 2))
    text = f"nn.Conv2d({x.width}, {x.width * times}, 3, padding=1, groups={x.width}, bias={b.maybe()})"
    b.emit(f"{b.module(text, x)}({x})", x)


def transposed_convolution(b: Builder) -> None:
    x = b.pick(4, where=lambda v: max(v.shape[2:]) <= 4)
    groups = b.choice((1, 1, b.divisor(x.width)))
    out = groups * b.choice((2, 3)) if groups > 1 else b.width()
    b.emit(f"{b.module(f'nn.ConvTranspose2d({x.width}, {out}, 2, stride=2, groups={groups})')}({x})", x)


def batch_norm(b: Builder) -> None:
    x = b.pick(4)
    tracked = b.maybe(0.8)
    text = f"nn.BatchNorm2d({x.width}, affine={b.maybe(0.7)}, track_running_stats={tracked})"
    b.emit(f"{b.module(text, x)}({x})", x)


def batch_norm_act(b: Builder) -> None:
    x = b.pick(4)
    b.emit(f"F.silu({b.module(f'nn.BatchNorm2d({x.width})')}({x}))", x)


def group_norm(b: Builder) -> None:
    x = b.pick(4)
    groups = b.choice((1, b.divisor(x.width)))
    b.emit(f"{b.module(f'nn.GroupNorm({groups}, {x.width}, affine={b.maybe(0.7)})', x)}({x})", x)


def instance_norm(b: Builder) -> None:
    x = b.pick(4, where=_large)
    text = f"nn.InstanceNorm2d({x.width}, affine={b.maybe()}, track_running_stats={b.maybe(0.3)})"
    b.emit(f"{b.module(text, x)}({x})", x)


def layer_norm_channels_last(b: Builder) -> None:
    x = b.pick(4)
    b.emit(f"{b.module(f'nn.LayerNorm({x.width})')}({x}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", x)


def local_response_norm(b: Builder) -> None:
    x = b.pick(4)
    b.emit(f"F.local_response_norm({x}, 3)", x)


def squeeze_excite(b: Builder) -> None:
    x, hidden = b.pick(4), b.choice((3, 4, 5))
    down, up = b.module(f"nn.Conv2d({x.width}, {hidden}, 1)"), b.module(f"nn.Conv2d({hidden}, {x.width}, 1)")
    gate = b.choice(("torch.sigmoid", "F.hardsigmoid"))
    b.emit(f"{x} * {gate}({up}(torch.relu({down}({x}.mean((2, 3), keepdim=True)))))", x)


def global_response_norm(b: Builder) -> None:
    x = b.pick(4)
    gamma, beta = b.parameter(1, x.width, 1, 1), b.parameter(1, x.width, 1, 1)
    lines = [
        "{0} = " + f"torch.norm({x}, p=2, dim=(2, 3), keepdim=True)",
        "{1} = " + f"{gamma} * ({x} * ({{0}} / ({{0}}.mean(1, keepdim=True) + 1e-6))) + {beta} + {x}",
    ]
    b.emit_last(lines, 2, x)


def pixel_shuffle(b: Builder) -> None:
    x = b.pick(4, where=lambda v: v.width % 4 == 0 and v.width >= 8 and max(v.shape[2:]) <= 4)
    b.emit(f"F.pixel_shuffle({x}, 2)", x)


def pixel_unshuffle(b: Builder) -> None:
    x = b.pick(4, where=lambda v: _even(v) and v.width <= 6)
    b.emit(f"F.pixel_unshuffle({x}, 2)", x)


def space_to_depth(b: Builder) -> None:
    """Patch merging: the four places of a square one after the other."""
    x = b.pick(4, where=lambda v: _even(v) and v.width <= 6)
    parts = ", ".join(f"{x}[:, :, {i}::2, {j}::2]" for j in (0, 1) for i in (0, 1))
    b.emit(f"torch.cat([{parts}], 1)", x)


def pool(b: Builder) -> None:
    x = b.pick(4, where=lambda v: min(v.shape[2:]) >= 4)
    b.emit(f"F.{b.choice(('max_pool2d', 'avg_pool2d'))}({x}, 2)", x)


def same_pool(b: Builder) -> None:
    x = b.pick(4, where=_large)
    b.emit(f"F.{b.choice(('max_pool2d', 'avg_pool2d'))}({x}, 3, 1, 1)", x)


def adaptive_pool(b: Builder) -> None:
    x, size = b.pick(4, where=_large), b.choice((1, 2))
    b.emit(f"F.adaptive_{b.choice(('avg', 'max'))}_pool2d({x}, {size})", x)


def interpolate(b: Builder) -> None:
    x = b.pick(4, where=lambda v: max(v.shape[2:]) <= 3)
    mode = b.choice(('mode="nearest"', 'mode="bilinear", align_corners=False'))
    b.emit(f"F.interpolate({x}, scale_factor=2.0, {mode})", x)


def spatial_pad(b: Builder) -> None:
    x = b.pick(4, where=lambda v: max(v.shape[2:]) <= 4)
    b.emit(f"F.pad({x}, (1, 0, 0, 1), value={b.choice((0.0, 0.7))})", x)


def flatten(b: Builder) -> None:
    x = b.pick(4, where=lambda v: math.prod(v.shape[1:]) <= 64)
    b.emit(b.choice((f"{x}.flatten(1)", f"{x}.permute(0, 2, 3, 1).flatten(1)", f"{x}.view({x}.size(0), -1)")), x)


def spatial_mean(b: Builder) -> None:
    x = b.pick(4)
    b.emit(b.choice((f"{x}.mean((2, 3))", f"F.adaptive_avg_pool2d({x}, 1).flatten(1)", f"{x}.amax((2, 3))")), x)


def to_sequence(b: Builder) -> None:
    x = b.pick(4)
    b.emit(b.choice((f"{x}.flatten(2).transpose(1, 2)", f"{x}.permute(0, 2, 3, 1).flatten(1, 2)")), x)


def windows(b: Builder) -> None:
    """Window partition of Swin: each window of 2 x 2 places is a sequence; here laid out in one."""
    x = b.pick(4, where=_even)
    _, c, h, w = x.shape
    view = f"{x}.view(-1, {c}, {h // 2}, 2, {w // 2}, 2)"
    b.emit(f"{view}.permute(0, 2, 4, 3, 5, 1).reshape(-1, {h * w}, {c})", x)


def channel_attention(b: Builder) -> None:
    """Attention among channels, as in XCiT."""
    x = b.pick(4)
    heads = b.divisor(x.width)
    qkv = b.module(f"nn.Conv2d({x.width}, {3 * x.width}, 1)")
    lines = [
        "{0}, {1}, {2} = " + f"{qkv}({x}).reshape(-1, 3, {heads}, {x.width // heads}, {x.shape[2] * x.shape[3]}).unbind(1)",
        "{3} = (F.normalize({0}, dim=-1) @ F.normalize({1}, dim=-1).transpose(-2, -1) * 3.0).softmax(-1) @ {2}",
        "{4} = {3}." + f"reshape(-1, {x.width}, {x.shape[2]}, {x.shape[3]})",
    ]
    b.emit_last(lines, 5, x)


def selective_kernel(b: Builder) -> None:
    """Two branches weighted by a softmax over the branches, as in SKNet."""
    x, hidden = b.pick(4), b.choice((3, 4))
    one = b.module(f"nn.Conv2d({x.width}, {x.width}, 3, padding=1, groups={b.choice((1, b.divisor(x.width)))})")
    two = b.module(f"nn.Conv2d({x.width}, {x.width}, 3, padding=2, dilation=2)")
    down, up = b.module(f"nn.Conv2d({x.width}, {hidden}, 1)"), b.module(f"nn.Conv2d({hidden}, {2 * x.width}, 1)")
    lines = [
        "{0} = " + f"torch.stack([{one}({x}), {two}({x})], 1)",
        "{1} = " + f"{up}(torch.relu({down}({{0}}.sum(1).mean((2, 3), keepdim=True)))).view(-1, 2, {x.width}, 1, 1)",
        "{2} = ({0} * {1}.softmax(1)).sum(1)",
    ]
    b.emit_last(lines, 3, x)


def channel_gate(b: Builder) -> None:
    """Spatial attention of CBAM: mean and maximum over channels make one map."""
    x = b.pick(4)
    conv = b.module("nn.Conv2d(2, 1, 3, padding=1)")
    b.emit(f"{x} * torch.sigmoid({conv}(torch.cat([{x}.mean(1, keepdim=True), {x}.amax(1, keepdim=True)], 1)))", x)


def weight_norm(b: Builder) -> None:
    x = b.pick(4)
    text = f"nn.utils.parametrizations.weight_norm(nn.Conv2d({x.width}, {b.width()}, 3, padding=1))"
    b.emit(f"{b.module(text)}({x})", x)


def weight_standardised(b: Builder) -> None:
    x, out = b.pick(4), b.width()
    w = b.parameter(out, x.width, 3, 3)
    mean, var = f"{w}.mean((1, 2, 3), keepdim=True)", f"{w}.var((1, 2, 3), keepdim=True, unbiased=False)"
    b.emit(f"F.conv2d({x}, ({w} - {mean}) / torch.sqrt({var} + 1e-5), padding=1)", x)
