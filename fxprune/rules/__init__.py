"""Op rules: how each ATen operator carries axes from its operands to its results. One file per op family."""

from __future__ import annotations

from collections.abc import Iterable

from torch._ops import OpOverload

from fxprune.errors import RuleError
from fxprune.rules import (  # noqa: F401  (each registers its rules)
    attention,
    contraction,
    convolution,
    factories,
    indexing,
    movement,
    norms,
    pooling,
    recurrent,
    reductions,
    views,
)
from fxprune.rules.call import Call, Mixing
from fxprune.rules.labels import Label, Zero
from fxprune.rules.notation import KINDS, Pattern, check_zeros, parse
from fxprune.rules.pointwise import POINTWISE
from fxprune.rules.registry import Rule, find_rule, register, registered

__all__ = ["POINTWISE", "Call", "Label", "Mixing", "Pattern", "Rule", "Zero", "find_rule", "register_rule", "registered"]


def register_rule(op: OpOverload | Iterable[OpOverload], pattern: str, *, zeros: str = "n", mixes: str = "contract") -> None:
    """Tell the analysis how axes pass through an operator of your own.

    Args:
        op: the operator, or several, such as ``torch.ops.mylib.scale.default``.
        pattern: the rule, in the notation of :mod:`fxprune.rules.notation`: operands in the order of the operator's tensor
            arguments, results in the order in which it returns them.
        zeros: what the results hold where positions were removed, such as ``"0*1+2"``; the default ``"n"`` is always safe.
        mixes: how mixing points, those in brackets, combine: "contract", "sum", "mean", "normalize", "softmax", "max",
            "min", "prod", "norm", "var" or "logsumexp".

    Raises:
        RuleError: the operator has a rule already, or the pattern cannot be read.

    Example:
        >>> fxprune.register_rule(torch.ops.mylib.gated_linear.default, "...b [i], (!g o) [i] -> ...b o", zeros="0*1")
    """
    operands, _ = parse(pattern)
    check_zeros(zeros, len(operands))
    if mixes not in KINDS:
        raise RuleError(f"mixes must be one of {', '.join(sorted(KINDS))}, not {mixes!r}")
    register(op, Pattern(pattern, zeros=zeros, mixes=mixes), by_user=True)
