"""Operators of other libraries, and one whose kernel takes no double precision, written once more in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _define(schema: str, size: Callable[..., Any] | None = None) -> Callable[[Callable[..., Any]], Any]:
    """Let a function be the operator of a schema; ``size`` gives the size of its results, which calling it takes long for."""

    def defined(function: Callable[..., Any]) -> Any:
        name, bracket, rest = schema.partition("(")
        op = torch.library.custom_op(f"fxprune_references::{name}", function, mutates_args=(), schema=bracket + rest)

        def shaped(input: Tensor, *args: Any) -> Any:
            assert size is not None
            empty = input.new_empty(size(input, *args))
            return empty if rest.endswith("-> Tensor") else (empty, empty.int())

        op.register_fake(shaped if size else function)
        return getattr(torch.ops.fxprune_references, name).default

    return defined


@_define("grouped_mm(Tensor self, Tensor mat2, Tensor? offs=None, Tensor? bias=None, ScalarType? out_dtype=None) -> Tensor")
def grouped_mm(self: Tensor, mat2: Tensor, offs: Any = None, bias: Any = None, out_dtype: Any = None) -> Tensor:
    """Multiply group by group; places behind the last group hold zero."""
    if offs is None:
        result = self @ mat2
    else:
        place = torch.arange(mat2.shape[1] if self.dim() == 3 else self.shape[0 if mat2.dim() == 3 else 1])
        inside = [(torch.searchsorted(offs, place, right=True) == g).to(self.dtype) for g in range(len(offs))]
        if self.dim() == mat2.dim():
            result = torch.stack([(self * flags) @ mat2 for flags in inside])
        elif self.dim() == 2:
            result = sum(flags[:, None] * (self @ matrix) for flags, matrix in zip(inside, mat2, strict=True))
        else:
            result = sum(flags * (matrix @ mat2) for flags, matrix in zip(inside, self, strict=True))
    return result if bias is None else result + bias


@_define(
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, "
    "SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt n_weight_grps, SymInt n_offset_grps, "
    "bool use_mask) -> Tensor",
    lambda x, weight, offset, *rest: (x.shape[0], weight.shape[0], *offset.shape[2:]),
)
def deform_conv2d(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, sh: int, sw: int, ph: int, pw: int, dh: int,
    dw: int, groups: int, offset_groups: int, use_mask: bool,
) -> Tensor:  # fmt: skip
    """Sample the input where each place of the kernel is moved to, and convolve."""
    (b, c, height, width), (o, _, kh, kw), (oh, ow) = input.shape, weight.shape, offset.shape[2:]
    moved = offset.view(b, offset_groups, kh * kw, 2, oh, ow)
    planes = input.view(b * offset_groups, c // offset_groups, height, width)
    columns = []
    for k in range(kh * kw):
        top = torch.arange(oh).view(-1, 1) * sh - ph + k // kw * dh + moved[:, :, k, 0]
        left = torch.arange(ow) * sw - pw + k % kw * dw + moved[:, :, k, 1]
        grid = torch.stack([(2 * left + 1) / width - 1, (2 * top + 1) / height - 1], -1).view(-1, oh, ow, 2).to(input.dtype)
        found = F.grid_sample(planes, grid, align_corners=False).view(b, offset_groups, -1, oh, ow)
        if use_mask:
            found = found * mask.view(b, offset_groups, 1, kh * kw, oh, ow)[:, :, :, k]
        columns.append(found.reshape(b, groups, c // groups, oh, ow))
    every = torch.stack(columns, 3)
    kernel = weight.view(groups, o // groups, -1, kh * kw)
    return torch.einsum("bgikhw,goik->bgohw", every, kernel).reshape(b, o, oh, ow) + bias.view(-1, 1, 1)


@_define(
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, int sampling_ratio, "
    "bool aligned) -> Tensor",
    lambda x, rois, scale, height, width, *rest: (rois.shape[0], x.shape[1], height, width),
)
def roi_align(input: Tensor, rois: Tensor, scale: float, height: int, width: int, ratio: int, aligned: bool) -> Tensor:
    """Average the sample of a region at the middle of each of its parts."""
    x0, y0, x1, y1 = (rois[:, k, None] * scale for k in range(1, 5))
    x = x0 + (x1 - x0) * (torch.arange(width) + 0.5) / width
    y = y0 + (y1 - y0) * (torch.arange(height) + 0.5) / height
    across, down = 2 * x / input.shape[3] - 1, 2 * y / input.shape[2] - 1
    grid = torch.stack([across[:, None, :].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)], -1)
    images = F.embedding(rois[:, 0].long(), input.flatten(1)).view(-1, *input.shape[1:])
    return F.grid_sample(images, grid.to(input.dtype), align_corners=False)


@_define(
    "ps_roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio) -> (Tensor, Tensor)",
    lambda x, rois, scale, height, width, *rest: (rois.shape[0], x.shape[1] // (height * width), height, width),
)
def ps_roi_align(input: Tensor, rois: Tensor, scale: float, height: int, width: int, ratio: int) -> tuple[Tensor, Tensor]:
    """Take each part of a region from channels of its own."""
    parts = roi_align(input, rois, scale, height, width, ratio, False).unflatten(1, (-1, height, width))
    result = parts.diagonal(dim1=2, dim2=4).diagonal(dim1=2, dim2=3)
    return result.contiguous(), torch.zeros(result.shape, dtype=torch.int32, device=input.device)
