"""Operators that make tensors: of one value, any of whose positions may go, or of counted or random values."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.rules.call import Call
from fxprune.rules.card import OpCard
from fxprune.rules.labels import Label, Zero
from fxprune.rules.notation import Pattern
from fxprune.rules.registry import overloads, register
from fxprune.rules.views import sizes_left


@dataclass(frozen=True)
class Factory:
    """A new tensor whose elements are all alike, so that any of its positions may go."""

    notation: str
    zero: Zero

    def apply(self, call: Call) -> list[Label]:
        """Return a label with units of its own."""
        return [Label(tuple(call.units.fresh(size) for size in shape), (self.zero,) * len(shape)) for shape in call.shapes]


def _counted(call: Call) -> str:
    return "-> " + ", ".join("*n" for _ in call.shapes)


register(overloads("zeros new_zeros"), OpCard(Factory("-> n", Zero.ZERO), sizes_left))
register(
    overloads("ones full new_ones new_full rand randn rand.generator randn.generator randint randint.low normal.float_float"),
    OpCard(Factory("-> n", Zero.FINITE), sizes_left),
)
register(
    overloads("empty.memory_format empty_strided new_empty new_empty_strided empty_permuted"),
    OpCard(Factory("-> n", Zero.UNKNOWN), sizes_left, is_uninitialised=True),
)
register(overloads("zeros_like"), Pattern("...x -> ...x", zeros="z"))
register(
    overloads("ones_like full_like rand_like randn_like randint_like bernoulli bernoulli.p bernoulli_.float uniform_ normal_"),
    Pattern("...x -> ...x", zeros="n"),
)
register(overloads("empty_like"), OpCard(Pattern("...x -> ...x", zeros="u"), is_uninitialised=True))
register(
    overloads(
        "arange arange.start arange.start_step linspace logspace eye eye.m tril_indices triu_indices randperm scalar_tensor "
        "hann_window hamming_window blackman_window bartlett_window kaiser_window"
    ),
    Pattern(_counted, "-> *n"),
)
