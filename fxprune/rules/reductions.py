"""Operators that combine positions along dimensions: sums, means, extrema, norms, softmax."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from fxprune.functional.over_kept import var_mean_of_kept, var_of_kept
from fxprune.rules.call import Call
from fxprune.rules.card import OpCard, OverKept
from fxprune.rules.notation import Pattern
from fxprune.rules.parsing import broadcasting, marked
from fxprune.rules.registry import op_card, overloads, register


def _dims(call: Call) -> list[int]:
    """Return the dimensions that a call works along."""
    return call.dims() if "dim" in call.arguments else list(range(len(call.operand(0))))


def _reduced(token: str) -> Callable[[Call], str]:
    def pattern(call: Call) -> str:
        rank, dims = len(call.operand(0)), _dims(call)
        kept = [name for k, name in enumerate(marked(rank, dims, "1")) if rank == len(call.shapes[0]) or k not in dims]
        return f"{' '.join(marked(rank, dims, token))} -> " + ", ".join([" ".join(kept)] * len(call.shapes))

    return pattern


def _along(token: str) -> Callable[[Call], str]:
    def pattern(call: Call) -> str:
        names = " ".join(marked(len(call.operand(0)), _dims(call), token))
        return f"{names} -> {names}"

    return pattern


def _norm(call: Call) -> str:
    """Return the pattern of a norm; a norm of negative order grows from its smallest elements, so zeros are not neutral."""
    order = call.arguments.get("ord", call.arguments.get("p"))
    return _reduced("[x{}]" if order is None or order >= 0 else "!x{}")(call)


def reduction(kind: str, zeros: str = "0") -> Pattern:
    """Return the rule of a reduction over dimensions that may shrink."""
    return Pattern(_reduced("[x{}]"), "x [n] -> x", zeros=zeros, mixes=kind)


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
    return {"dims": _dims(call), "correction": _correction(call), "keepdim": keepdim, "root": root}


register(overloads("sum sum.dim_IntList nansum"), reduction("sum"))
register(overloads("mean"), reduction("mean"))
register(overloads("mean.dim"), OpCard(reduction("mean"), keeps_numbers=True))
_VARIANCE = reduction("var")
for _names, _function, _root in (
    ("var var.dim var.correction", var_of_kept, False),
    ("std std.dim std.correction", var_of_kept, True),
    ("var_mean var_mean.correction", var_mean_of_kept, False),
    ("std_mean std_mean.correction", var_mean_of_kept, True),
):
    _form = OverKept(_function, ("self",), functools.partial(_moments, root=_root))
    register(overloads(_names), OpCard(_VARIANCE, over_kept=_form))
register(overloads("amax"), OpCard(reduction("max"), keeps_numbers=True))
register(overloads("max"), reduction("max"))
register(overloads("amin"), OpCard(reduction("min"), keeps_numbers=True))
register(overloads("min"), reduction("min"))
# The second result is the position, a number that counts the positions before it.
register(overloads("max.dim min.dim"), Pattern(_reduced("!x{}"), "x !n -> x, x", zeros="0, n"))
register(overloads("aminmax"), Pattern(_reduced("!x{}"), "x !n -> x, x", zeros="0"))
register(overloads("prod prod.dim_int"), reduction("prod"))
register(overloads("logsumexp"), reduction("logsumexp", zeros="n"))
register(
    overloads("norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype linalg_vector_norm"),
    Pattern(_norm, "x [n] -> x", zeros="0", mixes="norm"),
)
register(overloads("any any.dim any.dims count_nonzero count_nonzero.dim_IntList"), reduction("sum"))
register(overloads("all all.dim all.dims"), reduction("prod"))
register(overloads("argmax argmin"), Pattern(_reduced("!x{}"), "x !n -> x", zeros="n"))
register(overloads("median.dim mode kthvalue nanmedian.dim median"), Pattern(_reduced("!x{}"), "x !n -> x, x", zeros="0, n"))
# The correction fills removed positions with minus infinity, so that their softmax is zero ...
register(
    overloads("softmax.int _softmax _safe_softmax"),
    Pattern(_along("[x{}]"), "x [n] -> x [n]", zeros="n", mixed_zeros="z", mixes="softmax"),
)
register(
    overloads("log_softmax.int _log_softmax"),
    # ... and their log-softmax minus infinity.
    Pattern(_along("[x{}]"), "x [n] -> x [n]", zeros="n", mixed_zeros="u", mixes="softmax"),
)


def _glu(call: Call) -> str:
    d = call.dim()
    rank = len(call.operand(0))
    return f"{' '.join(marked(rank, [d], '(!h x{})'))} -> {' '.join(marked(rank, [], ''))}"


def _transformed(call: Call) -> str:
    """Return the pattern of a Fourier transform: every position along the transformed dimensions counts."""
    dims = [d % len(call.operand(0)) for d in call["dim"]]
    before, after = (marked(len(call.operand(0)), dims, token) for token in ("!n{}", "!m{}"))
    return f"{' '.join(before)} -> {' '.join(after)}"


def _top(call: Call) -> str:
    before, after = (marked(len(call.operand(0)), [call.dim()], token) for token in ("!n", "!t"))
    return f"{' '.join(before)} -> {', '.join([' '.join(after)] * len(call.shapes))}"


def _cosine(call: Call) -> str:
    rank = max(len(call.operand(0)), len(call.operand(1)))
    d = call["dim"] % rank
    names = marked(rank, [d], "[x{}]")
    x, y = (broadcasting(names, call.operand(i).shape) for i in range(2))
    return f"{x}, {y} -> {broadcasting([*names[:d], *names[d + 1 :]], call.shapes[0])}"


register(overloads("glu"), Pattern(_glu, "(!h x) -> x", zeros="0", sizes=lambda call: {"h": 2}))
register(overloads("_fft_c2c _fft_r2c _fft_c2r"), Pattern(_transformed, "x !n -> x !m", zeros="0"))
register(overloads("topk"), Pattern(_top, "x !n -> x !k, x !k", zeros="0, n"))
register(overloads("cdist _cdist_forward"), Pattern("...b p [m], ...b r [m] -> ...b p r", zeros="0+1", mixes="norm"))
register(overloads("cosine_similarity"), Pattern(_cosine, "x [c], x [c] -> x", zeros="0*1", mixes="norm"))
