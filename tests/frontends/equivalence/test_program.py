"""A graph and its model compared as programs: what is told apart, what needs numbers, and what stays as it was."""

from __future__ import annotations

import functools
import gc
import operator
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call
from torch.nn import functional as F

import fxprune
from fxprune.abstract.propagation import PROPAGATION, Traits
from fxprune.errors import CaptureError
from fxprune.frontends.equivalence import check, numbering
from fxprune.frontends.equivalence.check import check_against_model
from fxprune.frontends.equivalence.numbering import Execution, Numbering, NumberingError
from fxprune.frontends.equivalence.program import Programs
from fxprune.frontends.model.snapshot import ModelSnapshot
from fxprune.graph.captured import CapturedModule
from fxprune.torch_internals.tensors import pytree
from tests.compare import relative_error
from tests.nets import ConvNet, SequenceNet


class NumbersError(AssertionError):
    """Numbers were asked for."""


@pytest.fixture
def no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    compare = check._check_numbers

    def fail(gm: Any, model: Any, inputs: Any, runner: Any) -> Any:
        # One sample or none, which costs little, and which a batch norm may refuse in the other mode.
        if any(isinstance(t, Tensor) and t.dim() and t.shape[0] < 2 for t in pytree.tree_leaves(inputs)):
            return compare(gm, model, inputs, runner)
        raise NumbersError

    monkeypatch.setattr(check, "_check_numbers", fail)


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with each check by numbers."""
    asked: list[str] = []
    checked = check._check_numbers

    def note(run: Any, model: nn.Module, *args: Any) -> Any:
        asked.append(type(model).__name__)
        return checked(run, model, *args)

    monkeypatch.setattr(check, "_check_numbers", note)
    return asked


class Net(nn.Module):
    """Does a little of everything."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.l, self.m = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.l(x)) - self.m(x)
        self.average.mul_(0.9)
        self.average.add_(y.mean(0), alpha=0.1)
        noise = torch.rand_like(y) + torch.randn_like(y)
        y = F.dropout(torch.cat([y, y * 2.0], 1), 0.5, True)[:, 2:6]
        y += noise
        return y.relu() + torch.tensor([1.0, 2.0, 3.0, 4.0])


def x() -> Tensor:
    return torch.randn(3, 4)


def only(gm: fx.GraphModule, target: Any) -> fx.Node:
    [node] = [n for n in gm.graph.nodes if n.target == target or n.target is target]
    return node


def another_operator(gm: fx.GraphModule) -> None:
    only(gm, "relu").target = "tanh"


def swapped_operands(gm: fx.GraphModule) -> None:
    node = only(gm, operator.sub)
    node.args = (node.args[1], node.args[0])


def another_number(gm: fx.GraphModule) -> None:
    only(gm, operator.mul).args = (only(gm, operator.mul).args[0], 2)


def another_slice(gm: fx.GraphModule) -> None:
    node = next(n for n in gm.graph.nodes if n.target is operator.getitem)
    node.args = (node.args[0], (slice(None), slice(3, 7)))


def another_constant(gm: fx.GraphModule) -> None:
    node = next(n for n in gm.graph.nodes if n.op == "get_attr" and "constant" in str(n.target))
    setattr(gm, str(node.target), torch.tensor([1.0, 2.0, 3.0, 5.0]))


def another_parameter(gm: fx.GraphModule) -> None:
    only(gm, "l").target = "m"


def another_eps(gm: fx.GraphModule) -> None:
    gm.norm.eps = 1e-4  # type: ignore[union-attr]


def dropped_update(gm: fx.GraphModule) -> None:
    gm.graph.erase_node(only(gm, "add_"))


def dropped_statistics(gm: fx.GraphModule) -> None:
    gm.norm.training = False  # type: ignore[union-attr]


def swapped_updates(gm: fx.GraphModule) -> None:
    mul, add = only(gm, "mul_"), only(gm, "add_")
    add.append(mul)


def other_layout(gm: fx.GraphModule) -> None:
    draw = only(gm, torch.rand_like)
    with gm.graph.inserting_before(draw):
        transposed = gm.graph.call_method("t", draw.args)
        copied = gm.graph.call_method("contiguous", (transposed,))
        draw.args = (gm.graph.call_method("t", (copied,)),)


def swapped_draws(gm: fx.GraphModule) -> None:
    rand, randn = only(gm, torch.rand_like), only(gm, torch.randn_like)
    randn.append(rand)


def earlier_draw(gm: fx.GraphModule) -> None:
    dropout = only(gm, F.dropout)
    dropout.append(only(gm, torch.rand_like))
    only(gm, torch.rand_like).append(only(gm, torch.randn_like))
    noise = next(n for n in gm.graph.nodes if only(gm, torch.randn_like) in n.all_input_nodes)
    only(gm, torch.randn_like).append(noise)


def another_structure(gm: fx.GraphModule) -> None:
    output = gm.graph.output_node()
    output.args = ((output.args[0],),)


CHANGES = [
    another_operator,
    swapped_operands,
    another_number,
    another_slice,
    another_constant,
    another_parameter,
    another_eps,
    dropped_update,
    dropped_statistics,
    swapped_updates,
    other_layout,
    swapped_draws,
    earlier_draw,
    another_structure,
]


@pytest.mark.usefixtures("no_numbers")
@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_graph_is_not_the_same_program(change: Callable[[fx.GraphModule], None]) -> None:
    model = Net().train()
    gm = fxprune.capture(model, y := x(), frontend="trace")
    check_against_model(gm, model, (y,), {})
    change(gm)
    gm.graph.lint()
    with pytest.raises(NumbersError):
        check_against_model(gm, model, (y,), {})


@pytest.mark.usefixtures("no_numbers")
@pytest.mark.parametrize(
    ("kind", "example", "frontend", "training"),
    [
        (Net, x, "trace", True),
        (Net, x, "export", False),
        (ConvNet, lambda: torch.randn(2, 3, 6, 6), "trace", True),
        (ConvNet, lambda: torch.randn(2, 3, 6, 6), "export", True),
        (SequenceNet, lambda: torch.randint(0, 11, (2, 5)), "trace", False),
    ],
)
def test_right_graphs_need_no_numbers(kind: type[nn.Module], example: Any, frontend: Any, training: bool) -> None:
    fxprune.capture(kind().train(training), example(), frontend=frontend)


@pytest.mark.usefixtures("no_numbers")
def test_independent_calls_may_come_in_another_order_and_dead_ones_may_go() -> None:
    class Two(Net):
        def forward(self, x: Tensor) -> Tensor:
            _ = self.l.weight.exp()
            a, b = self.l(x), self.m(x)
            return a * b

    model = Two()
    gm = fxprune.capture(model, y := x(), frontend="trace")
    for node in [n for n in gm.graph.nodes if n.target == "exp"]:
        gm.graph.erase_node(node)
    only(gm, "m").append(only(gm, "l"))
    check_against_model(gm, model, (y,), {})


def clone_between(gm: fx.GraphModule) -> None:
    view = only(gm, "view")
    with gm.graph.inserting_before(view):
        view.args = (gm.graph.call_method("clone", (view.args[0],)), *view.args[1:])


def write_after(gm: fx.GraphModule) -> None:
    only(gm, torch.neg).append(only(gm, "add_"))


@pytest.mark.usefixtures("no_numbers")
@pytest.mark.parametrize("change", [clone_between, write_after])
def test_a_write_through_a_view_is_seen_in_what_it_shows(change: Callable[[fx.GraphModule], None]) -> None:
    class Writes(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.l(x)
            y.view(-1).add_(1)
            return torch.neg(y)

    model = Writes()
    gm = fxprune.capture(model, y := x(), frontend="trace")
    check_against_model(gm, model, (y,), {})
    change(gm)
    with pytest.raises(NumbersError):
        check_against_model(gm, model, (y,), {})


@pytest.mark.usefixtures("no_numbers")
def test_writes_to_different_parts_of_a_constant_are_different() -> None:
    class Fills(Net):
        def forward(self, x: Tensor) -> Tensor:
            made = torch.zeros(2, 4)
            made[1] = self.l(x)[0]
            return made + 1

    class FillsOther(Fills):
        def forward(self, x: Tensor) -> Tensor:
            made = torch.zeros(2, 4)
            made[0] = self.l(x)[0]
            return made + 1

    model, other = Fills(), FillsOther()
    gm = fxprune.capture(model, y := x(), frontend="export")
    other.l, other.m = model.l, model.m
    check_against_model(gm, model, (y,), {})
    with pytest.raises(NumbersError):
        check_against_model(gm, other, (y,), {})


@pytest.mark.usefixtures("no_numbers")
def test_dropout_in_eval_mode_gives_its_argument_not_a_copy() -> None:
    class Drops(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.l(x)
            F.dropout(y, 0.5, False).add_(1)
            return y * 2

    model = Drops()
    gm = fxprune.capture(model, y := x(), frontend="trace")
    check_against_model(gm, model, (y,), {})
    drop = only(gm, F.dropout)
    drop.target, drop.args, drop.kwargs = torch.clone, drop.args[:1], {}
    with pytest.raises(NumbersError):
        check_against_model(gm, model, (y,), {})


class AsksForAValue(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.l(x) * (2 if x.sum().item() > -1e9 else 3)


class AsksForAList(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.l(x) * (2 if sum(x[0].tolist()) > -1e9 else 3)


class AsksForAnArray(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.l(x) * (2 if x.detach().numpy().sum() > -1e9 else 3)


class WrapsInAParameter(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.l(nn.Parameter(x)) * 2


class AsksForEquality(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.l(x) * (2 if torch.equal(x, x.clone()) else 3)


class AsksForPlaces(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.l(x) * (2 if len(x.nonzero()) > 0 else 3)


class Seeds(Net):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return self.l(x) * 2 + 0 * torch.rand(4)


def plain_graph(model: Net) -> CapturedModule:
    class Plain(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.l(x) * 2

    plain = Plain()
    plain.__dict__.update(model.__dict__)
    return fxprune.capture(plain, x(), frontend="trace")


KINDS = [AsksForAValue, AsksForAList, AsksForAnArray, AsksForEquality, AsksForPlaces, WrapsInAParameter, Seeds]


@pytest.mark.parametrize("kind", KINDS)
def test_what_depends_on_values_is_compared_by_numbers(kind: type[Net], numbers: list[str]) -> None:
    model = kind()
    gm = plain_graph(model)
    assert numbers == []
    check_against_model(gm, model, (x(),), {}, record=True)
    assert numbers == [kind.__name__]
    assert all(isinstance(n.meta["val"], FakeTensor) for n in gm.graph.nodes if n.op == "call_module")


def test_constants_have_values(no_numbers: None) -> None:
    class Linspace(Net):
        def forward(self, x: Tensor) -> Tensor:
            for rate in torch.linspace(0, 1, 3):
                x = self.l(x) * rate.item() if rate > 0.1 else x
            return x

    model = Linspace()
    gm = fxprune.capture(model, y := x(), frontend="trace")
    assert relative_error(gm(y), model(y)) == 0


def test_code_that_asks_what_tensors_are_goes_the_way_of_a_real_run(no_numbers: None) -> None:
    class Asks(Net):
        def forward(self, x: Tensor) -> Tensor:
            kinds = type(x), type(self.l.weight), self.l.weight.requires_grad, x.device.type, x.is_leaf
            assert kinds == (Tensor, nn.Parameter, True, "cpu", True)
            return self.l(x) * 2

    model = Asks()
    check_against_model(plain_graph(model), model, (x(),), {})


def test_attention_takes_the_fused_kernel_as_in_a_real_run(no_numbers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    calls: list[int] = []
    fused = torch._native_multi_head_attention

    def note(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(args))
        return fused(*args, **kwargs)

    monkeypatch.setattr(torch, "_native_multi_head_attention", note)
    fxprune.capture(Attends().eval(), torch.randn(2, 3, 8), frontend="trace")
    assert calls


_seen: dict[str, Tensor] = {}


@functools.lru_cache
def positions(size: int) -> Tensor:
    return torch.arange(size) * 2.0


class Keeps(Net):
    """Keeps what it computes on itself, and where nobody looks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.nested: dict[str, dict[str, Tensor]] = {"a": {}}

    def forward(self, x: Tensor) -> Tensor:
        y = self.l(x) * positions(4)
        self.last = self.l.weight + 1
        made = torch.zeros(2, 4)
        made[1] = y[1]
        self.nested["a"].update(y=y)
        _seen.update(y=y, made=made, weight=self.l.weight, view=y[:, :2])
        return y


@pytest.mark.usefixtures("no_numbers")
def test_what_the_model_keeps_elsewhere_is_as_after_a_real_run() -> None:
    class KeepsNothing(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.l(x) * torch.tensor([0.0, 2.0, 4.0, 6.0])

    model, like, y = Keeps(), KeepsNothing(), x()
    like.__dict__.update({k: v for k, v in vars(model).items() if k != "nested"})
    expected = like(y).detach()
    gm = fxprune.capture(like, y, frontend="trace")
    check_against_model(gm, model, (y,), {})
    kept = _seen
    assert "last" not in vars(model)
    assert model.nested == {"a": {}}
    assert torch.equal(positions(4), torch.arange(4) * 2.0)
    assert torch.equal(kept["y"], expected)
    assert torch.equal(kept["made"], torch.stack([torch.zeros(4), expected[1]]))
    assert torch.equal(kept["weight"], model.l.weight)
    assert torch.equal(_seen["view"], expected[:, :2])
    kept["y"].numpy()


@pytest.mark.usefixtures("no_numbers")
def test_a_parameter_that_gets_other_data_is_noticed_and_keeps_its_own() -> None:
    class Assigns(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.l.weight.data = self.l.weight.data * 2.0
            return self.l(x) * 2

    model = Assigns()
    gm, before = plain_graph(model), model.l.weight.detach().clone()
    with pytest.raises(NumbersError):
        check_against_model(gm, model, (x(),), {})
    assert torch.equal(model.l.weight, before)


@pytest.mark.usefixtures("no_numbers")
def test_values_are_recorded_as_fake_tensors() -> None:
    gm = fxprune.capture(Net().train(), x(), frontend="trace")
    values = {n.name: n.meta["val"] for n in gm.graph.nodes if isinstance(n.meta.get("val"), Tensor)}
    assert all(isinstance(v, FakeTensor) and v.fake_mode is values["x"].fake_mode for v in values.values())
    assert values["x"].shape == (3, 4)
    assert values["cat"].shape == (3, 8)
    assert values["cat"].device == torch.device("cpu")


class Repeats(nn.Module):
    """Calls the same layers again, on the same values and on others, one of them in place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act, self.turn = nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Flatten(0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x) + self.norm(x)  # the second leaves other statistics behind
        z = self.turn(y)
        self.act(y)
        return z + self.turn(self.act(y * -1))


def one_call_for_two(gm: fx.GraphModule) -> None:
    first, second = [n for n in gm.graph.nodes if n.target == "norm"]
    second.replace_all_uses_with(first)
    gm.graph.erase_node(second)


def dropped_write(gm: fx.GraphModule) -> None:
    gm.graph.erase_node(next(n for n in gm.graph.nodes if n.target == "act"))


def later_write(gm: fx.GraphModule) -> None:
    only(gm, operator.mul).append(next(n for n in gm.graph.nodes if n.target == "act"))


@pytest.mark.usefixtures("no_numbers")
@pytest.mark.parametrize("change", [one_call_for_two, dropped_write, later_write])
def test_layers_that_are_called_again(change: Callable[[fx.GraphModule], None]) -> None:
    model = Repeats().train()
    gm = fxprune.capture(model, y := x(), frontend="trace")
    check_against_model(gm, model, (y,), {})
    change(gm)
    with pytest.raises(NumbersError):
        check_against_model(gm, model, (y,), {})


_SEEN: list[Tensor] = []


def test_results_of_layers_that_are_called_again_are_real_where_code_keeps_them() -> None:
    class Keeps(Repeats):
        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            kept = self.norm(x)
            if type(x) is Tensor:
                _SEEN.append(kept)
            return y * 2 + kept

    model = Keeps().eval()
    _SEEN.clear()
    fxprune.capture(model, y := x(), frontend="trace")
    assert _SEEN
    for kept in _SEEN:
        torch.testing.assert_close(kept, model.norm(y))


def _number(layer: nn.Module, numbering: Numbering) -> int:
    """Return the number of what a layer gives."""
    execution = Execution(numbering)
    y = execution.stand_in(torch.zeros(2, 3, 4), "x")
    state = {name: execution.stand_in(t, name) for name, t in layer.named_parameters()}
    with execution.running():
        return execution.number(functional_call(layer, state, (y,)))


class _Scale:
    factor = 1.0

    def activation(self) -> Callable[[Tensor], Tensor]:
        return lambda x: F.relu(x) if self.factor == 1 else x


def _number_of_changing_function() -> weakref.ref[_Scale]:
    scale, numbering = _Scale(), Numbering(PROPAGATION)
    layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, scale.activation(), batch_first=True).eval()
    first = _number(layer, numbering)
    assert _number(layer, numbering) == first
    scale.factor = 2.0
    assert _number(layer, numbering) != first
    return weakref.ref(scale)


def test_a_function_of_the_model_is_not_kept_alive_and_may_change() -> None:
    scale = _number_of_changing_function()
    gc.collect()
    assert scale() is None


def test_a_method_of_a_layer_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, numbering = nn.Conv1d(3, 2, 1), Numbering(PROPAGATION)
    first = _number(layer, numbering)
    assert _number(layer, numbering) == first
    monkeypatch.setattr(nn.Conv1d, "_conv_forward", lambda self, x, weight, bias: F.conv1d(x, weight, bias).sin())
    assert _number(layer, numbering) != first


@pytest.mark.usefixtures("no_numbers")
@pytest.mark.parametrize("mode", [True, False])
def test_a_pool_may_lay_its_result_out_anew(mode: bool) -> None:
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.pool = nn.LayerNorm(4), nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # channels last, for which torch has a way of its own
            return self.pool(x).flatten(1) + F.adaptive_avg_pool2d(x, 1).flatten(1)

    model = Pools().train(mode)
    gm = fxprune.capture(model, y := torch.randn(2, 4, 3, 3), frontend="trace")
    check_against_model(gm, model, (y,), {})


@pytest.mark.usefixtures("no_numbers")
def test_strides_that_show_other_elements_need_numbers() -> None:
    class Turns(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y.as_strided_((3, 3), (1, 3))
            return y + 1

    model = Turns()
    with pytest.raises(NumbersError):
        fxprune.capture(model, torch.randn(3, 3), frontend="trace")


class _WritesToView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(x)
        y.view(-1).add_(1)
        return torch.cat(y.chunk(2)) * y.ndim


@pytest.mark.usefixtures("no_numbers")
def test_known_functions_write_to_views_as_they_do_on_tensors() -> None:
    model, y = _WritesToView(), torch.randn(4, 3)
    gm = fxprune.capture(model, y, frontend="trace")  # what the functions do is known from now on
    check_against_model(gm, model, (y,), {})


@pytest.mark.parametrize("target", ["add_", "cat"])
def test_a_graph_that_calls_known_functions_otherwise_is_refused(target: str) -> None:
    model, y = _WritesToView(), torch.randn(4, 3)
    gm = fxprune.capture(model, y, frontend="trace")
    node = next(node for node in gm.graph.nodes if node.name == target)
    node.args = (node.args[0], 2 if target == "add_" else 1)
    with pytest.raises(CaptureError):
        check_against_model(gm, model, (y,), {})


# Failures.

_LEFT: list[Tensor] = []


class CatchesEverything(Net):
    """Goes on whatever happens, and leaves a tensor where nobody looks for it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.l(x)
        if type(y) is Tensor:
            _LEFT.append(y)
        try:
            return torch.erf(y) * 2
        except Exception:
            return y * 2


def break_numbers(monkeypatch: pytest.MonkeyPatch, *of: Any) -> None:
    """Let the numbering fail where it asks for a number of one of these."""
    number = Numbering.of

    def fail(self: Numbering, *key: Any) -> int:
        if key[0] in of:
            raise KeyError("a bug")
        return number(self, *key)

    monkeypatch.setattr(Numbering, "of", fail)


@pytest.mark.parametrize("kind", [Net, CatchesEverything])
def test_a_failure_inside_the_numbering_is_seen(kind: type[Net], monkeypatch: pytest.MonkeyPatch) -> None:
    model, y, state = kind(), x(), torch.get_rng_state()
    gm = fxprune.capture(model, y, frontend="trace")
    _LEFT.clear()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    break_numbers(monkeypatch, torch.ops.aten.mul.Tensor, torch.ops.aten.erf.default)
    with pytest.raises(NumberingError, match=r"a bug of fxprune.*KeyError"):
        check_against_model(gm, model, (y,), {})
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(left, model.l(y)) for left in _LEFT)  # no stand-in is left behind


@pytest.mark.parametrize(
    ("of", "error"), [("leaf", KeyError), (torch.ops.aten.linear.default, NumberingError), ("after", NumberingError)]
)
def test_after_a_failure_inside_the_numbering_nothing_else_is_tried(
    of: Any, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_numbers(monkeypatch, of)
    with pytest.raises(error, match="a bug"):
        fxprune.capture(Net().train(), x())


@pytest.mark.parametrize("as_programs", [True, False])
@pytest.mark.parametrize("frontend", ["trace", "auto"])
def test_a_failure_to_note_what_a_node_gives_is_seen(as_programs: bool, frontend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not as_programs:
        monkeypatch.setattr(Programs, "same", lambda *_: None)

    def fail(*_: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(check, "_noting", lambda _: fail)
    model, y, state = Net().train(), x(), torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(NumberingError if as_programs else KeyError, match="a bug"):
        fxprune.capture(model, y, frontend=frontend)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class CatchesAComposite(Net):
    """Calls an operator that consists of others, and itself refuses its arguments."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.l(x)
        if type(y) is Tensor:
            try:
                return y.chunk(0)[0]
            except RuntimeError:
                pass
        return y * 2


@pytest.mark.usefixtures("no_numbers")
def test_errors_of_composite_operators_are_errors_of_the_code() -> None:
    fxprune.capture(CatchesAComposite(), x(), frontend="trace")


def test_a_model_that_fails_in_a_composite_operator_is_compared_by_numbers() -> None:
    class OneSample(Net):
        def forward(self, x: Tensor) -> Tensor:
            return F.cross_entropy(self.l(x), torch.tensor([1]), reduction="none")

    gm = fxprune.capture(OneSample(), torch.randn(1, 4), frontend="trace")
    with pytest.raises(CaptureError, match=r"the model itself fails.* to match target batch_size"):
        check_against_model(gm, OneSample(), (x(),), {})


class CatchesMissingValues(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.l(x)
        try:
            return y * float(y.detach().sum())
        except Exception:
            return y


class CatchesMissingLists(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.l(x)
        try:
            return y * len(y.detach().flatten().tolist())
        except Exception:
            return y


class CatchesMissingArrays(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.l(x)
        try:
            return y * float(np.asarray(y.detach()).sum())
        except Exception:
            return y


@pytest.mark.parametrize("kind", [CatchesMissingValues, CatchesMissingLists, CatchesMissingArrays])
def test_code_that_goes_on_where_values_are_missing_is_not_followed_there(kind: type[Net]) -> None:
    with pytest.raises(CaptureError, match=r"only the capture raises|does not give the model's result"):
        fxprune.capture(kind(), x(), frontend="trace")


def test_code_that_tries_a_view_first_is_captured(numbers: list[str]) -> None:
    class Tries(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.l(x).t()
            try:
                return y.view(-1) * 2
            except RuntimeError:
                return y.reshape(-1) * 2

    class Reshapes(Tries):
        def forward(self, x: Tensor) -> Tensor:
            return self.l(x).t().reshape(-1) * 2

    model, like, y = Tries(), Reshapes(), x()
    like.__dict__.update(vars(model))
    gm = fxprune.capture(like, y, frontend="trace")
    assert numbers == []
    check_against_model(gm, model, (y,), {})
    assert numbers == ["Tries"]


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.batch, self.layer, self.group = nn.BatchNorm2d(4), nn.LayerNorm([4, 3, 3]), nn.GroupNorm(2, 4)
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.group(self.layer(self.batch(self.conv(x))))
        return y + F.instance_norm(y) + torch.matmul(y, y)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_layers_are_compared_as_programs_whatever_chooses_their_kernels(
    training: bool, frontend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("compared by numbers")

    monkeypatch.setattr(check, "_check_numbers", refuse)
    fxprune.capture(Norms().train(training), torch.randn(2, 4, 5, 5), frontend=frontend)


def test_whole_operators_are_those_that_draw_no_random_numbers_and_write_to_nothing_else() -> None:
    for op in (*numbering._LINEAR, *numbering._NORMS):
        assert torch.Tag.nondeterministic_seeded not in op.tags
        assert not op._schema.is_mutable
        written = {name for _, name in Traits.of(op).statistics}
        assert written == ({"running_mean", "running_var"} if op is torch.ops.aten.batch_norm.default else set())


@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_with_another_epsilon_or_momentum_is_another_program(bias: bool) -> None:
    for change in ({"eps": 1e-3}, {"momentum": 0.3}):
        model = nn.Sequential(nn.Conv2d(4, 4, 1, bias=bias), nn.BatchNorm2d(4)).train()
        gm = fxprune.capture(model, torch.randn(2, 4, 3, 3), frontend="trace")
        for name, value in change.items():
            setattr(gm.get_submodule("1"), name, value)
        assert Programs(ModelSnapshot(model)).same(functools.partial(_run, gm), (torch.randn(2, 4, 3, 3),), {}) is None


def _run(gm: fx.GraphModule, args: Any, kwargs: Any) -> Any:
    return gm(*args, **kwargs)
