"""Operators over places: pooling, interpolation, pixel shuffle, sampling grids. Places stay whole, channels pass."""

from __future__ import annotations

from collections.abc import Callable

from fxprune.rules.call import Call
from fxprune.rules.notation import Pattern
from fxprune.rules.registry import overloads, register


def _places(count: int) -> Callable[[Call], str]:
    """Return what makes the pattern of an operator over the last ``count`` dimensions."""
    before = " ".join(f"!s{k}" for k in range(count))
    after = " ".join(f"!t{k}" for k in range(count))

    def pattern(call: Call) -> str:
        return f"...x {before} -> " + ", ".join([f"...x {after}"] * len(call.shapes))

    return pattern


def _pooling(count: int) -> Pattern:
    places = " ".join(["!s"] * count)
    return Pattern(_places(count), f"...x {places} -> ...x {places.replace('s', 't')}", zeros="0, n")


# Averages, maxima and interpolations of zeros are zero.
for _count in (1, 2, 3):
    register(
        overloads(
            f"avg_pool{_count}d max_pool{_count}d max_pool{_count}d_with_indices mkldnn_max_pool{_count}d "
            f"adaptive_avg_pool{_count}d _adaptive_avg_pool{_count}d adaptive_max_pool{_count}d "
            f"reflection_pad{_count}d replication_pad{_count}d"
        ),
        _pooling(_count),
    )
# The second result says where each maximum was.
register(overloads("fractional_max_pool2d"), Pattern("...x !h !w, ...x !n -> ...x !y !x, ...x !y !x", zeros="0, n"))
register(overloads("fractional_max_pool3d"), Pattern("...x !d !h !w, ...x !n -> ...x !z !y !x, ...x !z !y !x", zeros="0, n"))
register(
    overloads(
        "upsample_nearest1d upsample_nearest1d.vec _upsample_nearest_exact1d _upsample_nearest_exact1d.vec upsample_linear1d "
        "upsample_linear1d.vec"
    ),
    _pooling(1),
)
register(
    overloads(
        "upsample_nearest2d upsample_nearest2d.vec _upsample_nearest_exact2d _upsample_nearest_exact2d.vec upsample_bilinear2d "
        "upsample_bilinear2d.vec upsample_bicubic2d upsample_bicubic2d.vec _upsample_bilinear2d_aa _upsample_bilinear2d_aa.vec "
        "_upsample_bicubic2d_aa _upsample_bicubic2d_aa.vec _upsample_lanczos2d_aa _upsample_lanczos2d_aa.vec"
    ),
    _pooling(2),
)
register(
    overloads(
        "upsample_nearest3d upsample_nearest3d.vec _upsample_nearest_exact3d _upsample_nearest_exact3d.vec "
        "upsample_trilinear3d upsample_trilinear3d.vec"
    ),
    _pooling(3),
)


def _square(argument: str) -> Callable[[Call], dict[str, int]]:
    return lambda call: {"r": call[argument] ** 2}


def _im2col(call: Call) -> dict[str, int]:
    height, width = call["kernel_size"]
    return {"k": height * width}


register(
    overloads("pixel_shuffle"),
    Pattern("...b (c !r) !h !w -> ...b c !y !x", zeros="0", sizes=_square("upscale_factor")),
)
register(
    overloads("pixel_unshuffle"),
    Pattern("...b c !h !w -> ...b (c !r) !y !x", zeros="0", sizes=_square("downscale_factor")),
)
register(
    overloads("channel_shuffle native_channel_shuffle"),
    Pattern("b (g c) ...s -> b (c g) ...s", zeros="0", sizes=lambda call: {"g": call["groups"]}),
)
register(overloads("im2col"), Pattern("...b c !h !w -> ...b (c !k) !l", zeros="0", sizes=_im2col))
register(overloads("col2im"), Pattern("...b (c !k) !l -> ...b c !h !w", zeros="0", sizes=_im2col))
register(overloads("grid_sampler grid_sampler_2d grid_sampler_3d"), Pattern("b c *s, b ...t !d -> b c ...t", zeros="0"))
register(overloads("affine_grid_generator"), Pattern("b *s -> b *t", zeros="0"))
