"""Repair: what the code of small modules says about sizes and places is right for what is left."""

from __future__ import annotations

from typing import Any

import pytest

from tests.passes.repair_cases import PARTS, PLACES, VIEWS, Case
from tests.passes.repair_layers import LAYERS
from tests.shrinking import Pruned, assert_equal, assert_sizes, pruned

CASES = VIEWS | PARTS | PLACES | LAYERS

every_case = pytest.mark.parametrize(
    ("case", "frontend"),
    [pytest.param(case, frontend, id=f"{name}-{frontend}") for name, case in CASES.items() for frontend in case.frontends],
)


def pruned_case(case: Case, frontend: str) -> Pruned:
    options: dict[str, Any] = {"amount": 0.5} | dict(case.options)
    return pruned(case.build(), case.inputs(2), options.pop("amount"), frontend, **options)


@every_case
def test_what_is_left_computes_what_the_mask_leaves(case: Case, frontend: str) -> None:
    found = pruned_case(case, frontend)
    assert_sizes(found)
    tensors = dict(found.small.named_parameters()) | dict(found.small.named_buffers())
    assert {name: tuple(tensors[name].shape) for name in case.left} == dict(case.left)
    assert_equal(found, case.inputs(3), training=(False,))
    if "by_mode" in case.body.__name__:
        assert_equal(found, case.inputs(1), training=(True,))
    if frontend == "trace":
        assert {name: str(found.small.get_submodule(name)) for name in case.printed} == dict(case.printed)
