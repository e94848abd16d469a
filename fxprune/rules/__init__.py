"""Op rules: how each ATen operator carries axes from its operands to its results. One file per op family."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fxprune.errors import RuleError
from fxprune.rules import (  # noqa: F401  (each registers its rules)
    attention,
    contraction,
    convolution,
    factories,
    indexing,
    joining,
    movement,
    norms,
    pooling,
    recurrent,
    reductions,
    views,
)
from fxprune.rules.call import Call, Mixing
from fxprune.rules.card import OpCard, OverKept, Places, PositionsLeft, Rule, SizeArguments, Work
from fxprune.rules.labels import Label, Zero
from fxprune.rules.notation import KINDS, Pattern, check_zeros, parse
from fxprune.rules.pointwise import POINTWISE, find_rule
from fxprune.rules.registry import register, registered
from fxprune.torch_internals.operators import OpOverload

__all__ = [
    "POINTWISE",
    "Call",
    "Label",
    "Mixing",
    "OpCard",
    "OverKept",
    "Pattern",
    "Places",
    "PositionsLeft",
    "Rule",
    "Work",
    "Zero",
    "find_rule",
    "register_rule",
    "registered",
]


def register_rule(
    op: OpOverload | Iterable[OpOverload],
    pattern: str,
    *,
    zeros: str = "n",
    mixes: str = "contract",
    mixed_zeros: str | None = None,
    sizes: Callable[[Call], dict[str, int]] | None = None,
    size_arguments: SizeArguments | None = None,
    over_kept: OverKept | None = None,
    work: Callable[[Call], list[Work]] | None = None,
    keeps_numbers: bool | Callable[[Call], bool] = False,
    as_a_whole: bool = False,
    places: Places | None = None,
    batch_norm_scale: int | None = None,
    is_uninitialised: bool = False,
) -> None:
    """Tell the analysis how axes pass through an operator of your own.

    Args:
        op: the operator, or several, such as ``torch.ops.mylib.scale.default``.
        pattern: the rule, in the notation of :mod:`fxprune.rules.notation`: operands in the order of the operator's tensor
            arguments, results in the order in which it returns them.
        zeros: the values of results where positions were removed, such as ``"0*1+2"``; the default ``"n"`` is always safe.
        mixes: how mixing points, the names in brackets, combine: "contract", "sum", "mean", "normalize", "softmax", "max",
            "min", "prod", "norm", "var" or "logsumexp".
        mixed_zeros: as ``zeros``, for mixing points that the result keeps; ``zeros`` itself by default.
        sizes: gives, from a call, the sizes of names that shapes alone do not tell, as in ``(g c)``.
        size_arguments: gives the arguments that name sizes, such as a number of groups, for the smaller call, by name. This
            and the other options are fields of :class:`fxprune.rules.OpCard`.
        over_kept: the operator's function over kept positions; "normalize" and "var" cannot be pruned along without it.
        work: gives the floating-point operations of a call; none by default.
        keeps_numbers: whether a plane that is one number throughout gives a plane of the same number.
        as_a_whole: whether ``zeros`` holds only where all tensors of a unit are zero.
        places: which operands are input, weight and bias of a layer, whose bias can then take in constant channels.
        batch_norm_scale: which operand is the scale of a batch norm, which :class:`fxprune.BatchNormScale` scores by.
        is_uninitialised: whether results are uninitialised memory.

    Raises:
        RuleError: the operator has a rule already, or the pattern cannot be read.

    Example:
        >>> fxprune.register_rule(torch.ops.mylib.gated_linear.default, "...b [i], (!g o) [i] -> ...b o", zeros="0*1")

        A normalisation ``standardise(x, weight, groups)`` of channels by groups:

        >>> fxprune.register_rule(
        ...     torch.ops.mylib.standardise.default,
        ...     "b (g [c]), (g [c]) -> b (g [c])",
        ...     zeros="0*1",
        ...     mixed_zeros="n*1",
        ...     mixes="normalize",
        ...     sizes=lambda call: {"g": call["groups"]},
        ...     size_arguments=lambda call, results, left: {"groups": left.size(call.axes["g"])},
        ...     over_kept=OverKept(standardise_kept, ("x", "weight"), ("groups",)),
        ...     work=lambda call: [Work.of_products(call.axes.values())],
        ... )
    """
    operands, _ = parse(pattern)
    for text in (zeros, zeros if mixed_zeros is None else mixed_zeros):
        check_zeros(text, len(operands))
    if mixes not in KINDS:
        raise RuleError(f"mixes must be one of {', '.join(sorted(KINDS))}, not {mixes!r}")
    rule = Pattern(pattern, zeros=zeros, mixed_zeros=mixed_zeros, mixes=mixes, sizes=sizes)
    card = OpCard(rule, size_arguments, over_kept, work, keeps_numbers, as_a_whole, places, batch_norm_scale, is_uninitialised)
    register(op, card, by_user=True)
