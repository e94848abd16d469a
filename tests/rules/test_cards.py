"""The cards of operators: all of them printed, and what they say beside the rule tried out on the samples of the rules.

``cards.txt`` holds every card. After a change of a fact, look at what this writes::

    python -m tests.rules.test_cards > tests/rules/cards.txt; git diff tests/rules/cards.txt
"""

from __future__ import annotations

import dataclasses
import functools
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from fxprune.analysis.remaining import Remaining
from fxprune.rules import OpCard, OverKept, Pattern, Places, registered
from fxprune.rules.registry import op_card, overloads
from tests.rules.brute_force import Cut, Trial, apply_rule, draw, removals, same, take
from tests.rules.sample import Context
from tests.rules.test_rules import SAMPLES

CARDS = Path(__file__).with_name("cards.txt")


def _text(value: Any) -> str:
    """Return a fact as text: functions by name."""
    if isinstance(value, functools.partial):
        return f"{_text(value.func)}({', '.join(f'{k}={v}' for k, v in value.keywords.items())})"
    if isinstance(value, OverKept):
        plain = ", ".join(value.plain) if isinstance(value.plain, tuple) else _text(value.plain)
        return f"{_text(value.function)}({', '.join(value.given)}; {plain})"
    if isinstance(value, Places):
        return ", ".join(f"{k} {_text(v)}" for k, v in value._asdict().items() if v is not None and v is not False)
    return str(getattr(value, "__name__", value))


def _facts(record: Any, skip: str) -> list[str]:
    """Return the fields of a rule or a card that say something, by name."""
    fields = [f for f in dataclasses.fields(record) if f.name != skip and getattr(record, f.name) != f.default]
    return [f"{f.name}: {_text(getattr(record, f.name))}" for f in fields]


def printed(op: OpOverload, card: OpCard) -> str:
    """Return the card of an operator as one line."""
    rule = card.rule
    assert rule is not None
    facts = [*(_facts(rule, "notation") if dataclasses.is_dataclass(rule) else []), *_facts(card, "rule")]
    if isinstance(rule, Pattern):
        facts = [fact for fact in facts if not fact.startswith("doc: ") and fact != f"pattern: {rule.notation}"]
    if torch.Tag.nondeterministic_seeded in op.tags:
        facts.append("draws")
    name = "" if isinstance(rule, Pattern) else f"{type(rule).__name__} "
    return " | ".join([f"{op}  {name}{rule.notation}", *facts])


def every_card() -> list[str]:
    """Return the cards of all operators that torch has, in order."""
    return [printed(op, op_card(op)) for op in sorted(registered(), key=str) if op.namespace == "aten"]


def test_every_card_as_printed() -> None:
    lines = CARDS.read_text(encoding="utf-8").splitlines()
    assert every_card() == [line for line in lines if overloads(line.split()[0].removeprefix("aten.").removesuffix(".default"))]


def _trials(op: OpOverload) -> list[Trial]:
    rule = op_card(op).rule
    assert rule is not None
    return [apply_rule(op, rule, s, draw(s, 5), known=any(o.exact for o in s.operands)) for s in SAMPLES[op]]


def _small_call(trial: Trial, cut: Cut) -> tuple[list[Tensor], dict[str, Any]]:
    """Return what the sample gives on what some units leave, and the arguments of its call, tensors as they were before."""
    small = [take(tensor, keep) for tensor, keep in zip(trial.tensors, cut.keeps, strict=True)]
    shapes = [tuple(t.shape) for t in trial.tensors]
    context = Context(trial.op, small, shapes, cut.keeps, cut.results, cut.names)
    before = {id(t): t.clone() for t in small}  # an operator in place writes into the other
    result = trial.sample.run(context)
    return result, pytree.tree_map(lambda leaf: before.get(id(leaf), leaf), context.arguments)


def _left(trial: Trial, cut: Cut) -> Remaining:
    removed = np.zeros(trial.call.units.count, bool)
    removed[list(cut.units)] = True
    return Remaining(trial.call.units, removed)


OPERATORS = [op for op in SAMPLES if op in registered()]
# Whose arguments say more than a card makes, and why that is enough.
WITHOUT_SIZES = {
    "aten.affine_grid_generator.default": "only the batch goes, and no batch is ever removed",
    "aten._reshape_alias.default": "strides are those of a memory layout: the repair calls reshape in its place",
}


@pytest.mark.parametrize("op", [op for op in OPERATORS if str(op) not in WITHOUT_SIZES], ids=str)
def test_arguments_that_name_sizes(op: OpOverload) -> None:
    """The operator, called with the arguments that its card makes, gives what the sample gives, which adapts them by hand."""
    for trial in _trials(op):
        for cut in removals(trial, 5, 6):
            wanted, arguments = _small_call(trial, cut)
            if not arguments:  # the sample calls another operator, that of several sizes in place of a single one
                continue
            plain = {n: v for n, v in trial.call.arguments.items() if not any(map(torch.is_tensor, pytree.tree_leaves(v)))}
            left = op_card(op).arguments_left(trial.call, tuple(trial.results), _left(trial, cut))
            where = f"{op}, {trial.sample}, {cut}: {left}"
            with torch.no_grad():
                found = [r for r in pytree.tree_leaves(op(**{**arguments, **plain, **left})) if isinstance(r, Tensor)]
            for r, (one, other) in enumerate(zip(wanted, found, strict=True)):
                if r not in trial.unread:
                    assert one.shape == other.shape, where
                    assert trial.sample.random or op_card(op).is_uninitialised or same(one, other), where


@pytest.mark.parametrize("op", [op for op in OPERATORS if op_card(op).keeps_numbers], ids=str)
def test_numbers_that_are_kept(op: OpOverload) -> None:
    keeps_numbers, kept = op_card(op).keeps_numbers, 0
    for trial in _trials(op):
        keeps = keeps_numbers is True or (callable(keeps_numbers) and keeps_numbers(trial.call))
        trial.tensors[0].fill_(0.7)
        result = trial.sample.run(Context(op, trial.tensors, [tuple(t.shape) for t in trial.tensors]))[0]
        found = result if result.is_complex() else result.double()  # an integer is no 0.7
        assert keeps == same(found, torch.full_like(found, 0.7)), trial.sample
        kept += keeps
    assert kept


# Products that torch's counter does not look at: with vectors, and in kernels for one kind of device.
UNCOUNTED = {f"aten.{name}.default" for name in ("mv", "dot", "vdot", "outer", "ger", "bilinear", "linalg_vecdot")}
UNCOUNTED |= {"aten._scaled_dot_product_flash_attention_for_cpu.default"}


@pytest.mark.parametrize("op", [op for op in OPERATORS if op_card(op).work is not None], ids=str)
def test_work(op: OpOverload) -> None:
    """The work is what torch counts, of a smaller call as well."""
    work, counts = op_card(op).work, 0
    assert work is not None
    for trial in _trials(op):
        parts = work(trial.call)
        for cut in [trial.without([]), *removals(trial, 5, 6)]:
            left = _left(trial, cut)
            expected = sum(p.flops * math.prod(Fraction(left.size(a), a.size) for a in p.axes) for p in parts)
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                _small_call(trial, cut)
            counted = counter.get_total_flops()
            # Torch multiplies along an axis of a single position by other ways; steps of a recurrent network never go.
            if 1 not in cut.names.values() and (all(k.all() for k in cut.results[0][:-1]) or not op_card(op).as_a_whole):
                where = f"{op}, {trial.sample}, {cut}"
                # Of several operands torch multiplies the first element by element where nothing is summed yet.
                assert counted in (expected, 0) or ("einsum" in str(op) and len(parts) > 1 and counted < expected), where
            counts += counted
    assert counts or str(op) in UNCOUNTED


if __name__ == "__main__":
    print("\n".join(every_card()))
