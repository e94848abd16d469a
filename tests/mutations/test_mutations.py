"""A sample of the mutations: what the full check finds the quick check finds."""

from __future__ import annotations

import random

import pytest

from tests.mutations.mutations import MUTATIONS, Mutation
from tests.mutations.runs import PLACES, outcome

NAMES = ("residual", "called_twice", "squeeze_excite", "multihead", "lstm", "response_norm", "shuffle_grouped")
SAMPLE = [
    (name, f, mutation) for name, f in PLACES if name in NAMES for mutation in random.Random(name + f).sample(MUTATIONS, 2)
]


@pytest.mark.parametrize(
    ("name", "frontend", "mutation"), SAMPLE, ids=[f"{name}-{f}-{mutation.__name__}" for name, f, mutation in SAMPLE]
)
def test_the_quick_check_finds_what_the_full_check_finds(name: str, frontend: str, mutation: Mutation) -> None:
    found = outcome(name, frontend, mutation, seed=0)
    assert found.quick or not found.full, found.what


def test_most_mutations_are_found() -> None:
    found = [outcome("residual", "trace", mutation, seed=0) for mutation in MUTATIONS]
    assert sum(each.full for each in found if each.what) >= 7
