"""Products summed over shared axes: matrix products, linear layers, einsum."""

from __future__ import annotations

import string
from typing import Any

from torch.nn import functional as F

from fxprune.algebra.axes import Axis
from fxprune.errors import RuleError
from fxprune.rules.call import Call
from fxprune.rules.card import OpCard, Places, PositionsLeft, Work
from fxprune.rules.labels import Label
from fxprune.rules.notation import Pattern
from fxprune.rules.parsing import broadcasting, marked
from fxprune.rules.registry import register_aten, register_named


def _einsum(call: Call) -> str:
    """Return the pattern of an einsum equation; a letter that the result lacks is summed over."""
    equation = call["equation"].replace(" ", "")
    inputs, _, output = equation.partition("->")
    if "->" not in equation:
        letters = inputs.replace(",", "").replace(".", "")
        output = ("..." if "..." in inputs else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    kept = _names(output, len(call.shapes[0]))
    given = [(_names(side, len(call.operand(i))), call.operand(i).shape) for i, side in enumerate(inputs.split(","))]
    sizes: dict[str, int] = {}
    for names, shape in given:
        for name, size in zip(names, shape, strict=True):
            sizes[name] = max(sizes.get(name, 1), size)

    def token(name: str, size: int) -> str:
        if size == 1 and sizes[name] != 1:
            return "1"
        return _LETTER.get(name, name) if name in kept else f"[{_LETTER.get(name, name)}]"

    operands = ", ".join(" ".join(map(token, names, shape)) for names, shape in given)
    return f"{operands} -> {' '.join(_LETTER.get(n, n) for n in kept)}"


def _names(side: str, rank: int) -> list[str]:
    """Return the names of the dimensions of a tensor in an equation: ``"...ij"`` of rank 4 has e1, e0, i, j."""
    before, _, after = side.partition("...")
    return [*before, *(f"e{k}" for k in reversed(range(rank - len(before) - len(after)))), *after]


# The names that the letters of an equation have in patterns.
_LETTER = {letter: f"{letter}_" if letter.islower() else f"{letter.lower()}_up" for letter in string.ascii_letters}


def _einsum_zeros(call: Call) -> str:
    return "*".join(str(i) for i in range(len(call.operands)))


def _work(call: Call) -> list[Work]:
    return [Work.of_products(call.axes.values())] if call.axes else []


def _einsum_work(call: Call) -> list[Work]:
    """Return the work of products from left to right; a letter is summed over once no later operand and no result has it."""
    if len(call.operands) < 3 or "." in call["equation"]:
        return _work(call)
    inputs, _, output = call["equation"].replace(" ", "").partition("->")
    sides = inputs.split(",")
    letters, parts = set(sides[0]), []
    for place, side in enumerate(sides[1:], 1):
        letters |= set(side)
        parts.append(Work.of_products(call.axes[_LETTER[letter]] for letter in sorted(letters)))
        letters &= set("".join(sides[place + 1 :])) | set(output)
    return parts


def _matmul(call: Call) -> str:
    """Return the pattern of a product of stacks of matrices that broadcast; a vector has no row or no column axis."""
    a, b = call.operand(0), call.operand(1)
    names = [f"x{d}" for d in range(max(len(a), len(b)) - 2)]

    def side(shape: tuple[int, ...], last: str) -> str:
        if len(shape) == 1:
            return "[k]"
        return f"{broadcasting(names, shape[:-2])} {last}".strip()

    rows, columns = ["m"] * (len(a) > 1), ["n"] * (len(b) > 1)
    shape = call.shapes[0][: len(call.shapes[0]) - len(rows) - len(columns)]
    result = [*broadcasting(names[: len(shape)], shape).split(), *rows, *columns]
    return f"{side(a.shape, 'm [k]')}, {side(b.shape, '[k] n')} -> {' '.join(result)}"


def _added(product: str, result: str) -> Pattern:
    """Return the rule of ``operand 0 + operand 1 @ operand 2``, where operand 0 broadcasts."""

    def pattern(call: Call) -> str:
        return f"{broadcasting(result.split(), call.operand(0).shape)}, {product} -> {result}"

    return Pattern(pattern, f"{result}, {product} -> {result}", zeros="0+1*2")


def inner_products(call: Call) -> str:
    """Return the pattern of inner products along the argument ``dim`` of operands that broadcast."""
    rank = len(call.shapes[0]) + 1
    d = call["dim"] % rank
    names = marked(rank, [d], "[k]")
    x, y = (broadcasting(names, call.operand(i).shape) for i in range(2))
    return f"{x}, {y} -> {broadcasting([*names[:d], *names[d + 1 :]], call.shapes[0])}"


def _inner(call: Call) -> str:
    """Return the pattern of inner products over the last axis."""
    x, y = ([f"{side}{d}" for d in range(len(call.operand(i)) - 1)] for i, side in enumerate("xy"))
    return f"{' '.join([*x, '[k]'])}, {' '.join([*y, '[k]'])} -> {' '.join([*x, *y])}"


def _linear(call: Call) -> str:
    """Return the pattern of a linear layer; a weight of one dimension is a single output without an axis."""
    return "...b [i], o [i], o -> ...b o" if len(call.operand(1)) == 2 else "...b [i], [i], -> ...b"


def _grouped(call: Call) -> str:
    """Return the pattern of a product for each group of rows, columns or summands, whose last places operand 2 counts.

    So what is grouped stays whole, and so do the groups, unless both operands are stacks of matrices.
    """
    a, b = (len(call.operand(i)) for i in range(2))
    if len(call.operands) > 3 and call.operands[3] is not None and len(call.operands[3]) != 1:
        return "_, _, _, _ -> _"
    operands = {
        (2, 3): "!s [k], !g [k] n, _, n -> !s n",
        (3, 2): "!g m [k], [k] !s, _, !s -> m !s",
        (2, 2): "m !s, !s n, _, n -> !g m n",
        (3, 3): "g m [k], g [k] n, _, n -> g m n",
    }
    return operands[a, b]


def _grouped_work(call: Call) -> list[Work]:
    """Return the work: each row, column or summand takes part in the product of one group alone."""
    is_ragged = any(len(call.operand(i)) == 2 for i in range(2))
    return [Work.of_products(axis for name, axis in call.axes.items() if not (is_ragged and name == "g"))]


_ALIGNMENT = 16  # bytes


def _aligned(call: Call) -> list[tuple[Axis, int]]:
    """Return the axes that lie densely in memory, and of what their sizes have to be a multiple: rows start at 16 bytes."""
    found = []
    for label, tensor in zip(call.operands[:2], (call["self"], call["mat2"]), strict=True):
        assert label is not None
        row = -2 if tensor.stride(-2) == 1 and tensor.stride(-1) >= tensor.shape[-2] else -1
        found.append((label.axes[row], max(_ALIGNMENT // tensor.element_size(), 1)))
    return found


def _grouped_left(call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
    for axis, multiple in _aligned(call):
        if left.size(axis) != axis.size and left.size(axis) % multiple:
            raise RuleError(
                f"takes rows of a multiple of {multiple} elements, not of {left.size(axis)}; give round_to={multiple}"
            )
    return {}


_LINEAR = Pattern(_linear, "...b [i], o [i], o -> ...b o", zeros="0*1+2")
_INNER = Pattern(_inner, "...x [k], ...y [k] -> ...x ...y", zeros="0*1")
_VECDOT = Pattern(inner_products, "...x [k], ...y [k] -> ...x ...y", zeros="0*1")
_MATMUL = Pattern(_matmul, "...x m [k], ...x [k] n -> ...x m n", zeros="0*1")
_GROUPED = Pattern(_grouped, "!s [k], !g [k] n, _, n -> !s n", zeros="0*1+3")
_BILINEAR = Pattern("...b [i], ...b [j], o [i] [j], o -> ...b o", zeros="0*1*2+3")

register_aten("linear", OpCard(_LINEAR, work=_work, places=Places(0, 1, 2, function=F.linear)))
register_aten("mm", Pattern("m [k], [k] n -> m n", zeros="0*1"))
register_aten("bmm", Pattern("b m [k], b [k] n -> b m n", zeros="0*1"))
register_aten("mv", OpCard(Pattern("m [k], [k] -> m", zeros="0*1"), work=_work))
register_aten("dot vdot inner", OpCard(_INNER, work=_work))
register_aten("linalg_vecdot", OpCard(_VECDOT, work=_work))
register_aten("matmul linalg_matmul", OpCard(_MATMUL, work=_work))
register_aten("addmm", OpCard(_added("m [k], [k] n", "m n"), places=Places(1, 2, 0, inputs_first=True)))
register_aten("baddbmm", _added("b m [k], b [k] n", "b m n"))
register_aten("addbmm", _added("[b] m [k], [b] [k] n", "m n"))
register_aten("addmv", _added("m [k], [k]", "m"))
register_aten("addr", _added("m, n", "m n"))
register_aten("outer ger", OpCard(Pattern("m, n -> m n", zeros="0*1"), work=_work))
register_aten("bilinear", OpCard(_BILINEAR, work=_work))
register_aten("einsum", OpCard(Pattern(_einsum, "(the equation)", zeros=_einsum_zeros), work=_einsum_work))
register_aten("_grouped_mm", OpCard(_GROUPED, _grouped_left, work=_grouped_work, multiples=_aligned))
# The same in Python, of operands of any dtype and alignment.
register_named("transformers::grouped_mm_fallback", OpCard(_GROUPED, work=_grouped_work))
