"""Random: draws that repeat, or not."""

from __future__ import annotations

import pytest
import torch

from fxprune.errors import PruningTypeError
from fxprune.importance import Random
from fxprune.planning.planner import plan
from tests.importance.nets import deps_of, net


def test_seeds_repeat() -> None:
    deps = deps_of(net())
    texts = [plan(deps, 0.5, importance=Random(seed)).to_json() for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_generators_move_on() -> None:
    deps = deps_of(net())
    generator = torch.Generator().manual_seed(0)
    texts = [plan(deps, 0.5, importance=Random(generator)).to_json() for _ in range(2)]
    assert texts[0] != texts[1]
    assert texts[0] == plan(deps, 0.5, importance=Random(0)).to_json()


def test_without_a_seed_torch_draws() -> None:
    deps = deps_of(net())
    texts = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            texts.append(plan(deps, 0.5, importance=Random()).to_json())
    assert texts[0] == texts[1] != texts[2]


def test_a_seed_leaves_torchs_own_numbers_alone() -> None:
    deps = deps_of(net())
    before = torch.random.get_rng_state()
    plan(deps, 0.5, importance=Random(0))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("seed", [True, 0.5, "0"])
def test_other_seeds(seed: object) -> None:
    with pytest.raises(PruningTypeError, match=r"seed must be an int, a torch.Generator or None"):
        Random(seed)  # type: ignore[arg-type]
