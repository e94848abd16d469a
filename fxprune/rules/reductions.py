"""Operators that combine positions along dimensions: sums, means, extrema, norms, softmax."""

from __future__ import annotations

from collections.abc import Callable

from fxprune.rules.call import Call
from fxprune.rules.notation import Pattern
from fxprune.rules.registry import overloads, register


def _mark(call: Call, token: str) -> tuple[list[str], list[int]]:
    """Return a token for each dimension of operand 0, and the dimensions that the call works along."""
    dims = call.dims() if "dim" in call.arguments else list(range(len(call.operand(0))))
    names = [token.format(k) if k in dims else f"x{k}" for k in range(len(call.operand(0)))]
    return names, dims


def _reduced(token: str) -> Callable[[Call], str]:
    def pattern(call: Call) -> str:
        names, dims = _mark(call, token)
        rank = len(call.shapes[0])
        kept = [("1" if k in dims else name) for k, name in enumerate(names) if rank == len(names) or k not in dims]
        return f"{' '.join(names)} -> " + ", ".join([" ".join(kept)] * len(call.shapes))

    return pattern


def _along(token: str) -> Callable[[Call], str]:
    def pattern(call: Call) -> str:
        names, _ = _mark(call, token)
        return f"{' '.join(names)} -> {' '.join(names)}"

    return pattern


def reduction(kind: str, zeros: str = "0") -> Pattern:
    """Return the rule of a reduction over dimensions that may shrink."""
    return Pattern(_reduced("[x{}]"), "x [n] -> x", zeros=zeros, mixes=kind)


register(overloads("sum sum.dim_IntList nansum"), reduction("sum"))
register(overloads("mean mean.dim"), reduction("mean"))
register(
    overloads(
        "var var.dim var.correction std std.dim std.correction var_mean std_mean var_mean.correction std_mean.correction"
    ),
    reduction("var"),
)
register(overloads("amax max.dim max"), reduction("max"))
register(overloads("amin min.dim min"), reduction("min"))
register(overloads("aminmax"), Pattern(_reduced("!x{}"), "x !n -> x, x", zeros="0"))
register(overloads("prod prod.dim_int"), reduction("prod"))
register(overloads("logsumexp"), reduction("logsumexp", zeros="n"))
register(overloads("norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype linalg_vector_norm"), reduction("norm"))
register(overloads("any any.dim any.dims count_nonzero count_nonzero.dim_IntList"), reduction("sum"))
register(overloads("all all.dim all.dims"), reduction("prod"))
register(
    overloads("argmax argmin median.dim mode kthvalue nanmedian.dim median"), Pattern(_reduced("!x{}"), "x !n -> x", zeros="n")
)
# The removed positions are filled before, and come out as zero.
register(
    overloads("softmax.int _softmax _safe_softmax"),
    Pattern(_along("[x{}]"), "x [n] -> x [n]", zeros="n", mixed_zeros="z", mixes="softmax"),
)
register(
    overloads("log_softmax.int _log_softmax"),
    Pattern(_along("[x{}]"), "x [n] -> x [n]", zeros="n", mixes="softmax"),
)


def _glu(call: Call) -> str:
    d = call.dim()
    names = [f"x{k}" for k in range(len(call.operand(0)))]
    halves = [f"(!h x{k})" if k == d else name for k, name in enumerate(names)]
    return f"{' '.join(halves)} -> {' '.join(names)}"


def _transformed(call: Call) -> str:
    """Return the pattern of a Fourier transform: every position along the transformed dimensions counts."""
    dims = [d % len(call.operand(0)) for d in call["dim"]]
    before, after = ([f"!{n}{k}" if k in dims else f"x{k}" for k in range(len(call.operand(0)))] for n in "nm")
    return f"{' '.join(before)} -> {' '.join(after)}"


def _top(call: Call) -> str:
    d = call.dim()
    before, after = ([f"!{n}" if k == d else f"x{k}" for k in range(len(call.operand(0)))] for n in ("n", "t"))
    return f"{' '.join(before)} -> {', '.join([' '.join(after)] * len(call.shapes))}"


register(overloads("glu"), Pattern(_glu, "(!h x) -> x", zeros="0", sizes=lambda call: {"h": 2}))
register(overloads("_fft_c2c _fft_r2c _fft_c2r"), Pattern(_transformed, "x !n -> x !m", zeros="0"))
register(overloads("topk"), Pattern(_top, "x !n -> x !k, x !k", zeros="n"))
register(overloads("cdist _cdist_forward"), Pattern("...b p !m, ...b r !m -> ...b p r", zeros="n"))
register(overloads("cosine_similarity"), Pattern("...x !c, ...x !c -> ...x", zeros="0*1"))
