"""Operators over places: pooling, interpolation, pixel shuffle, sampling grids. Places stay whole, channels pass."""

from __future__ import annotations

import numpy as np

from fxprune.rules.call import Call
from fxprune.rules.card import OpCard
from fxprune.rules.convolution import groups, groups_left
from fxprune.rules.notation import Pattern
from fxprune.rules.registry import register_aten, register_named


def _pooling(count: int) -> Pattern:
    """Return the rule of an operator over the last ``count`` dimensions."""
    before, after = (" ".join(f"!{name}{k}" for k in range(count)) for name in "st")

    def pattern(call: Call) -> str:
        return f"...x {before} -> " + ", ".join([f"...x {after}"] * len(call.shapes))

    doc = f"...x {' '.join(['!s'] * count)} -> ...x {' '.join(['!t'] * count)}"
    return Pattern(pattern, doc, zeros="0, n")


def _averages_its_places(call: Call) -> bool:
    """Tell whether the average of a plane of 0.7 is 0.7 everywhere: no padding counts, no other divisor is given."""
    counts_border = any(np.atleast_1d(call["padding"])) and call["count_include_pad"]
    return not counts_border and call.arguments.get("divisor_override") is None


# Averages, maxima and interpolations of zeros are zero.
for _count in (1, 2, 3):
    register_aten(
        f"max_pool{_count}d max_pool{_count}d_with_indices mkldnn_max_pool{_count}d "
        f"adaptive_avg_pool{_count}d _adaptive_avg_pool{_count}d adaptive_max_pool{_count}d "
        f"reflection_pad{_count}d replication_pad{_count}d",
        OpCard(_pooling(_count), keeps_numbers=True),
    )
    register_aten(f"avg_pool{_count}d", OpCard(_pooling(_count), keeps_numbers=_averages_its_places))
# The second result is the index of each maximum.
register_aten("fractional_max_pool2d", Pattern("...x !h !w, ...x !n -> ...x !y !x, ...x !y !x", zeros="0, n"))
register_aten("fractional_max_pool3d", Pattern("...x !d !h !w, ...x !n -> ...x !z !y !x, ...x !z !y !x", zeros="0, n"))
for _names, _count in (
    ("upsample_nearest1d _upsample_nearest_exact1d upsample_linear1d", 1),
    ("upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d upsample_bicubic2d", 2),
    ("_upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa", 2),
    ("upsample_nearest3d _upsample_nearest_exact3d upsample_trilinear3d", 3),
):
    _overloads = " ".join(f"{name} {name}.vec" for name in _names.split())
    register_aten(_overloads, OpCard(_pooling(_count), keeps_numbers=True))


def _im2col(call: Call) -> dict[str, int]:
    height, width = call["kernel_size"]
    return {"k": height * width}


_PIXEL_SHUFFLE = Pattern("...b (c !r) !h !w -> ...b c !y !x", zeros="0", sizes=lambda call: {"r": call["upscale_factor"] ** 2})
_PIXEL_UNSHUFFLE = Pattern(
    "...b c !h !w -> ...b (c !r) !y !x", zeros="0", sizes=lambda call: {"r": call["downscale_factor"] ** 2}
)
_CHANNEL_SHUFFLE = Pattern("b (g c) ...s -> b (c g) ...s", zeros="0", sizes=groups)

register_aten("pixel_shuffle", OpCard(_PIXEL_SHUFFLE, keeps_numbers=True))
register_aten("pixel_unshuffle", OpCard(_PIXEL_UNSHUFFLE, keeps_numbers=True))
register_aten("channel_shuffle native_channel_shuffle", OpCard(_CHANNEL_SHUFFLE, groups_left, keeps_numbers=True))
register_aten("im2col", Pattern("...b c !h !w -> ...b (c !k) !l", zeros="0", sizes=_im2col))
register_aten("col2im", Pattern("...b (c !k) !l -> ...b c !h !w", zeros="0", sizes=_im2col))
register_aten("grid_sampler grid_sampler_2d grid_sampler_3d", Pattern("b c *s, b ...t !d -> b c ...t", zeros="0"))
register_aten("affine_grid_generator", Pattern("b *s -> b *t", zeros="0"))
# Regions of images; a region says from which sample of the batch it is.
register_named("torchvision::roi_align", Pattern("!b c *s, r !f -> r c !h !w", zeros="0"))
register_named("torchvision::roi_pool", Pattern("!b c *s, r !f -> r c !h !w, r c !h !w", zeros="0, n"))
register_named(
    "torchvision::ps_roi_align torchvision::ps_roi_pool",
    Pattern("!b (c !h !w) *s, r !f -> r c !h !w, r c !h !w", zeros="0, n"),
)
register_named("torchvision::nms", Pattern("!n !f, !n -> !k"))
