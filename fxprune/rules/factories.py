"""Operators that make tensors: of one value, any of whose positions may go, or of counted or random values."""

from __future__ import annotations

from fxprune.rules.card import OpCard
from fxprune.rules.notation import Pattern
from fxprune.rules.registry import register_aten
from fxprune.rules.views import sizes_left

# ``new_zeros(x, size)`` reads nothing of operand 0 but dtype and device.
register_aten("zeros new_zeros", OpCard(Pattern("...x -> ...n", zeros="z"), sizes_left))
register_aten(
    "ones full new_ones new_full rand randn rand.generator randn.generator randint randint.low normal.float_float",
    OpCard(Pattern("...x -> ...n", zeros="n"), sizes_left),
)
register_aten(
    "empty.memory_format empty_strided new_empty new_empty_strided empty_permuted",
    OpCard(Pattern("...x -> ...n", zeros="u"), sizes_left, is_uninitialised=True),
)
register_aten("zeros_like", Pattern("...x -> ...x", zeros="z"))
register_aten(
    "ones_like full_like rand_like randn_like randint_like bernoulli bernoulli.p bernoulli_.float uniform_ normal_",
    Pattern("...x -> ...x", zeros="n"),
)
register_aten("empty_like", OpCard(Pattern("...x -> ...x", zeros="u"), is_uninitialised=True))
register_aten(
    "arange arange.start arange.start_step linspace logspace eye eye.m tril_indices triu_indices randperm scalar_tensor "
    "hann_window hamming_window blackman_window bartlett_window kaiser_window",
    Pattern("-> *n"),
)
