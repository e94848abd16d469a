"""Every rule, checked by brute force."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._ops import OpOverload

from fxprune.rules import Rule, Zero, find_rule, registered
from fxprune.rules.pointwise import POINTWISE
from fxprune.rules.registry import overloads
from tests.rules import (
    samples_attention,
    samples_contraction,
    samples_convolution,
    samples_factories,
    samples_indexing,
    samples_movement,
    samples_norms,
    samples_pointwise,
    samples_pooling,
    samples_recurrent,
    samples_reductions,
    samples_views,
)
from tests.rules.brute_force import apply_rule, check_sound, draw, needlessly_whole, state_combinations, zero_claims
from tests.rules.exceptions import NOT_ZERO, SIBLINGS, STRICT
from tests.rules.sample import Sample
from tests.rules.samples_pointwise import made_from_schema, pointwise

_FAMILIES = (
    samples_attention,
    samples_contraction,
    samples_convolution,
    samples_factories,
    samples_indexing,
    samples_movement,
    samples_norms,
    samples_pointwise,
    samples_pooling,
    samples_recurrent,
    samples_reductions,
    samples_views,
)


def _by_operator() -> dict[OpOverload, list[Sample]]:
    found: dict[OpOverload, list[Sample]] = {}
    for family in _FAMILIES:
        for sample in family.SAMPLES:
            for op in overloads(sample.ops):
                found.setdefault(op, []).append(sample)
    for op in POINTWISE_OPERATORS:
        if op not in found and (sample_made := made_from_schema(op)) is not None:
            found[op] = [sample_made]
    return found


REGISTERED = sorted(registered(), key=str)
POINTWISE_OPERATORS = sorted({*pointwise(), *(op for op, rule in registered().items() if rule is POINTWISE)}, key=str)
OPERATORS = sorted({*REGISTERED, *POINTWISE_OPERATORS}, key=str)
SAMPLES = _by_operator()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Run on one thread: the tensors are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _name(op: OpOverload) -> str:
    return str(op).removeprefix("aten.").removesuffix(".default")


def _rule(op: OpOverload) -> Rule:
    rule = find_rule(op)
    assert rule is not None
    return rule


def _samples(op: OpOverload) -> list[tuple[Sample, bool]]:
    """Return the samples of an operator: those with whole numbers with their values known and unknown."""
    return [(s, known) for s in SAMPLES.get(op, ()) for known in {False, any(o.exact for o in s.operands)}]


@pytest.mark.parametrize("op", OPERATORS, ids=_name)
def test_every_rule_has_a_sample(op: OpOverload) -> None:
    assert (op in SAMPLES) != (_name(op) in SIBLINGS), f"{op} needs a sample, or a sibling that has the same rule"


def test_every_sample_is_of_a_rule() -> None:
    assert not [str(op) for op in SAMPLES if op not in OPERATORS]


@pytest.mark.parametrize(("name", "sibling"), SIBLINGS.items())
def test_what_cannot_run_has_the_rule_of_what_can(name: str, sibling: str) -> None:
    for op in overloads(name):
        assert _rule(op).notation == _rule(overloads(sibling)[0]).notation


@pytest.mark.parametrize("op", list(SAMPLES), ids=_name)
def test_sound(op: OpOverload) -> None:
    for sample, known in _samples(op):
        check_sound(apply_rule(op, _rule(op), sample, draw(sample, 1), known=known), 1)


@pytest.mark.parametrize("op", list(SAMPLES), ids=_name)
def test_zeros(op: OpOverload) -> None:
    for sample, known in _samples(op):
        for states in () if sample.random else state_combinations(sample):
            trial = apply_rule(op, _rule(op), sample, draw(sample, 2), known=known, states=states)
            for claim in zero_claims(trial, states, 2):
                assert claim.seen >= claim.claimed, f"{op}, {sample}: {claim}"
                # What masked parameters alone make zero is to be known as zero.
                strict = claim.seen is Zero.ZERO and claim.claimed is not Zero.ZERO and Zero.FINITE not in states
                strict = strict and _rule(op) is not POINTWISE  # which asks the operator itself
                assert not strict or _name(op) in NOT_ZERO, f"{op}, {sample}: {claim}"


@pytest.mark.parametrize("op", list(SAMPLES), ids=_name)
def test_not_too_strict(op: OpOverload) -> None:
    accepted, _ = STRICT.get(_name(op), (set(), ""))
    for sample, known in _samples(op):
        if not sample.random and not sample.unchecked:
            found = set(needlessly_whole(op, _rule(op), sample, known=known, seeds=(3, 4)))
            assert found <= accepted, f"{op}, {sample}: {sorted(found - accepted)} (operand, dimension) could go"
