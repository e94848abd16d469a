"""Which operator has which card."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from fxprune.errors import RuleError
from fxprune.rules.card import OpCard, Rule
from fxprune.torch_internals.operators import OpOverload, arguments_of, base_name, overload_name


@dataclass(frozen=True)
class _Entry:
    card: OpCard
    place: str
    by_user: bool


_ENTRIES: dict[OpOverload, _Entry] = {}
_BLANK = OpCard()
_CHANGES = [0]


def register(ops: OpOverload | Iterable[OpOverload], given: OpCard | Rule, *, by_user: bool = False) -> None:
    """Give operators their card.

    Args:
        ops: one operator or several.
        given: their card; or their rule, if there is no more to say.
        by_user: whether it is none of ours, so that a call that it does not fit is an error of the user's.

    Raises:
        RuleError: an operator has one already; names both places. Or the form over kept positions takes other arguments.
    """
    place = _caller()
    card = given if isinstance(given, OpCard) else OpCard(given)
    several: Any = ops
    for op in several if isinstance(several, list | tuple | set | frozenset) else [several]:
        if not isinstance(op, OpOverload):
            raise RuleError(f"{op!r} is not an operator overload such as torch.ops.aten.linear.default")
        if op in _ENTRIES:
            before, rule = _ENTRIES[op].place, _ENTRIES[op].card.rule
            raise RuleError(f"{op} has a rule already: {rule and rule.notation!r} from {before}, now again at {place}")
        for name in card.over_kept.names if card.over_kept is not None else ():
            if name not in (given_names := [argument.name for argument in arguments_of(op)]):
                raise RuleError(f"{op} has no argument {name!r} that its form over kept positions takes, only {given_names}")
        _ENTRIES[op] = _Entry(card, place, by_user)
        _CHANGES[0] += 1


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
    return {op: entry.card.rule for op, entry in _ENTRIES.items() if entry.card.rule is not None}


def op_card(op: OpOverload) -> OpCard:
    """Return the card of an operator, or of the operator that it is the in-place form of; a blank one if neither has one."""
    if op in _ENTRIES:
        return _ENTRIES[op].card
    name = base_name(op)
    if name.endswith("_") and not name.endswith("__"):
        packet = getattr(getattr(torch.ops, op.namespace), name[:-1], None)
        functional = getattr(packet, overload_name(op), None)
        if functional in _ENTRIES:
            return _ENTRIES[functional].card
    return _BLANK


def find_rule(op: OpOverload, pointwise: Callable[[], Rule] | None = None) -> Rule | None:
    """Return the rule of an operator, or of the operator that it is the in-place form of; None if neither has one."""
    rule = op_card(op).rule
    return pointwise() if rule is None and pointwise is not None and torch.Tag.pointwise in op.tags else rule


def is_by_user(op: OpOverload) -> bool:
    """Tell whether an operator's rule was registered by a user."""
    return op in _ENTRIES and _ENTRIES[op].by_user


def unregister(op: OpOverload) -> None:
    """Take the card of an operator back, so that another can be registered."""
    _ENTRIES.pop(op, None)
    _CHANGES[0] += 1


def version() -> int:
    """Return a number that is another one after every change of the cards."""
    return _CHANGES[0]
