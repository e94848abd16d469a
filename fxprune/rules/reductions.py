"""Operators that combine positions along dimensions: sums, means, extrema, norms, softmax."""

from __future__ import annotations

import functools
import math
from typing import Any

from fxprune.errors import RuleError
from fxprune.functional.over_kept import var_mean_of_kept, var_of_kept
from fxprune.rules.call import Call
from fxprune.rules.card import OpCard, OverKept, PositionsLeft
from fxprune.rules.contraction import inner_products
from fxprune.rules.labels import Label
from fxprune.rules.notation import Pattern
from fxprune.rules.parsing import along
from fxprune.rules.registry import op_card, register_aten


def _norm(call: Call) -> str:
    """Return the pattern of a norm; a norm of negative order grows from its smallest elements, so zeros are not neutral."""
    order = call.arguments.get("ord", call.arguments.get("p"))
    return along("[x{}]" if order is None or order >= 0 else "!x{}", "1")(call)


def reduction(kind: str, zeros: str = "0") -> Pattern:
    """Return the rule of a reduction over dimensions that may shrink."""
    return Pattern(along("[x{}]", "1"), "x [n] -> x", zeros=zeros, mixes=kind)


def _covariances(call: Call) -> str:
    """Return the pattern of what the rows of a matrix have in common, over all columns; a single row gives one number."""
    row, result = ("x", "x x") if len(call.operand(0)) == 2 else ("", "")
    return f"{', '.join([f'{row} !n', *['!n'] * (len(call.operands) - 1)])} -> {result}"


def _rows_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    if len(results[0]) and left.size(results[0].axes[0]) == 1:
        raise RuleError("gives a number, and no matrix, for the single row that would be left")
    return {}


def _correction(call: Call) -> float:
    given = call.arguments.get("correction", 1 if call.arguments.get("unbiased", True) else 0)
    return 1.0 if given is None else float(given)


def degrees_lost(call: Call) -> int:
    """Return the correction of a call of ``var``, ``std``, ``var_mean`` or ``std_mean``; 0 for other operators.

    So few numbers have no variance: with a correction of 1 a single number divides by zero.
    """
    return math.floor(_correction(call)) if op_card(call.op).rule is _VARIANCE else 0


def _moments(call: Call, root: bool) -> dict[str, Any]:
    keepdim = bool(call.arguments.get("keepdim", False))
    return {"dims": call.dims(), "correction": _correction(call), "keepdim": keepdim, "root": root}


register_aten("sum sum.dim_IntList nansum any any.dim any.dims count_nonzero count_nonzero.dim_IntList", reduction("sum"))
register_aten("mean", reduction("mean"))
register_aten("mean.dim", OpCard(reduction("mean"), keeps_numbers=True))
_VARIANCE = reduction("var")
for _names, _function, _root in (
    ("var var.dim var.correction", var_of_kept, False),
    ("std std.dim std.correction", var_of_kept, True),
    ("var_mean var_mean.correction", var_mean_of_kept, False),
    ("std_mean std_mean.correction", var_mean_of_kept, True),
):
    _form = OverKept(_function, ("self",), functools.partial(_moments, root=_root))
    register_aten(_names, OpCard(_VARIANCE, over_kept=_form))
register_aten("amax", OpCard(reduction("max"), keeps_numbers=True))
register_aten("max", reduction("max"))
register_aten("amin", OpCard(reduction("min"), keeps_numbers=True))
register_aten("min", reduction("min"))
# The second result is the position, a number that counts the positions before it.
register_aten("max.dim min.dim", Pattern(along("!x{}", "1"), "x !n -> x, x", zeros="0, n"))
register_aten("aminmax", Pattern(along("!x{}", "1"), "x !n -> x, x", zeros="0"))
register_aten("prod prod.dim_int all all.dim all.dims", reduction("prod"))
register_aten("logsumexp", reduction("logsumexp", zeros="n"))
register_aten(
    "norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype linalg_vector_norm",
    Pattern(_norm, "x [n] -> x", zeros="0", mixes="norm"),
)
register_aten("argmax argmin", Pattern(along("!x{}", "1"), "x !n -> x", zeros="n"))
register_aten("median.dim mode kthvalue nanmedian.dim median", Pattern(along("!x{}", "1"), "x !n -> x, x", zeros="0, n"))
# The correction fills removed positions with minus infinity, so that their softmax is zero ...
register_aten(
    "softmax.int _softmax _safe_softmax",
    Pattern(along("[x{}]", "[x{}]"), "x [n] -> x [n]", zeros="n", mixed_zeros="z", mixes="softmax"),
)
register_aten(
    "log_softmax.int _log_softmax",
    # ... and their log-softmax minus infinity.
    Pattern(along("[x{}]", "[x{}]"), "x [n] -> x [n]", zeros="n", mixed_zeros="u", mixes="softmax"),
)
register_aten("glu", Pattern(along("(!h x{})", "x{}"), "(!h x) -> x", zeros="0", sizes=lambda call: {"h": 2}))
register_aten("_fft_c2c _fft_r2c _fft_c2r", Pattern(along("!n{}", "!m{}"), "x !n -> x !m", zeros="0"))
register_aten("topk", Pattern(along("!n", "!t"), "x !n -> x !k, x !k", zeros="0, n"))
# Rows that are zero have no correlations.
register_aten("cov", OpCard(Pattern(_covariances, "x !n, !n, !n -> x x", zeros="0"), _rows_left))
register_aten("corrcoef", OpCard(Pattern(_covariances, "x !n -> x x", zeros="u"), _rows_left))
register_aten("cdist _cdist_forward", Pattern("...b p [m], ...b r [m] -> ...b p r", zeros="0+1", mixes="norm"))
register_aten("cosine_similarity", Pattern(inner_products, "x [c], x [c] -> x", zeros="0*1", mixes="norm"))
