"""Arguments of plans: numbers of any kind, what is no number, and what names nothing."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from fxprune.errors import PlanError, PruningTypeError
from fxprune.planning.planner import plan
from tests.plans import chain, counts

_NO_NUMBERS = (
    True,
    np.bool_(True),
    np.array(0.5),
    np.timedelta64(1),
    torch.tensor(0.5),
    Decimal("0.5"),
    Decimal("sNaN"),
    "0.5",
    0.5 + 0j,
    [0.5],
    float,
)


def _given(argument: str, value: Any) -> dict[str, Any]:
    """Return the arguments of a plan of which one is a value."""
    if argument == "overrides":
        return {"amount": 0.5, "overrides": {"layers.0": value}}
    return {argument: value} if argument != "round_to" else {"amount": 0.5, "round_to": value}


@pytest.mark.parametrize("argument", ["amount", "round_to", "max_params", "max_flops", "overrides"])
def test_what_is_no_number_is_refused(argument: str) -> None:
    deps = chain(3, 8, 6, 2)
    for value in _NO_NUMBERS:
        with pytest.raises(PruningTypeError, match=rf"{argument}.* must be an int or a float, not "):
            plan(deps, **_given(argument, value))
    for number in (float("nan"), float("inf"), -float("inf"), -1, np.float32("nan"), Fraction(10**400, 3), Fraction(-1, 2)):
        with pytest.raises(PlanError, match=argument):
            plan(deps, **_given(argument, number))


@pytest.mark.parametrize("half", [np.float16(0.5), np.float32(0.5), np.longdouble(0.5), Fraction(1, 2)], ids=repr)
def test_numbers_of_any_kind(half: Any) -> None:
    deps = chain(3, 8, 6, 2)
    integers: dict[str, Any] = {"amount": np.int64(2), "round_to": np.uint8(4)}
    for argument in ("amount", "max_params", "max_flops", "overrides"):
        assert counts(plan(deps, **_given(argument, half))) == counts(plan(deps, **_given(argument, 0.5)))
    assert counts(plan(deps, **integers)) == counts(plan(deps, 2, round_to=4))


@pytest.mark.parametrize(
    "ignore", [None, 3, 0.5, torch.tensor(2), np.array(0.5), object()], ids=lambda each: type(each).__name__
)
def test_what_is_no_selection_is_refused(ignore: Any) -> None:
    key: Any = ignore if ignore.__hash__ else 3
    with pytest.raises(PruningTypeError, match="ignore must be an iterable of names, glob patterns and modules, not"):
        plan(chain(3, 4, 2), 0.5, ignore=ignore)
    with pytest.raises(PruningTypeError, match="ignore takes names, glob patterns and modules, not"):
        plan(chain(3, 4, 2), 0.5, ignore=[ignore])
    with pytest.raises(PruningTypeError, match="overrides takes names, glob patterns and modules, not"):
        plan(chain(3, 4, 2), 0.5, overrides={key: 0.5})
