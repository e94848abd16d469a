"""Finalize: the captured graph comes back, with the masks baked into the same parameters."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_manager import PassManager
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune.passes import Finalize, Mask
from fxprune.testing import check_graph
from tests.kinds import KINDS, Kind, captured

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def by_name(kind: Kind) -> str:
    return kind.name


def identities(gm: fx.GraphModule) -> list[int]:
    return [id(parameter) for parameter in gm.parameters()]


METHODS: dict[str, Callable[[fx.GraphModule, str], object]] = {
    "l1": lambda gm, name: fxprune.l1_unstructured(gm, name, 0.4),
    "iterated": lambda gm, name: fxprune.random_unstructured(fxprune.identity(gm, name), name, 0.4),
    "graded": lambda gm, name: fxprune.mask(gm, {name: torch.full_like(gm.get_parameter(name), 0.5)}),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", list(KINDS.values()), ids=by_name)
def test_masked_then_finalized_graph_is_the_captured_one(kind: Kind, method: str) -> None:
    """The export front end's graphs go through the same in test_parity."""
    gm = captured(kind)
    text, nodes, keys = gm.code, str(gm.graph), list(gm.state_dict())
    layout = [(name, type(module)) for name, module in gm.named_modules()]
    parameters = identities(gm)

    for name in kind.parameters:
        METHODS[method](gm, name)
    assert identities(gm) == parameters
    assert gm.code != text
    expected = {n: gm.get_parameter(f"{n}_orig") * gm.get_buffer(f"{n}_mask") for n in kind.parameters}

    assert fxprune.finalize(gm) is gm
    check_graph(gm)
    assert gm.code == text
    assert str(gm.graph) == nodes
    assert list(gm.state_dict()) == keys
    assert [(name, type(module)) for name, module in gm.named_modules()] == layout
    assert identities(gm) == parameters
    assert not fxprune.is_pruned(gm)
    assert all(torch.equal(gm.get_parameter(name), value) for name, value in expected.items())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("kind", [k for k in KINDS.values() if len(k.parameters) > 1], ids=by_name)
def test_masks_removed_one_by_one_in_any_order_end_in_the_captured_graph(kind: Kind, order: tuple[int, int]) -> None:
    gm = captured(kind).eval()
    text = gm.code
    names = [kind.parameters[i] for i in order]
    for name in names:
        fxprune.l1_unstructured(gm, name, 0.4)
    output = gm(*kind.inputs())
    for i, name in enumerate(names):
        fxprune.remove(gm, name)
        check_graph(gm)
        torch.testing.assert_close(gm(*kind.inputs()), output)
        assert [n for n in gm.state_dict() if n.endswith("_orig")] == [f"{n}_orig" for n in names[i + 1 :]]
    assert gm.code == text


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # Without a bias: the norm takes it out again, and Adam would make steps of the rounding that is its gradient.
        self.conv = nn.Conv1d(2, 4, 3, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.rnn = nn.LSTM(4, 5, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Any:
        y = torch.relu(self.norm(self.conv(x)))
        out, _ = self.rnn(y.transpose(1, 2))
        return self.fc(self.drop(out[:, -1]))


MASKED = ("conv.weight", "norm.weight", "rnn.weight_hh_l0", "fc.weight", "fc.bias")


def build() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def data() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    while True:
        yield torch.randn((4, 2, 8), generator=generator), torch.randint(3, (4,), generator=generator)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        x, y = next(batches)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()


def assert_same_training(gm: fx.GraphModule, ours: Any, model: nn.Module, theirs: Any) -> None:
    state, expected = gm.state_dict(), model.state_dict()
    assert set(state) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(state[name].to(value.dtype), value, msg=lambda m, n=name: f"{n}: {m}")  # type: ignore[misc]
    for a, b in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        assert ours.state[a].keys() == theirs.state[b].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key in ours.state[a]:
            torch.testing.assert_close(ours.state[a][key], theirs.state[b][key])


@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_running_optimizer_goes_on_as_with_torchs_hooks(frontend: Any) -> None:
    """Adam is made once, before anything is masked, and never told of masks."""
    model = build()
    gm = fxprune.capture(copy.deepcopy(model), next(data())[0], frontend=frontend)
    text, parameters = gm.code, identities(gm)
    ours, theirs = (torch.optim.Adam(m.parameters(), lr=0.05) for m in (gm, model))
    our_data, their_data = data(), data()

    def train_both() -> None:
        train(gm, ours, our_data, 3)
        train(model, theirs, their_data, 3)
        assert_same_training(gm, ours, model, theirs)
        assert identities(gm) == parameters == [id(p) for p in ours.param_groups[0]["params"]]

    train_both()
    for amount in (0.3, 0.5):
        # torch ranks by the masked value that its hook computed in the last forward, which the last step made stale.
        model.eval()(next(data())[0])
        model.train()
        for name in MASKED:
            path, _, attribute = name.rpartition(".")
            torch_prune.l1_unstructured(model.get_submodule(path), attribute, amount)
            fxprune.l1_unstructured(gm, name, amount)
        train_both()
    for name in MASKED:
        path, _, attribute = name.rpartition(".")
        torch_prune.remove(model.get_submodule(path), attribute)
    fxprune.finalize(gm)
    assert gm.code == text
    train_both()


def conv_net() -> fx.GraphModule:
    return fxprune.capture(build(), next(data())[0], frontend="trace")


def test_no_multiplication_and_no_mask_is_left() -> None:
    gm = conv_net()
    for name in MASKED:
        fxprune.l1_unstructured(gm, name, 0.5)
    assert gm.code.count("_mask;") == len(MASKED)
    fxprune.finalize(gm)
    assert " * " not in gm.code
    assert not [key for key in gm.state_dict() if key.endswith(("_mask", "_orig"))]
    assert fxprune.summary(gm).mask_bytes == 0


def test_pruned_elements_are_free_to_move_again_after_finalize_and_not_before() -> None:
    gm = conv_net()
    fxprune.l1_unstructured(gm, "fc.weight", 0.5)
    optimizer, batches = torch.optim.SGD(gm.parameters(), lr=0.5), data()
    mask = gm.get_buffer("fc.weight_mask")
    pruned = gm.get_parameter("fc.weight_orig")[mask == 0].clone()
    train(gm, optimizer, batches, 2)
    assert torch.equal(gm.get_parameter("fc.weight_orig")[mask == 0], pruned)
    fxprune.finalize(gm)
    assert not gm.get_parameter("fc.weight")[mask == 0].any()
    train(gm, optimizer, batches, 2)
    assert gm.get_parameter("fc.weight")[mask == 0].any()


def test_gradients_stay_with_their_parameters() -> None:
    gm = conv_net()
    gm(next(data())[0]).sum().backward()
    gradients = [p.grad for p in gm.parameters()]
    fxprune.l1_unstructured(gm, "fc.weight", 0.5)
    assert all(p.grad is g for p, g in zip(gm.parameters(), gradients, strict=True))
    fxprune.finalize(gm)
    assert all(p.grad is g for p, g in zip(gm.parameters(), gradients, strict=True))


def test_pass_tells_whether_there_was_a_mask() -> None:
    gm = conv_net()
    before = gm.code
    assert Finalize()(gm).modified is False
    assert gm.code == before
    fxprune.identity(gm, "fc.weight")
    result = Finalize()(gm)
    assert result.graph_module is gm
    assert result.modified is True
    assert gm.code == before


def test_pass_run_twice_is_the_pass_run_once_and_says_so() -> None:
    gm = conv_net()
    fxprune.l1_unstructured(gm, "fc.weight", 0.5)
    Finalize()(gm)
    text, state = gm.code, {key: value.clone() for key, value in gm.state_dict().items()}
    assert Finalize()(gm).modified is False
    assert gm.code == text
    assert all(torch.equal(value, state[key]) for key, value in gm.state_dict().items())


def test_passes_compose_in_torchs_pass_manager_and_settle() -> None:
    gm = conv_net()
    before = gm.code
    mask = torch.tensor([[1.0, 0, 1, 0, 1]] * 3)
    expected = gm.get_parameter("fc.weight") * mask
    result = PassManager(passes=[Mask({"fc.weight": mask}), Finalize()], steps=2)(gm)
    assert result.modified is True
    assert gm.code == before
    assert torch.equal(gm.get_parameter("fc.weight"), expected)


def test_parameter_whose_own_name_ends_like_a_masked_one_is_masked_and_baked_like_any_other() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale_orig = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale_orig

    gm = fxprune.capture(Named(), (torch.ones(2, 3),))
    before = gm.code
    fxprune.l1_unstructured(gm, "scale_orig", 1)
    check_graph(gm)
    assert set(gm.state_dict()) == {"scale_orig_orig", "scale_orig_mask"}
    assert gm(torch.ones(1, 3)).tolist() == [[0.0, 2.0, 3.0]]
    fxprune.finalize(gm)
    assert gm.code == before
    assert gm(torch.ones(1, 3)).tolist() == [[0.0, 2.0, 3.0]]


def test_model_with_a_parameter_and_a_buffer_named_like_a_mask_is_not_taken_for_a_masked_one() -> None:
    """The names alone do not make a mask; only their product does."""

    class Sum(nn.Module):
        scale_mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.scale_orig = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
            self.register_buffer("scale_mask", torch.tensor([0.5, 0.0, 1.0]))

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.scale_orig + self.scale_mask)

    model, x = Sum(), torch.ones(1, 3)
    gm = fxprune.capture(model, (x,))
    before, expected = gm.code, model(x).tolist()
    assert not fxprune.is_pruned(gm)
    fxprune.finalize(gm)
    assert gm.code == before
    assert gm(x).tolist() == expected
