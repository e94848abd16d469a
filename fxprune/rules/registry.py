"""Which operator has which rule."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch._ops import OpOverload

from fxprune.errors import RuleError
from fxprune.rules.call import Call
from fxprune.rules.labels import Label


class Rule(Protocol):
    """How an operator carries axes from its operands to its results."""

    @property
    def notation(self) -> str:
        """The rule as text."""

    def apply(self, call: Call) -> list[Label]:
        """Couple what meets in the call, and return the label of each tensor that it returned."""


@dataclass(frozen=True)
class _Entry:
    rule: Rule
    place: str
    by_user: bool


_RULES: dict[OpOverload, _Entry] = {}


def register(ops: OpOverload | Iterable[OpOverload], rule: Rule, *, by_user: bool = False) -> None:
    """Give operators their rule.

    Args:
        ops: one operator or several.
        rule: their rule.
        by_user: whether it is none of ours, so that a call that it does not fit is an error of the user's.

    Raises:
        RuleError: an operator has one already; names both places.
    """
    place = _caller()
    given: Any = ops
    for op in given if isinstance(given, list | tuple | set | frozenset) else [given]:
        if not isinstance(op, OpOverload):
            raise RuleError(f"{op!r} is not an operator overload such as torch.ops.aten.linear.default")
        if op in _RULES:
            raise RuleError(
                f"{op} has a rule already: {_RULES[op].rule.notation!r} from {_RULES[op].place}, now again at {place}"
            )
        _RULES[op] = _Entry(rule, place, by_user)


def _caller() -> str:
    """Return file and line of the code that registers a rule."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, "fxprune.rules"):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def overloads(names: str) -> list[OpOverload]:
    """Return the ATen operators of these names, those that this version of torch has.

    Args:
        names: names such as ``"add.Tensor relu"``, apart by blanks; without a dot the overload is ``default``.
    """
    found = []
    for name in names.split():
        packet, _, overload = name.partition(".")
        if hasattr(torch.ops.aten, packet) and hasattr(getattr(torch.ops.aten, packet), overload or "default"):
            found.append(getattr(getattr(torch.ops.aten, packet), overload or "default"))
    return found


def registered() -> dict[OpOverload, Rule]:
    """Return all rules by operator."""
    return {op: entry.rule for op, entry in _RULES.items()}


def find_rule(op: OpOverload, pointwise: Callable[[], Rule] | None = None) -> Rule | None:
    """Return the rule of an operator, or of the operator that it is the in-place form of; None if neither has one."""
    if op in _RULES:
        return _RULES[op].rule
    namespace, _, name = op._schema.name.partition("::")
    if name.endswith("_") and not name.endswith("__"):
        packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
        functional = getattr(packet, op._overloadname, None)
        if functional in _RULES:
            return _RULES[functional].rule
    if pointwise is not None and torch.Tag.pointwise in op.tags:
        return pointwise()
    return None


def is_by_user(op: OpOverload) -> bool:
    """Tell whether an operator's rule was registered by a user."""
    return op in _RULES and _RULES[op].by_user


def unregister(op: OpOverload) -> None:
    """Take the rule of an operator back, so that another can be registered."""
    _RULES.pop(op, None)
