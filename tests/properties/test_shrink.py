"""The masked and the shrunk graph of a random network and a random plan compute the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.properties.__main__ import main
from tests.properties.laws import check_exchange, outcome_of
from tests.properties.minimise import minimised
from tests.properties.networks import ASYMMETRIC, STEPS, network
from tests.properties.program import Program

SETTINGS = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
# What torch warns of in a network that nobody would write is not ours to test.
pytestmark = pytest.mark.filterwarnings("ignore")


@settings(SETTINGS, max_examples=40)
@given(st.integers(0, 2**16))
def test_masked_is_shrunk(seed: int) -> None:
    program = network(seed)
    error = outcome_of("shrink", program).error
    assert not error, f"{error}; see python -m tests.properties --programs 1 --seed {seed}\n{program.text}"


@pytest.mark.parametrize("seed", [147, 335, 481, 20183, 20188, 20297, 20328, 20361, 30073, 30098, 30361, 4712077])
def test_programs_that_failed_once(seed: int) -> None:
    program = network(seed)
    error = outcome_of("shrink", program).error
    assert not error, f"{error}\n{program.text}"


@settings(SETTINGS, max_examples=20)
@given(st.integers(0, 2**16))
def test_units_of_random_networks_are_interchangeable(seed: int) -> None:
    program = network(seed, ASYMMETRIC)
    error = outcome_of("exchange", program).error
    assert not error, f"{error}\n{program.text}"


def test_a_program_is_the_same_every_time_and_follows_the_batch() -> None:
    one, two = network(7), network(7)
    assert one == two
    for a, b in zip(one.build().parameters(), two.build().parameters(), strict=True):
        assert torch.equal(a, b)
    program, model = network(11), network(11).build()
    for batch in (3, 5):
        outputs = model(*program.arguments(batch))
        assert all(len(t) == batch for t in (outputs if isinstance(outputs, tuple) else (outputs,)))


def test_most_steps_occur_and_most_networks_can_be_pruned() -> None:
    programs = [network(seed) for seed in range(150)]
    kinds = {statement.kind for program in programs for statement in program.statements}
    assert len(kinds & set(STEPS)) > 0.9 * len(STEPS)
    assert sum(check_exchange(program).units > 0 for program in programs[:12]) > 8


def test_minimised_keeps_what_fails() -> None:
    def error_of(program: Program) -> str:
        return "it squeezes" if any(s.kind == "squeeze_excite" for s in program.statements) else ""

    seed = next(seed for seed in range(500) if error_of(network(seed)) and len(network(seed).statements) > 6)
    program = minimised(network(seed), error_of)
    assert error_of(program)
    assert len(program.statements) <= 4
    program.build()(*program.arguments())


def test_the_command_reports(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--law", "exchange", "--programs", "2", "--seed", "5"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("0 failed")
    good = outcome_of("exchange", network(5))
    bad = dataclasses.replace(good, error="results differ by 1.0e+00")
    monkeypatch.setattr("tests.properties.__main__.outcome_of", lambda law, program: bad)
    assert main(["--law", "exchange", "--programs", "1", "--seed", "5", "--whole"]) == 1
    printed = capsys.readouterr().out
    assert "class Net(nn.Module):" in printed
    assert printed.rstrip().endswith("1 failed: seeds 5")
