"""Calls of operators that combine positions along dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.rules.sample import Context, Reference, Run, Sample, between, complex_, flags, integers, real

_X = real(3, 4, 5)


def weights(keep: Sequence[Tensor], dims: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return a tensor that is one at the positions kept along some dimensions, and zero elsewhere."""
    product = torch.ones([1] * len(shape), dtype=torch.float64)
    for d in dims:
        product = product * keep[d].reshape([-1 if k == d else 1 for k in range(len(shape))])
    return product.expand(list(shape))


def moments(x: Tensor, keep: Sequence[Tensor], dims: Sequence[int], correction: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return mean and variance over the kept positions, the reduced dimensions of size one."""
    w = weights(keep, dims, x.shape)
    count = w.sum(list(dims), keepdim=True)
    mean = (x * w).sum(list(dims), keepdim=True) / count
    return mean, ((x - mean) ** 2 * w).sum(list(dims), keepdim=True) / (count - correction)


def _spread(dims: Sequence[int], *, correction: float = 1.0, keepdim: bool = False) -> Reference:
    """Return what makes the variance, standard deviation or pairs of them, with the mean, over kept positions."""

    def reference(c: Context, keep: list[list[Tensor]]) -> list[Tensor]:
        mean, var = moments(c[0], keep[0], dims, correction)
        if not keepdim:
            mean, var = mean.squeeze(list(dims)), var.squeeze(list(dims))
        first = var.sqrt() if "std" in str(c.op) else var
        return [first, mean] if "mean" in str(c.op) else [first]

    return reference


def _of_order(order: float) -> Run:
    return lambda c: c.call(c[0], order, [1])


_SPREAD_ALL = "var std var_mean std_mean"
_SPREAD_DIM = "var.dim std.dim"
_SPREAD_CORRECTION = "var.correction std.correction var_mean.correction std_mean.correction"

SAMPLES = [
    Sample("sum nansum mean prod max min any all count_nonzero norm.Scalar median", (_X,), lambda c: c.call(c[0])),
    Sample("linalg_vector_norm", (_X,), lambda c: c.call(c[0])),
    Sample("sum.dim_IntList nansum mean.dim", (_X,), lambda c: c.call(c[0], [1])),
    Sample("sum.dim_IntList nansum mean.dim amax amin", (_X,), lambda c: c.call(c[0], [0, -1], True)),
    Sample("sum.dim_IntList mean.dim", (_X,), lambda c: c.call(c[0], None)),
    Sample("amax amin", (_X,), lambda c: c.call(c[0])),
    Sample("prod.dim_int max.dim min.dim any.dim all.dim", (_X,), lambda c: c.call(c[0], 1)),
    Sample("prod.dim_int max.dim min.dim any.dim all.dim", (_X,), lambda c: c.call(c[0], -1, True)),
    Sample("any.dims all.dims", (flags(3, 4, 5),), lambda c: c.call(c[0], [0, 2])),
    Sample("count_nonzero.dim_IntList", (integers(3, 3, 4, 5),), lambda c: c.call(c[0], [1])),
    Sample("aminmax", (_X,), lambda c: c.call(c[0], dim=1)),
    Sample("aminmax", (_X,), lambda c: c.call(c[0])),
    Sample(_SPREAD_ALL, (_X,), lambda c: c.call(c[0]), _spread([0, 1, 2])),
    Sample(_SPREAD_ALL, (_X,), lambda c: c.call(c[0], False), _spread([0, 1, 2], correction=0)),
    Sample(_SPREAD_DIM, (_X,), lambda c: c.call(c[0], [1]), _spread([1])),
    Sample(_SPREAD_DIM, (_X,), lambda c: c.call(c[0], [0, 2], False, True), _spread([0, 2], correction=0, keepdim=True)),
    Sample(_SPREAD_CORRECTION, (_X,), lambda c: c.call(c[0], [1], correction=0), _spread([1], correction=0)),
    Sample(_SPREAD_CORRECTION, (_X,), lambda c: c.call(c[0], None, correction=0.5), _spread([0, 1, 2], correction=0.5)),
    Sample("logsumexp", (_X,), lambda c: c.call(c[0], [1])),
    Sample("logsumexp", (_X,), lambda c: c.call(c[0], [0, 1], True)),
    Sample("norm.Scalar", (_X,), lambda c: c.call(c[0], 1)),
    Sample("norm.ScalarOpt_dim", (_X,), lambda c: c.call(c[0], 2, [1], True)),
    Sample("norm.ScalarOpt_dim", (_X,), lambda c: c.call(c[0], None, [1])),
    Sample("norm.ScalarOpt_dim_dtype", (_X,), lambda c: c.call(c[0], 3, [0, 1], False, dtype=torch.float64)),
    *[Sample("linalg_vector_norm", (_X,), _of_order(p), note=f"order {p}") for p in (1, 2, 3.5, 0, torch.inf, -torch.inf, -1)],
    Sample("norm.ScalarOpt_dim", (_X,), lambda c: c.call(c[0], -torch.inf, [1]), note="order -inf"),
    Sample("argmax argmin", (_X,), lambda c: c.call(c[0])),
    Sample("argmax argmin median.dim mode nanmedian.dim", (_X,), lambda c: c.call(c[0], 1)),
    Sample("argmax argmin median.dim mode nanmedian.dim", (_X,), lambda c: c.call(c[0], 2, True)),
    Sample("kthvalue topk", (_X,), lambda c: c.call(c[0], 2, 1)),
    Sample("softmax.int _safe_softmax log_softmax.int", (_X,), lambda c: c.call(c[0], 1)),
    Sample("_softmax _log_softmax", (_X,), lambda c: c.call(c[0], -1, False)),
    Sample("glu", (real(3, 6, 5),), lambda c: c.call(c[0], 1)),
    Sample("cosine_similarity", (_X, _X), lambda c: c.call(c[0], c[1])),
    Sample("cosine_similarity", (_X, _X), lambda c: c.call(c[0], c[1], -1)),
    Sample("cdist", (real(2, 3, 5), real(2, 4, 5)), lambda c: c.call(c[0], c[1])),
    Sample("_cdist_forward", (real(2, 3, 5), real(2, 4, 5)), lambda c: c.call(c[0], c[1], 2.0, None)),
    Sample("logsumexp", (between(0.5, 1, 3),), lambda c: c.call(c[0], [0])),
    Sample("_fft_c2c", (complex_(3, 4, 5),), lambda c: c.call(c[0], [1], 0, True)),
    Sample("_fft_r2c", (_X,), lambda c: c.call(c[0], [0, 2], 0, True)),
    Sample("_fft_c2r", (complex_(3, 4),), lambda c: c.call(c[0], [1], 0, 6)),
    Sample("cov corrcoef", (real(5, 6),), lambda c: c.call(c[0])),
    Sample("cov corrcoef", (real(5),), lambda c: c.call(c[0])),
    Sample(
        "cov",
        (real(5, 6), integers(4, 6, low=1), between(0.5, 1, 6)),
        lambda c: c.call(c[0], correction=0, fweights=c[1], aweights=c[2]),
    ),
]
