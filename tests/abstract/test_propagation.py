"""Propagation: the table of what calls give is bounded, and can be emptied; results are described to be made once more."""

from __future__ import annotations

import pytest
import torch

from fxprune.abstract.form import Form, IncomparableError, frozen, thawed
from fxprune.abstract.propagation import Effect, Propagation

X = torch.empty(2, 3, device="meta")


def test_at_most_so_many_effects_are_known() -> None:
    propagation, effect = Propagation(most=2), Effect.of(X, [])
    keys = [propagation.key(torch.relu, frozen((n,), []), [X], [Form.of(X)]) for n in range(3)]
    for key in keys:
        propagation.remember(key, effect)
    assert [propagation.known(key) for key in keys] == [None, None, effect]
    propagation.clear()
    assert propagation.known(keys[2]) is None


def test_nothing_is_known_of_a_call_that_has_no_key() -> None:
    propagation = Propagation()
    propagation.remember(None, Effect.of(X, []))
    assert propagation.known(None) is None


def test_results_are_made_once_more_in_their_structure() -> None:
    part = X[1:]
    effect = Effect.of((X, [part, 3], X.shape), [X])
    other = torch.empty(5, 5, device="meta")
    same, (made, number), shape = effect.result([other].__getitem__, lambda form, base, offset: form.on_meta())
    assert same is other
    assert (Form.of(made), number, shape) == (Form.of(part), 3, torch.Size([2, 3]))
    assert [(output.shares, output.offset) for output in effect.outputs] == [(None, 0), (0, 3), (None, 0), (None, 0)]


def test_a_result_that_somebody_may_change_is_not_given_twice() -> None:
    with pytest.raises(IncomparableError, match="a result of type Generator"):
        Effect.of((X, torch.Generator()), [X])


@pytest.mark.parametrize("kind", [torch.complex64, torch.float32])
def test_a_tensor_whose_elements_are_not_what_is_in_memory_has_no_form(kind: torch.dtype) -> None:
    x = torch.zeros(2, dtype=torch.complex64)
    with pytest.raises(IncomparableError, match="not in plain memory"):
        Form.of(x.conj() if kind.is_complex else x.conj().imag)


def test_frozen_arguments_tell_all_numbers_apart() -> None:
    numbers = [0, False, 0.0, -0.0, 0j, "0", None, (0,), [0], (False,), ..., slice(0), {"a": 0}]
    assert len({frozen(number, []) for number in numbers}) == len(numbers)
    assert len({frozen([number], []) for number in numbers}) == len(numbers)
    for number in numbers:
        assert repr(thawed(frozen([number], []), iter([]))) == repr([number])
