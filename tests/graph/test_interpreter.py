"""The runner: what its hooks are shown, whose fault a failure is, and in which order a graph takes its inputs."""

from __future__ import annotations

import collections
import doctest
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune.graph import interpreter
from fxprune.graph.interpreter import NodeByNode, NodeRunner, in_order


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(3, 2)

    def forward(self, x: Tensor, scale: float = 2.0, *rest: Tensor) -> Tensor:
        return torch.relu(self.l(x)).mul(scale) + self.l.bias


def traced() -> fx.GraphModule:
    return fx.symbolic_trace(Net())


def test_the_example_of_the_page() -> None:
    names = {"fx": fx, "nn": nn, "torch": torch, "collections": collections, **vars(interpreter)}
    example = doctest.DocTestParser().get_doctest(str(interpreter.__doc__), names, "interpreter", None, 0)
    assert len(example.examples) == 6
    assert doctest.DocTestRunner().run(example).failed == 0


def test_hooks_see_nodes_in_order_and_values() -> None:
    gm, seen = traced(), list[tuple[str, Any]]()

    def before(node: fx.Node) -> None:
        seen.append((node.name, None))

    def after(node: fx.Node, value: Any) -> None:
        seen.append((node.name, value))

    x = torch.randn(4, 3)
    result = NodeRunner(gm, before=before, after=after).run(*in_order(gm, ((x,), {})))
    names = [node.name for node in gm.graph.nodes]
    assert [name for name, _ in seen] == [name for name in names for _ in range(2)]
    assert seen[1][1] is x
    assert seen[-1][1] is result
    assert torch.equal(result, gm(x))


def test_call_stands_for_functions_and_modules() -> None:
    gm, called = traced(), list[Any]()

    def call(function: Any, args: Any, kwargs: Any) -> Any:
        called.append(function)
        return function(*args, **kwargs) * 3 if isinstance(function, nn.Module) else function(*args, **kwargs)

    x = torch.randn(4, 3)
    result = NodeRunner(gm, call=call).run(*in_order(gm, ((x,), {})))
    assert called[0] is gm.l
    assert called[1] is torch.relu
    torch.testing.assert_close(result, torch.relu(gm.l(x) * 3) * 2 + gm.get_parameter("l.bias"))


def test_at_tells_a_failing_node_from_a_failing_hook() -> None:
    gm = traced()
    runner = NodeRunner(gm)
    with pytest.raises(RuntimeError, match="shapes"):
        runner.run(torch.randn(4, 5), 2.0)
    assert runner.at is not None
    assert runner.at.name == "l"

    def fail(*_: Any) -> None:
        raise KeyError("a hook")

    for runner in (NodeRunner(gm, before=fail), NodeRunner(gm, after=fail)):
        with pytest.raises(KeyError, match="a hook"):
            runner.run(torch.randn(4, 3), 2.0)
        assert runner.at is None


@pytest.mark.parametrize("fails", [False, True])
def test_no_value_is_held_after_a_run(fails: bool) -> None:
    gm, held = traced(), list[weakref.ref[Tensor]]()

    def after(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor) and node.op != "get_attr":
            held.append(weakref.ref(value))
        if fails and node.name == "relu":
            raise KeyError("a hook")

    runner = NodeRunner(gm, after=after, keep_values=True)
    if fails:
        with pytest.raises(KeyError):
            runner.run(torch.randn(4, 3), 2.0)
    else:
        runner.run(torch.randn(4, 3), 2.0)
    gc.collect(1)  # of what is new, not of all that other tests keep
    assert len(held) > 2
    assert [value() for value in held if value() is not None] == []


def test_inputs_in_order() -> None:
    class Many(nn.Module):
        def forward(self, x: Tensor, a: int = 1, b: int = 2) -> Tensor:
            return x * a + b

    gm, x = fx.symbolic_trace(Many()), torch.ones(1)
    assert in_order(gm, ((x,), {"b": 7})) == [x, 1, 7]
    assert in_order(gm, ((), {"b": 7, "x": x})) == [x, 1, 7]
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        in_order(gm, ((), {"b": 7}))
    with pytest.raises(TypeError, match="too many positional arguments"):
        in_order(gm, ((x, 1, 2, 3), {}))


def test_as_a_module_other_tensors_take_the_place_of_the_graphs() -> None:
    gm, x = traced(), torch.randn(4, 3)
    zeros = {f"gm.{name}": torch.zeros_like(p) for name, p in gm.named_parameters()}
    assert torch.equal(torch.func.functional_call(NodeByNode(NodeRunner(gm)), zeros, (x, 2.0)), torch.zeros(4, 2))
    assert torch.equal(NodeRunner(gm).run(x, 2.0), gm(x))
