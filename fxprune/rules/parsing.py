"""Reads the notation of :mod:`fxprune.rules.notation`, and writes the parts that patterns of many calls share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from fxprune.errors import RuleError
from fxprune.rules.call import Call
from fxprune.rules.labels import Zero

KINDS = frozenset(["contract", "sum", "mean", "var", "normalize", "softmax", "max", "min", "prod", "norm", "logsumexp"])
STATES = {"n": Zero.FINITE, "z": Zero.ZERO, "u": Zero.UNKNOWN}


@dataclass(frozen=True)
class Dim:
    """One dimension in a pattern.

    Attributes:
        names: the names whose product the dimension is; a single name, unless in parentheses.
        mixed: the names that are mixing points.
        whole: the names that stay whole.
        many: whether it stands for any number of dimensions.
    """

    names: tuple[str, ...]
    mixed: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()
    many: bool = False


Shape = tuple[Dim, ...]

_TOKEN = re.compile(r"\([^)]*\)|\S+")


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> tuple[tuple[Shape | None, ...], tuple[Shape | None, ...]]:
    """Return the operands and the results of a pattern; None for ``_``.

    Raises:
        RuleError: the text is not a pattern.
    """
    if not isinstance(text, str) or text.count("->") != 1:
        raise RuleError(f"a rule reads 'operands -> results', not {text!r}")
    operands, results = ([_shape(part.strip()) for part in side.split(",")] for side in text.split("->"))
    return tuple(operands), tuple(results)


def _shape(text: str) -> Shape | None:
    if text == "_":
        return None
    shape = tuple(_dim(token) for token in _TOKEN.findall(text))
    if sum(dim.many for dim in shape) > 1:
        raise RuleError(f"{text!r} has more than one dimension that stands for any number")
    return shape


def _dim(token: str) -> Dim:
    if token.startswith("(") and token.endswith(")"):
        parts = [_dim(part) for part in token[1:-1].split()]
        return Dim(
            tuple(name for part in parts for name in part.names),
            frozenset[str]().union(*(part.mixed for part in parts)),
            frozenset[str]().union(*(part.whole for part in parts)),
        )
    if token.startswith("..."):
        return Dim((token[3:] or "...",), many=True)
    if token.startswith("*"):
        return Dim((token,), whole=frozenset({token}), many=True)
    name = token.strip("[]!")
    if not re.fullmatch(r"\w+", name):
        raise RuleError(f"{token!r} is not a dimension of a rule")
    mixed = frozenset({name}) if token.startswith("[") else frozenset[str]()
    return Dim(() if name == "1" else (name,), mixed, frozenset({name}) if token.startswith("!") else frozenset())


def check_zeros(zeros: str, operands: int) -> None:
    """Raise RuleError unless ``zeros`` says how zeros travel through an operator of so many operands."""
    for factor in re.split(r"[*+,]", zeros):
        if factor.strip() not in STATES and not (factor.strip().isdecimal() and int(factor) < operands):
            raise RuleError(
                f"{factor!r} in zeros={zeros!r} is neither the number of one of {operands} operands, counted from 0, "
                "nor one of 'n' (some number), 'z' (zero), 'u' (unknown)"
            )


def marked(rank: int, dims: Container[int], token: str) -> list[str]:
    """Return names of ``rank`` dimensions, those of ``dims`` by ``token``: ``marked(2, [1], "!x{}")`` is ``["x0", "!x1"]``."""
    return [token.format(d) if d in dims else f"x{d}" for d in range(rank)]


def along(before: str, after: str) -> Callable[[Call], str]:
    """Return the function that gives the pattern of an operator along its argument ``dim``, or along all dimensions.

    These dimensions are ``before`` in operand 0 and ``after`` in every result, unless results lack them.

    Example: a sum, ``along("[x{}]", "1")``, over dimension 1 of two has ``"x0 [x1] -> x0 1"`` with ``keepdim``, else
    ``"x0 [x1] -> x0"``.
    """

    def pattern(call: Call) -> str:
        rank, dims = len(call.operand(0)), call.dims()
        lacks = call.shapes and len(call.shapes[0]) < rank
        result = " ".join(name for d, name in enumerate(marked(rank, dims, after)) if not (lacks and d in dims))
        return f"{' '.join(marked(rank, dims, before))} -> {', '.join([result] * len(call.shapes))}"

    return pattern


def broadcasting(names: Sequence[str], shape: Sequence[int]) -> str:
    """Return the dimensions of a tensor that broadcasts to dimensions of these names: those of size one are "1"."""
    own = names[len(names) - len(shape) :]
    return " ".join("1" if size == 1 else name for name, size in zip(own, shape, strict=True))
