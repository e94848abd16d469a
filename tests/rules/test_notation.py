"""Rules as text: what patterns say, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._ops import OpOverload

import fxprune.rules
from fxprune.algebra.axes import Axis, Reason
from fxprune.algebra.units import Units
from fxprune.errors import RuleError
from fxprune.rules import Call, Label, Pattern, Zero, registered
from fxprune.rules.notation import Dim, parse
from fxprune.rules.registry import overloads, register, unregister

ADD = torch.ops.aten.add.Tensor
_MANY = Dim(("b",), many=True)


def _call(
    operands: list[tuple[int, ...] | None],
    results: list[tuple[int, ...]],
    op: OpOverload = ADD,
    state: Zero = Zero.ZERO,
    **arguments: Any,
) -> Call:
    """Return a call on operands whose every axis has units, of size one excepted."""
    units = Units()

    def label(shape: tuple[int, ...]) -> Label:
        return Label(tuple(units.fresh(n) if n > 1 else Axis.whole(n) for n in shape), (state,) * len(shape))

    labels = [None if shape is None else label(shape) for shape in operands]
    return Call(op, arguments, labels, results, units, Reason("", op=str(op), node="here"))


def _rows(call: Call, axis: Axis) -> list[list[int]]:
    return call.units.resolve(axis).tolist()


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("a b", (Dim(("a",)), Dim(("b",)))),
        ("...b [i]", (_MANY, Dim(("i",), mixed=frozenset("i")))),
        ("(g [c])", (Dim(("g", "c"), mixed=frozenset("c")),)),
        ("(!g h)", (Dim(("g", "h"), whole=frozenset("g")),)),
        ("!v", (Dim(("v",), whole=frozenset("v")),)),
        ("*s", (Dim(("*s",), whole=frozenset({"*s"}), many=True),)),
        ("1", (Dim(()),)),
        ("...", (Dim(("...",), many=True),)),
        ("", ()),
        ("_", None),
    ],
)
def test_parse_reads_dimensions(text: str, shape: tuple[Dim, ...] | None) -> None:
    assert parse(f"{text} -> ")[0] == (shape,)


def test_parse_tells_operands_from_results() -> None:
    operands, results = parse("a, , b -> c, _")
    assert operands == ((Dim(("a",)),), (), (Dim(("b",)),))
    assert results == ((Dim(("c",)),), None)


@pytest.mark.parametrize("text", ["a b", "a -> b -> c", "a ->b c-d", "(a b -> c", "a+b -> c", "[a -> a]b -> c"])
def test_parse_refuses_what_is_no_pattern(text: str) -> None:
    with pytest.raises(RuleError, match=r"is not a dimension of a rule|a rule reads 'operands -> results'"):
        parse(text)


def test_equal_names_are_coupled() -> None:
    call = _call([(2, 3), (4, 3)], [(2, 4)])
    (result,) = Pattern("b [i], o [i] -> b o").apply(call)
    x, w = call.operand(0), call.operand(1)
    assert _rows(call, x.axes[1]) == _rows(call, w.axes[1])
    assert [_rows(call, axis) for axis in result.axes] == [_rows(call, x.axes[0]), _rows(call, w.axes[0])]
    assert [(m.kind, m.operand, m.dim) for m in call.mixings] == [("contract", 0, 1), ("contract", 1, 1)]
    assert call.axes["i"] is call.mixings[0].axis


def test_dots_stand_for_any_number_of_dimensions() -> None:
    for stack in ((), (2,), (2, 5)):
        call = _call([(*stack, 3), (4, 3)], [(*stack, 4)])
        (result,) = Pattern("...b [i], o [i] -> ...b o").apply(call)
        assert result.shape == (*stack, 4)
        assert all(_rows(call, a) == _rows(call, b) for a, b in zip(result.axes[:-1], call.operand(0).axes[:-1], strict=True))


def test_stars_stay_whole() -> None:
    call = _call([(2, 3, 4)], [(2, 7)])
    (result,) = Pattern("b *s -> b *t").apply(call)
    assert _rows(call, call.operand(0).axes[1]) == [[], [], []]
    assert result.axes[1].is_whole
    assert str(result.axes[1].why) == "needs every position along this dimension (aten.add.Tensor in node 'here')"


def test_a_product_is_split_and_merged() -> None:
    call = _call([(6,)], [(6,)])
    (result,) = Pattern("(g c) -> (c g)", sizes=lambda _: {"g": 2}).apply(call)
    rows = _rows(call, call.operand(0).axes[0])
    assert [sorted(row) for row in _rows(call, result.axes[0])] == [sorted(rows[i]) for i in (0, 3, 1, 4, 2, 5)]


def test_a_whole_part_of_a_product_leaves_the_other() -> None:
    call = _call([(6,)], [(3,)])
    (result,) = Pattern("(!g h) -> h").apply(call)
    assert _rows(call, call.operand(0).axes[0]) == 2 * _rows(call, result.axes[0])


def test_names_of_results_alone_are_new() -> None:
    call = _call([(3,)], [(3, 5), (5,)])
    first, second = Pattern("a -> a n, n").apply(call)
    assert len({row[0] for row in _rows(call, first.axes[1])}) == 5
    assert _rows(call, first.axes[1]) == _rows(call, second.axes[0])


def test_operands_of_no_interest_freeze_and_results_stay_whole() -> None:
    call = _call([(3,), (4,)], [(3,), (4,)])
    _, second = Pattern("a, _ -> a, _").apply(call)
    assert _rows(call, call.operand(1).axes[0]) == [[], [], [], []]
    assert second.axes[0].is_whole


def test_missing_operands_are_left_out() -> None:
    call = _call([(2, 3), (4, 3), None], [(2, 4)])
    (result,) = Pattern("b [i], o [i], o -> b o", zeros="0*1+2").apply(call)
    assert result.zeros == (Zero.ZERO, Zero.ZERO)


def test_sizes_of_one_stay_apart() -> None:
    call = _call([(3, 1), (3, 4)], [(3, 4)])
    (result,) = Pattern("a 1, a b -> a b").apply(call)
    assert _rows(call, result.axes[1]) == _rows(call, call.operand(1).axes[1])


@pytest.mark.parametrize(
    ("zeros", "states"),
    [
        ("0", (Zero.ZERO, Zero.FINITE)),  # operand 0 has no o
        ("0*1", (Zero.ZERO, Zero.ZERO)),
        ("0+1", (Zero.FINITE, Zero.FINITE)),
        ("n", (Zero.FINITE, Zero.FINITE)),
        ("z", (Zero.ZERO, Zero.ZERO)),
        ("u", (Zero.UNKNOWN, Zero.UNKNOWN)),
        ("0*u", (Zero.UNKNOWN, Zero.UNKNOWN)),
        ("7", (Zero.FINITE, Zero.FINITE)),
    ],
)
def test_zeros_travel_as_the_text_says(zeros: str, states: tuple[Zero, ...]) -> None:
    call = _call([(2, 3), (4, 3)], [(2, 4)])
    assert Pattern("b [i], o [i] -> b o", zeros=zeros).apply(call)[0].zeros == states


def test_zeros_may_differ_by_result() -> None:
    first, second = Pattern("a -> a, a", zeros="0, n").apply(_call([(3,)], [(3,), (3,)]))
    assert (first.zeros, second.zeros) == ((Zero.ZERO,), (Zero.FINITE,))


@pytest.mark.parametrize(("kind", "neutral"), [("contract", [True, True]), ("sum", [True, False]), ("softmax", [False, False])])
def test_one_zero_is_enough_in_a_product_only(kind: str, neutral: list[bool]) -> None:
    call = _call([(3,), (3,)], [()])
    second = call.operand(1)
    call.operands[1] = Label(second.axes, (Zero.FINITE,))
    Pattern("[i], [i] -> ", mixes=kind).apply(call)
    assert [m.neutral for m in call.mixings] == neutral


@pytest.mark.parametrize(
    ("pattern", "operands", "results", "message"),
    [
        ("a b -> a", [(2, 3, 4)], [(2,)], "does not fit operand 0 of shape [2, 3, 4]; operands [2, 3, 4], results [2]"),
        ("a -> a b", [(2,)], [(2,)], "does not fit result 0 of shape [2]; operands [2], results [2]"),
        ("a, a -> a", [(2,), (3,)], [(2,)], "has a where the size is 3 (sizes {'a': 2}); operands [2], [3], results [2]"),
        ("a -> a", [(2,)], [(3,)], "has a where the size is 3 (sizes {'a': 2}); operands [2], results [3]"),
        ("a -> a", [(2,), (2,)], [(2,)], "is for 1 operands and 1 results (got 2 and 1); operands [2], [2], results [2]"),
        ("a -> a, a", [(2,)], [(2,)], "is for 1 operands and 2 results (got 1 and 1); operands [2], results [2]"),
        ("(g h) -> a", [(6,)], [(2,)], "has g * h where the size is 6 (sizes {'a': 2}); operands [6], results [2]"),
        ("1 -> 1", [(2,)], [(2,)], "has 1 where the size is 2 (sizes {}); operands [2], results [2]"),
    ],
)
def test_a_rule_that_contradicts_shapes_names_everything(
    pattern: str, operands: list[tuple[int, ...] | None], results: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(RuleError) as caught:
        Pattern(pattern).apply(_call(operands, results))
    head = f"the rule {pattern!r} of aten.add.Tensor at node 'here' "
    assert str(caught.value) == head + message + ". Register a rule that fits the operator's shapes."


# The registry.


def test_an_operator_has_one_rule() -> None:
    op = torch.ops.aten.linear.default
    with pytest.raises(RuleError) as caught:
        register(op, Pattern("a -> a"))
    message = str(caught.value)
    assert message.startswith(f"{op} has a rule already: {registered()[op].notation!r} from ")
    first, second = message.split(" from ")[1].split(", now again at ")
    assert "contraction.py:" in first
    assert "test_notation.py:" in second


def test_only_overloads_have_rules() -> None:
    with pytest.raises(RuleError, match=r"is not an operator overload such as torch\.ops\.aten\.linear\.default"):
        register([torch.ops.aten.linear], Pattern("a -> a"))  # type: ignore[list-item]


def test_a_rule_of_ones_own() -> None:
    op = torch.ops.aten.digamma.default
    try:
        fxprune.rules.register_rule(op, "...x -> ...x", zeros="n")
        assert fxprune.rules.find_rule(op) is registered()[op]
        with pytest.raises(RuleError, match=r"test_notation\.py:\d+, now again at .*test_notation\.py:\d+"):
            fxprune.rules.register_rule(op, "...x -> ...x")
    finally:
        unregister(op)
    with pytest.raises(RuleError, match="a rule reads 'operands -> results', not 'nothing'"):
        fxprune.rules.register_rule(op, "nothing")
    assert op not in registered()


def test_names_that_this_torch_lacks_are_passed_over() -> None:
    assert overloads("relu no_such_operator relu.no_such_overload") == [torch.ops.aten.relu.default]
