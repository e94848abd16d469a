"""Which operator has which card."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
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
_NAMED: dict[str, OpCard] = {}  # of operators that other libraries define, which need not be there
_BLANK = OpCard()
_CHANGES = [0]


def register(ops: OpOverload | Iterable[OpOverload], given: OpCard | Rule, *, by_user: bool = False) -> None:
    """Give operators a card, or a card that has this rule alone. The analysis raises where a rule ``by_user`` does not fit.

    Raises:
        RuleError: an operator has a card already, or the function over kept positions takes an argument that it lacks.
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


def register_aten(names: str, given: OpCard | Rule) -> None:
    """Give ATen operators a card; ``names`` as :func:`overloads` takes them."""
    register(overloads(names), given)


def register_named(names: str, given: OpCard | Rule) -> None:
    """Give operators of other libraries a card, by names such as ``"mylib::scale"``; one of the operator itself comes first."""
    _NAMED.update(dict.fromkeys(names.split(), given if isinstance(given, OpCard) else OpCard(given)))


def _caller() -> str:
    """Return file and line of the code that registers a rule."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, "fxprune.rules"):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def overloads(names: str) -> list[OpOverload]:
    """Return the ATen operators of names such as ``"add.Tensor relu"``, as far as this version of torch has them.

    A name without a dot is that of the overload ``default``.
    """
    parts = [name.partition(".") for name in names.split()]
    found = [getattr(getattr(torch.ops.aten, packet, None), overload or "default", None) for packet, _, overload in parts]
    return [op for op in found if op is not None]


def registered() -> dict[OpOverload, Rule]:
    """Return all rules by operator."""
    return {op: entry.card.rule for op, entry in _ENTRIES.items() if entry.card.rule is not None}


def op_card(op: OpOverload) -> OpCard:
    """Return the card of an operator or of its name, else of the operator whose in-place form it is, else a blank card."""
    if op in _ENTRIES:
        return _ENTRIES[op].card
    functional = _functional(op)
    return _ENTRIES[functional].card if functional in _ENTRIES else _NAMED.get(op.name(), _BLANK)


@functools.lru_cache(maxsize=1 << 12)
def _functional(op: OpOverload) -> OpOverload | None:
    """Return the operator whose in-place form an operator is, by its name; None if there is none."""
    name = base_name(op)
    if not name.endswith("_") or name.endswith("__"):
        return None
    return getattr(getattr(getattr(torch.ops, op.namespace), name[:-1], None), overload_name(op), None)


def is_by_user(op: OpOverload) -> bool:
    """Tell whether an operator's rule was registered by a user."""
    return op in _ENTRIES and _ENTRIES[op].by_user


def named_card(name: str) -> OpCard:
    """Return the card that operators of a name have, such as ``"mylib::scale"``."""
    return _NAMED[name]


def unregister(op: OpOverload) -> None:
    """Remove the card of an operator, so that a new one can be registered."""
    _ENTRIES.pop(op, None)
    _CHANGES[0] += 1


def version() -> int:
    """Return a number that grows with every change of the cards."""
    return _CHANGES[0]
