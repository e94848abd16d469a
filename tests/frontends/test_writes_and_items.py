"""What forward writes into its inputs, and inputs with other items than those of the example."""

from __future__ import annotations

import collections
import copy
import dataclasses
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.compare import relative_error

FRONTENDS = ("trace", "export")


class Net(nn.Module):
    def __init__(self, code: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.l, self.code = nn.Linear(4, 4), code

    def forward(self, x: Any) -> Any:
        return self.code(self, x)


def adds(net: Any, x: Tensor) -> Any:
    x += 1
    return net.l(x)


def scales_twice(net: Any, x: Tensor) -> Any:
    x *= 2
    x -= 1
    return net.l(x)


def divides_behind_a_use(net: Any, x: Tensor) -> Any:
    y = net.l(x)
    x /= 2
    return y + x


def raises_to_a_power(net: Any, x: Tensor) -> Any:
    x **= 2
    return net.l(x)


def through_a_view(net: Any, x: Tensor) -> Any:
    y = x[:, :2]
    y += 1
    return net.l(x)


def through_a_reshape(net: Any, x: Tensor) -> Any:
    y = x.view(-1)
    y += 1
    return net.l(x)


def a_part(net: Any, x: Tensor) -> Any:
    x[:, 0] += 1
    return net.l(x)


def by_method(net: Any, x: Tensor) -> Any:
    return net.l(x.clamp_(min=0))


@pytest.mark.parametrize(
    "code",
    [adds, scales_twice, divides_behind_a_use, raises_to_a_power, through_a_view, through_a_reshape, a_part, by_method],
)
@pytest.mark.parametrize("training", [False, True])
def test_the_graph_writes_to_its_input_as_the_model_does(code: Any, training: bool) -> None:
    model, x = Net(code).train(training), torch.randn(3, 4)
    before = x.clone()
    gm = fxprune.capture(model, x)
    assert torch.equal(x, before)
    a, b = (torch.randn(5, 4) for _ in range(2))
    b.copy_(a)
    assert relative_error(gm(a), model(b)) <= 1e-6
    assert torch.equal(a, b)


def test_a_number_counts_for_itself() -> None:
    def counts(net: Any, x: Any) -> Any:
        n = x[1]
        n += 1
        return net.l(x[0]) * x[1] + n

    model, x = Net(counts), torch.randn(3, 4)
    gm = fxprune.capture(model, ((x, 3),))
    assert relative_error(gm((x, 3)), model((x, 3))) <= 1e-6


def test_a_tensor_in_a_container_is_written_to() -> None:
    def inside(net: Any, batch: Any) -> Any:
        batch["x"] += 1
        return net.l(batch["x"])

    model = Net(inside)
    gm = fxprune.capture(model, ({"x": torch.zeros(3, 4)},))
    gm({"x": (y := torch.zeros(2, 4))})
    assert torch.equal(y, torch.ones(2, 4))


@dataclasses.dataclass
class Batch:
    x: Tensor
    y: Tensor | None = None


def sets_an_item(net: Any, batch: Any) -> Any:
    batch["y"] = net.l(batch["x"])
    return batch["y"]


def pops_an_item(net: Any, batch: Any) -> Any:
    return net.l(batch.pop("x"))


def appends(net: Any, batch: Any) -> Any:
    batch.append(net.l(batch[0]))
    return batch[-1]


def sets_a_field(net: Any, batch: Any) -> Any:
    batch.y = net.l(batch.x)
    return batch.y


def renames_a_setting(net: Any, batch: Any) -> Any:
    batch["settings"]["name"] = "b"
    return net.l(batch["x"])


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda x: {"x": x}, sets_an_item),
        (lambda x: {"x": x}, pops_an_item),
        (lambda x: [x], appends),
        (lambda x: Batch(x), sets_a_field),
        (lambda x: {"x": x, "settings": {"name": "a"}}, renames_a_setting),
    ],
)
def test_items_and_fields_that_forward_writes_are_warned_of(make: Any, code: Any) -> None:
    model, x = Net(code), torch.randn(3, 4)
    example = make(x)
    before = copy.deepcopy(example)
    with pytest.warns(fxprune.CaptureWarning, match="forward changes its input 'x'"):
        gm = fxprune.capture(model, (example,))
    assert str(example) == str(before)
    assert relative_error(gm(make(x)), model(make(x))) <= 1e-6


def test_a_frontend_passes_the_example_on_as_a_copy() -> None:
    def writes(net: Any, batch: Any) -> Any:
        batch[1]["scale"] += 1
        return net.l(batch[0]) * batch[1]["scale"]

    model, settings = Net(writes), {"scale": 2}
    for frontend in FRONTENDS:
        with pytest.warns(fxprune.CaptureWarning, match="forward changes its input 'x'"):
            gm = fxprune.capture(model, ([torch.randn(3, 4), settings],), frontend=frontend)  # type: ignore[arg-type]
        assert settings == {"scale": 2}
        assert relative_error(gm([y := torch.randn(3, 4), {"scale": 2}]), model([y, {"scale": 2}])) <= 1e-6


def sums(net: Any, parts: Any) -> Any:
    return sum(net.l(part) for part in parts)


def masked(net: Any, batch: Any) -> Any:
    y = net.l(batch["x"])
    return y * batch["mask"] if "mask" in batch else y


def nested(net: Any, batch: Any) -> Any:
    return sum(net.l(part) for part in batch["parts"])


@pytest.mark.parametrize(
    ("code", "example", "others"),
    [
        (sums, ["x", "x"], [["x", "x", "x"], ["x"], []]),
        (sums, ("x", "x"), [("x", "x", "x"), ("x",)]),
        (masked, {"x": "x"}, [{"x": "x", "mask": "x"}, {"mask": "x"}]),
        (masked, collections.OrderedDict(x="x", z="x"), [collections.OrderedDict(x="x", mask="x")]),
        (nested, {"parts": ["x", "x"]}, [{"parts": ["x", "x", "x"]}, {"parts": ["x"]}, {"parts": ["x", "x"], "y": "x"}]),
    ],
)
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_other_items_than_the_examples_are_refused(code: Any, example: Any, others: list[Any], frontend: Any) -> None:
    def filled(value: Any) -> Any:
        return torch.utils._pytree.tree_map(lambda _: torch.randn(3, 4), value)

    model = Net(code)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = fxprune.capture(model, (filled(example),), frontend=frontend)
    for graph in (gm, pickle.loads(pickle.dumps(gm)), copy.deepcopy(gm)):
        assert relative_error(graph(given := filled(example)), model(given)) <= 1e-6
        for other in others:
            with pytest.raises((AssertionError, RuntimeError), match=r"capture the model again for other items|different"):
                graph(filled(other))
