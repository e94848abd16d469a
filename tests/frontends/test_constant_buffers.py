"""Buffers whose values the model's code needs as numbers: the graph has the numbers, and checks the buffers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune

Code = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, code: Code) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last, self.code = nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Linear(16, 2), code
        self.heads, self.scale = nn.Buffer(torch.tensor(4)), nn.Buffer(torch.tensor([2.5], dtype=torch.double))
        self.strides, self.use = nn.Buffer(torch.tensor([8, 16, 32])), nn.Buffer(torch.tensor(True), persistent=False)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.code(self, self.norm(self.first(x)))))


def by_heads(net: Any, x: Tensor) -> Tensor:
    heads = int(net.heads)
    return x.view(x.shape[0], heads, 16 // heads).transpose(1, 2).reshape(x.shape[0], 16)


def by_item(net: Any, x: Tensor) -> Tensor:
    return x * 2 if net.heads.item() > 3 else x


def whole_part(net: Any, x: Tensor) -> Tensor:
    return x * int(net.scale)


def by_float(net: Any, x: Tensor) -> Tensor:
    return torch.nn.functional.leaky_relu(x, float(net.scale))


def by_flag(net: Any, x: Tensor) -> Tensor:
    return x.abs() if net.use else x


def loop(net: Any, x: Tensor) -> Tensor:
    for stride in net.strides:
        x = x + 1 / int(stride)
    return x


def largest(net: Any, x: Tensor) -> Tensor:
    return x[:, :16] if net.strides.max() == 32 and int(net.strides[-1] - net.strides[0]) == 24 else x[:, :2]


def with_a_size(net: Any, x: Tensor) -> Tensor:
    return x * 3 if net.heads < x.shape[1] else x


CODES: list[Code] = [by_heads, by_item, whole_part, by_float, by_flag, loop, largest, with_a_size]
X = torch.randn(3, 4, dtype=torch.double, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("code", CODES)
def test_the_graph_has_the_number(code: Code) -> None:
    model = Net(code).eval()
    gm = fxprune.capture(model, X, frontend="trace")
    small = fxprune.prune(model, X, 0.5)
    assert small.get_parameter("last.weight").shape[1] == 8
    for training in (True, False):
        for x in (X, torch.randn(7, 4).double()):
            expected = copy.deepcopy(model).train(training)(x)
            torch.testing.assert_close(copy.deepcopy(gm).train(training)(x), expected, rtol=1e-9, atol=1e-9)


CHANGES: list[Callable[[nn.Module], Any]] = [
    lambda gm: gm.load_state_dict(gm.state_dict() | {"heads": torch.tensor(2)}),
    lambda gm: gm.get_buffer("heads").fill_(8),
    lambda gm: setattr(gm, "heads", torch.tensor(8)),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda gm: pickle.loads(pickle.dumps(gm))])
def test_another_value_is_an_error(change: Any, copied: Any) -> None:
    gm = copied(fxprune.capture(Net(by_heads).eval(), X))
    gm(X)
    change(gm)
    with pytest.raises(
        RuntimeError, match=r"buffer 'heads', by which the model's code decides, was 4.*capture the model again"
    ):
        gm(X)


def test_the_check_goes_where_the_graph_goes() -> None:
    gm = fxprune.capture(Net(by_heads).eval(), X)
    expected = gm(X)
    script = fxprune.to_torchscript(copy.deepcopy(gm), X)
    torch.testing.assert_close(script(X), expected, rtol=1e-9, atol=1e-9)
    script.heads.fill_(2)
    with pytest.raises(Exception, match="buffer 'heads', by which"):
        script(X)
    torch.testing.assert_close(fxprune.to_exported_program(gm, X).module()(X), expected, rtol=1e-9, atol=1e-9)
    compiled = torch.compile(gm, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), expected, rtol=1e-9, atol=1e-9)
    gm.get_buffer("heads").fill_(2)
    with pytest.raises(RuntimeError) as raised:  # torch fails on the way of the error, and raises another
        compiled(X)
    assert "buffer 'heads', by which" in f"{raised.value} {raised.value.__context__}"


def test_another_precision_is_the_same_value() -> None:
    model = Net(whole_part)
    model.scale.fill_(8.1)
    gm = fxprune.capture(model.eval(), X)
    for dtype in (torch.float, torch.half, torch.bfloat16):
        copy.deepcopy(gm).to(dtype)(X.to(dtype))


def counts(net: Any, x: Tensor) -> Tensor:
    net.heads.add_(1)
    return x * int(net.heads)


def counts_later(net: Any, x: Tensor) -> Tensor:
    y = x * int(net.heads)
    net.heads += 1
    return y


def of_a_view(net: Any, x: Tensor) -> Tensor:
    net.strides[0].mul_(2)
    return x * int(net.strides[0])


@pytest.mark.parametrize("code", [counts, counts_later, of_a_view])
def test_a_buffer_that_the_model_writes_to_is_no_constant(code: Code) -> None:
    with pytest.raises(fxprune.CaptureError, match="trace: "):
        fxprune.capture(Net(code).eval(), X, frontend="trace")


def test_a_buffer_next_to_the_batch_size() -> None:
    def by_batch(net: Any, x: Tensor) -> Tensor:
        return x * 3 if net.heads < x.shape[0] else x

    with pytest.raises(fxprune.CaptureError, match=r"trace: .*depends on the batch size"):
        fxprune.capture(Net(by_batch).eval(), X, frontend="trace")


def test_parameters_and_large_buffers_are_no_constants() -> None:
    def by_parameter(net: Any, x: Tensor) -> Tensor:
        return x * 3 if net.norm.weight.sum() > 1 else x

    def by_table(net: Any, x: Tensor) -> Tensor:
        return x * 3 if net.table.sum() > 1 else x

    for code in (by_parameter, by_table):
        model = Net(code).eval()
        model.table = nn.Buffer(torch.ones(1000))
        with pytest.raises(fxprune.CaptureError, match="the code needs the value of node 'gt'"):
            fxprune.capture(model, X, frontend="trace")
