"""Plain Python state of a model: left as it is by a capture, and warned of where it changes from call to call."""

from __future__ import annotations

import collections
import copy
import dataclasses
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.compare import relative_error

FRONTENDS = ("trace", "export")


class Net(nn.Module):
    """One layer, and an attribute that the code under test uses."""

    def __init__(self, kept: Any = None, code: Callable[[Any, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.l, self.kept, self.code = nn.Linear(4, 4), kept, code

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.l(x)
        return y if self.code is None else self.code(self, y)


class ReadOnly(dict[str, Any]):
    """A dict that refuses every change."""

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("read-only")

    __setitem__ = __delitem__ = clear = update = pop = popitem = setdefault = _refuse


def tensors() -> dict[str, Tensor]:
    return {"mean": torch.full((4,), 5.0), "std": torch.full((4,), 2.0)}


def asks_whether_it_is_there(net: Any, y: Tensor) -> Tensor:
    return (y - net.kept["mean"]) / net.kept["std"] if "mean" in net.kept else y


def gets_with_a_default(net: Any, y: Tensor) -> Tensor:
    return y - net.kept.get("mean", torch.zeros(4))


def goes_through(net: Any, y: Tensor) -> Tensor:
    for value in net.kept.values():
        y = y + value
    return y


def looks_up(net: Any, y: Tensor) -> Tensor:
    return y * net.kept["mean"]


@pytest.mark.parametrize("code", [asks_whether_it_is_there, gets_with_a_default, goes_through, looks_up])
@pytest.mark.parametrize("kind", [dict, collections.OrderedDict, ReadOnly])
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_dict_of_constant_tensors_is_there_for_the_code(code: Any, kind: Any, frontend: Any) -> None:
    model, x = Net(kind(tensors()), code).eval(), torch.randn(3, 4)
    before, items = model.kept, dict(model.kept)
    gm = fxprune.capture(model, x, frontend=frontend)
    assert model.kept is before
    assert list(before) == list(items)
    assert all(before[key] is value for key, value in items.items())
    assert relative_error(gm(y := torch.randn(5, 4)), model(y)) == 0


def test_an_interrupt_leaves_dicts_full() -> None:
    def interrupted(net: Any, y: Tensor) -> Tensor:
        net.kept["new"] = y
        raise KeyboardInterrupt

    model = Net(kept := tensors(), interrupted)
    with pytest.raises(KeyboardInterrupt):
        fxprune.capture(model, torch.randn(3, 4))
    assert model.kept is kept
    assert list(kept) == ["mean", "std"]


@dataclasses.dataclass
class State:
    count: int = 1


def counts_in_a_namespace(net: Any, y: Tensor) -> Tensor:
    net.kept.count += 1
    return y * net.kept.count


def counts_in_a_nested_dict(net: Any, y: Tensor) -> Tensor:
    net.kept["a"]["n"] += 1
    return y * net.kept["a"]["n"]


def keeps_a_window(net: Any, y: Tensor) -> Tensor:
    net.kept.append(y.mean().detach())
    return y + sum(net.kept)


def logs(net: Any, y: Tensor) -> Tensor:
    net.kept.append(y.shape[1])
    return y


def remembers_that_it_ran(net: Any, y: Tensor) -> Tensor:
    if net.kept == ():
        net.kept = ("ran",)
        return y * 2
    return y


def keeps_the_last_result(net: Any, y: Tensor) -> Tensor:
    y = y if net.kept is None else y + net.kept
    net.kept = y.detach()
    return y


def keeps_the_first_mean(net: Any, y: Tensor) -> Tensor:
    if net.kept is None:
        net.kept = y.detach().mean(0)
    return y - net.kept


def fills_an_array(net: Any, y: Tensor) -> Tensor:
    net.kept[0] += 1
    return y * float(net.kept[0])


def adds_an_attribute(net: Any, y: Tensor) -> Tensor:
    if hasattr(net, "scale"):
        return y * net.scale
    net.scale = 2.0
    return y


@pytest.mark.parametrize(
    ("kept", "code"),
    [
        (types.SimpleNamespace(count=1), counts_in_a_namespace),
        (State(), counts_in_a_namespace),
        ({"a": {"n": 1}}, counts_in_a_nested_dict),
        (collections.deque([1.0], maxlen=4), keeps_a_window),
        ([], logs),
        ((), remembers_that_it_ran),
        (None, keeps_the_last_result),
        (None, keeps_the_first_mean),
        (np.ones(1), fills_an_array),
        (None, adds_an_attribute),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_state_that_changes_from_call_to_call_is_named_and_left_as_it_was(kept: Any, code: Any, training: bool) -> None:
    model, x = Net(kept, code), torch.randn(3, 4)
    outer = nn.Sequential(model).train(training)
    before = copy.deepcopy(kept)
    name = "0.scale" if code is adds_an_attribute else "0.kept"
    with pytest.warns(fxprune.CaptureWarning, match=f"forward changes the Python value {name},"):
        gm = fxprune.capture(outer, x)
    assert model.kept is kept
    assert kept == before
    assert not hasattr(model, "scale")
    assert relative_error(gm(x), outer(x)) <= 1e-6  # as in the first call


def shows_what_it_computed(net: Any, y: Tensor) -> Tensor:
    net.kept = y
    return y * 2


def collects_anew(net: Any, y: Tensor) -> Tensor:
    net.kept = [y.sum()]
    return y * 2


def computes_positions_once(net: Any, y: Tensor) -> Tensor:
    if net.kept is None:
        net.kept = torch.arange(4.0)
    return y + net.kept


def caches_by_width(net: Any, y: Tensor) -> Tensor:
    net.kept = {} if net.kept is None else net.kept
    if 4 not in net.kept:
        net.kept[4] = net.l.weight.detach().sum(0)
    return y + net.kept[4]


@pytest.mark.parametrize("code", [shows_what_it_computed, collects_anew, computes_positions_once, caches_by_width])
@pytest.mark.parametrize("training", [False, True])
def test_what_changes_no_later_call_is_not_warned_of(code: Any, training: bool) -> None:
    model, x = Net(None, code).train(training), torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = fxprune.capture(model, x)
    assert model.kept is None
    model(x)
    assert relative_error(gm(y := torch.randn(5, 4)), model(y)) <= 1e-6


def test_states_of_models_that_ask_for_values_are_compared_by_numbers() -> None:
    def asks(net: Any, y: Tensor) -> Tensor:
        y = y * net.scale.item()
        y = y if net.kept is None else y + net.kept
        net.kept = y.detach()
        return y

    model = Net(None, asks)
    model.register_buffer("scale", torch.tensor(2.0))
    with pytest.warns(fxprune.CaptureWarning, match="forward changes the Python value kept"):
        fxprune.capture(model, torch.randn(3, 4))
    model.code = lambda net, y: shows_what_it_computed(net, y * net.scale.item())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxprune.capture(model, torch.randn(3, 4))


def counts_on_the_class(net: Any, y: Tensor) -> Tensor:
    type(net).calls += 1
    return y * type(net).calls


def fills_a_dict_of_the_class(net: Any, y: Tensor) -> Tensor:
    net.shared.setdefault("first", y.detach().mean(0))
    return y - net.shared["first"]


def adds_to_the_class(net: Any, y: Tensor) -> Tensor:
    if hasattr(type(net), "ran"):
        return y * 2
    type(net).ran = True
    return y


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (counts_on_the_class, "OfClass.calls"),
        (fills_a_dict_of_the_class, "OfClass.shared"),
        (adds_to_the_class, "OfClass.ran"),
    ],
)
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_state_of_the_class_is_named_and_left_as_it_was(code: Any, name: str, frontend: Any) -> None:
    class OfClass(Net):
        calls = 1
        shared: dict[str, Tensor] = {}  # noqa: RUF012

    attributes = dict(vars(OfClass))
    with pytest.warns(fxprune.CaptureWarning, match=f"forward changes the Python value {name}[,;]"):
        fxprune.capture(OfClass(None, code), torch.randn(3, 4), frontend=frontend)
    assert dict(vars(OfClass)) == attributes
    assert OfClass.shared == {}
