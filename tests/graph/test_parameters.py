"""What hangs on parameters, modules and graphs besides values: classes, attributes, hooks, extra state, compiled calls."""

from __future__ import annotations

import copy
import functools
import pickle
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.optim.swa_utils import AveragedModel

import fxprune
from fxprune.errors import PruneWarning, PruningTypeError

X = torch.randn(3, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))


class Sharded(nn.Parameter):
    """A parameter of a class of its own."""


class Scaled(nn.Module):
    """Has extra state, and a parameter of each kind."""

    def __init__(self, extra: Any = None) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)
        self.up.weight = Sharded(self.up.weight.detach())
        self.extra = {"amax": [1.0, 2.0]} if extra is None else extra

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def model() -> Any:
    torch.manual_seed(0)
    net: Any = nn.Sequential(Scaled(), nn.Linear(2, 2)).double().eval()
    vars(net[0].up.weight)["group"] = "no decay"
    return net


def masked(net: nn.Module) -> fx.GraphModule:
    gm = fxprune.capture(net, X)
    return fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))


def test_new_parameters_have_the_class_and_the_attributes_of_the_ones_before() -> None:
    net = model()
    for small in (fxprune.shrink(masked(net)), fxprune.prune(net, X, 0.5), fxprune.prune(net, X, 0.5, verify=False)):
        new = small.get_parameter("0.up.weight")
        assert new.shape == (4, 4)
        assert type(new) is Sharded
        assert vars(new)["group"] == "no decay"
        assert new is not net[0].up.weight


def test_what_a_mask_bakes_keeps_class_and_attributes() -> None:
    gm = fxprune.capture(model(), X)
    fxprune.l1_unstructured(gm, "0.up.weight", 0.25)
    new = fxprune.shrink(gm).get_parameter("0.up.weight")
    assert type(new) is Sharded
    assert vars(new)["group"] == "no decay"


def double_gradient(gradient: Tensor) -> Tensor:
    return gradient * 2


@pytest.mark.parametrize("register", [Tensor.register_hook, Tensor.register_post_accumulate_grad_hook])
def test_hooks_of_replaced_parameters_are_named(register: Callable[..., Any]) -> None:
    net = model()
    register(net[0].up.weight, double_gradient)
    register(net[1].bias, double_gradient)  # which stays
    expected = "the parameter '0.up.weight' is a new one without the hooks of the one before: double_gradient"
    gm = masked(net)
    with pytest.warns(PruneWarning) as shown:
        fxprune.shrink(gm)
    assert [str(w.message) for w in shown] == [expected]
    with pytest.warns(PruneWarning) as shown:
        fxprune.prune(net, X, 0.5, verify=False)
    assert [str(w.message) for w in shown] == [expected]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxprune.shrink(fxprune.capture(net, X))


def test_extra_state_is_in_the_state_dict_of_graphs() -> None:
    net = model()
    gm = masked(net)
    small = fxprune.shrink(pickle.loads(pickle.dumps(copy.deepcopy(gm))), example_inputs=X)
    for graph in (fxprune.capture(net, X), gm, small):
        assert graph.state_dict()["0._extra_state"] == {"amax": [1.0, 2.0]}
    net[0].extra["amax"].append(3.0)
    assert gm.state_dict()["0._extra_state"] == {"amax": [1.0, 2.0]}
    graph = fxprune.capture(net, X)
    graph.load_state_dict(nn.Sequential(Scaled({"amax": []}), nn.Linear(2, 2)).state_dict())
    assert graph.state_dict()["0._extra_state"] == {"amax": []}


def test_extra_state_of_the_model_itself_is_named() -> None:
    with pytest.warns(fxprune.CaptureWarning, match="the extra state of Scaled itself is not in the graph's state_dict"):
        fxprune.capture(Scaled().double(), X)


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda gm: AveragedModel(gm).module, lambda gm: pickle.loads(pickle.dumps(gm))]
)
def test_copies_of_a_compiled_graph_compute_with_their_own_weights(copier: Callable[[Any], Any]) -> None:
    gm = fxprune.capture(model(), X)
    gm.compile(backend="eager")
    expected = gm(X)
    other = copier(gm)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not other(X).any()
    assert torch.equal(gm(X), expected)
    torch._dynamo.reset()


def test_a_compiled_graph_stays_compiled_and_follows_passes() -> None:
    gm, times = fxprune.capture(model(), X), 0

    def count(graph: fx.GraphModule, _: list[Tensor]) -> fx.GraphModule:
        nonlocal times
        times += 1
        return graph

    gm.compile(backend=count)
    gm(X)
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    assert torch.allclose(gm(X), copy.deepcopy(gm)(X), rtol=1e-12)
    fxprune.shrink(gm)
    assert torch.allclose(gm(X), copy.deepcopy(gm)(X), rtol=1e-12)
    assert times == 3
    torch._dynamo.reset()


def wrapped(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def called(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs).float()

    return called


def test_a_replaced_forward_is_never_left_behind() -> None:
    gm = fxprune.capture(model(), X)
    plan = fxprune.plan(fxprune.analyze(gm), 0.5)
    gm.forward = types.MethodType(wrapped(gm.forward.__func__), gm)  # type: ignore[attr-defined]
    other = copy.deepcopy(gm)
    other.get_parameter("1.weight").data.zero_()
    other.get_parameter("1.bias").data.zero_()
    assert not other(X).any()
    code = gm.code
    for change in (
        lambda: fxprune.mask(gm, plan),
        lambda: fxprune.shrink(gm),
        lambda: fxprune.finalize(gm),
        lambda: fxprune.l1_unstructured(gm, "1.weight", 1),
    ):
        with pytest.raises(PruningTypeError, match=r"was replaced by .*, which runs the code from before.*`del gm.forward`"):
            change()
    with pytest.raises(pickle.PicklingError, match=r"would not follow the weights of the pickle: .*`del gm.forward`"):
        pickle.dumps(gm)
    assert gm.code == code
    del gm.forward
    fxprune.shrink(fxprune.mask(gm, plan))


def test_a_forward_that_holds_the_graph_cannot_be_copied() -> None:
    gm = fxprune.capture(model(), X)
    gm.forward = wrapped(gm.forward)
    with pytest.raises(PruningTypeError, match="a copy would compute with the weights of this graph"):
        AveragedModel(gm)
