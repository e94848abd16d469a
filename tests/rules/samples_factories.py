"""Calls of operators that make tensors."""

from __future__ import annotations

import torch

from tests.rules.sample import Sample, between, real

_DOUBLE = {"dtype": torch.float64}

SAMPLES = [
    Sample("zeros ones", (), lambda c: c.call(c.out(3, 4), **_DOUBLE)),
    Sample("full", (), lambda c: c.call(c.out(3, 4), 1.5, **_DOUBLE)),
    Sample("rand.generator randn.generator", (), lambda c: c.call(c.out(3, 4), generator=None), random=True),
    Sample("hann_window hamming_window blackman_window bartlett_window kaiser_window", (), lambda c: c.call(5)),
    Sample("rand randn", (), lambda c: c.call(c.out(3, 4)), random=True),
    Sample("randint", (), lambda c: c.call(9, c.out(3, 4)), random=True),
    Sample("randint.low", (), lambda c: c.call(2, 9, c.out(3, 4)), random=True),
    Sample("normal.float_float", (), lambda c: c.call(0.0, 1.0, c.out(3, 4)), random=True),
    Sample("empty.memory_format", (), lambda c: c.call(c.out(3, 4)), random=True),
    Sample("empty_permuted", (), lambda c: c.call(c.out(3, 4), [1, 0]), random=True),
    Sample("empty_strided", (), lambda c: c.call(c.out(3, 4), torch.empty(c.out(3, 4)).stride()), random=True),
    Sample("new_zeros new_ones", (real(2, 5),), lambda c: c.call(c[0], c.out(3, 4))),
    Sample("new_full", (real(2, 5),), lambda c: c.call(c[0], c.out(3, 4), 1.5)),
    Sample("new_empty", (real(2, 5),), lambda c: c.call(c[0], c.out(3, 4)), random=True),
    Sample(
        "new_empty_strided", (real(2, 5),), lambda c: c.call(c[0], c.out(3, 4), torch.empty(c.out(3, 4)).stride()), random=True
    ),
    Sample("zeros_like ones_like", (real(3, 4),), lambda c: c.call(c[0])),
    Sample("full_like", (real(3, 4),), lambda c: c.call(c[0], 1.5)),
    Sample("rand_like randn_like empty_like", (real(3, 4),), lambda c: c.call(c[0]), random=True),
    Sample("randint_like", (real(3, 4),), lambda c: c.call(c[0], 9), random=True),
    Sample("bernoulli", (between(0.2, 0.8, 3, 4),), lambda c: c.call(c[0]), random=True),
    Sample("bernoulli.p bernoulli_.float", (between(0.2, 0.8, 3, 4),), lambda c: c.call(c[0], 0.5), random=True),
    Sample("uniform_ normal_", (real(3, 4),), lambda c: c.call(c[0]), random=True),
    Sample("arange", (), lambda c: c.call(5)),
    Sample("arange.start", (), lambda c: c.call(2, 7)),
    Sample("arange.start_step", (), lambda c: c.call(2, 9, 3)),
    Sample("linspace logspace", (), lambda c: c.call(0.0, 1.0, 5)),
    Sample("eye", (), lambda c: c.call(4)),
    Sample("eye.m", (), lambda c: c.call(4, 5)),
    Sample("tril_indices triu_indices", (), lambda c: c.call(3, 4)),
    Sample("randperm", (), lambda c: c.call(4), random=True),
    Sample("scalar_tensor", (), lambda c: c.call(1.5)),
]
