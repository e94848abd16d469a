"""Lower writes layers out as nodes, RaiseLeaves puts them back."""

import copy
import operator
import pickle
import textwrap
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.graph.parts import Lowered
from fxprune.passes import Lower, RaiseLeaves
from fxprune.testing import check_graph
from tests.kinds import KINDS, Kind, captured, loss, readable

pytestmark = [
    # Told by torch itself, of the dense module too.
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    # torch.fx says so on every deepcopy and pickle of a graph.
    pytest.mark.filterwarnings("ignore:.*TreeSpec:FutureWarning"),
]

# Kinds whose parameters are held by layers that a traced graph calls.
LAYERS = [kind for kind in KINDS.values() if kind.name not in {"bare", "in_parts"}]


def by_name(kind: Kind) -> str:
    return kind.name


def run(module: nn.Module, kind: Kind, *, training: bool) -> tuple[Any, dict[str, Tensor | None], dict[str, Tensor]]:
    """Return output, gradients and buffers after one step from a fixed seed."""
    module.train(training)
    module.zero_grad()
    torch.manual_seed(1)
    output = module(*kind.inputs())
    loss(output).backward()
    return output, {n: p.grad for n, p in module.named_parameters()}, dict(module.named_buffers())


def assert_same(ours: nn.Module, theirs: nn.Module, kind: Kind) -> None:
    for training in (False, True):
        for value, expected in zip(run(ours, kind, training=training), run(theirs, kind, training=training), strict=True):
            torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("kind", LAYERS, ids=by_name)
def test_layer_written_out_computes_what_it_did_and_is_put_back_as_it_was(kind: Kind) -> None:
    gm, model = captured(kind), kind.build()
    before, keys, types = gm.code, list(gm.state_dict()), {n: type(m) for n, m in gm.named_modules()}
    parameters = dict(gm.named_parameters(remove_duplicate=False))

    lowered = Lower(kind.parameters)(gm)
    assert lowered.graph_module is gm
    assert lowered.modified is True
    check_graph(gm)
    assert not gm.graph.find_nodes(op="call_module")
    assert list(gm.state_dict()) == keys
    assert_same(gm, model, kind)

    raised = RaiseLeaves()(gm)
    assert raised.graph_module is gm
    assert raised.modified is True
    check_graph(gm)
    assert gm.code == before
    assert list(gm.state_dict()) == keys
    assert {n: type(m) for n, m in gm.named_modules()} == types
    assert all(parameter is parameters[n] for n, parameter in gm.named_parameters(remove_duplicate=False))
    assert_same(gm, model, kind)


@pytest.mark.parametrize("kind", LAYERS, ids=by_name)
def test_either_pass_run_twice_is_the_pass_run_once_and_says_so(kind: Kind) -> None:
    gm = captured(kind)
    before = gm.code
    assert RaiseLeaves()(gm).modified is False
    assert gm.code == before
    Lower(kind.parameters)(gm)
    lowered = gm.code
    assert Lower(kind.parameters)(gm).modified is False
    assert gm.code == lowered
    RaiseLeaves()(gm)
    assert RaiseLeaves()(gm).modified is False
    assert gm.code == before


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm1d(2)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.fc(torch.relu(self.norm(self.conv(x))))


def net() -> fx.GraphModule:
    torch.manual_seed(0)
    return fxprune.capture(Net(), (torch.ones(2, 2, 4),), frontend="trace")


def test_only_layers_that_hold_the_parameters_are_written_out() -> None:
    gm = net()
    Lower(["conv.bias", "fc.weight"])(gm)
    expected = """
        def forward(self, x):
            conv_weight = self.conv.weight
            conv_bias = self.conv.bias
            conv = torch.conv1d(x, conv_weight, conv_bias, (1,), (1,), (1,), 1)
            norm = self.norm(conv)
            relu = torch.relu(norm)
            fc_weight = self.fc.weight
            fc_bias = self.fc.bias
            fc = torch._C._nn.linear(relu, fc_weight, fc_bias)
            return fc
    """
    assert readable(gm) == textwrap.dedent(expected).strip()


def test_graph_without_layers_is_left_alone() -> None:
    gm = fxprune.capture(Net(), (torch.ones(2, 2, 4),), frontend="export")
    before = gm.code
    assert Lower(["conv.weight"])(gm).modified is False
    assert RaiseLeaves()(gm).modified is False
    assert gm.code == before


def test_unknown_name_is_refused_and_nothing_is_written_out() -> None:
    gm = net()
    before = gm.code
    with pytest.raises(fxprune.PruningError, match=r"no parameter named 'fc\.wieght'; close to it are fc\.weight"):
        Lower(["conv.weight", "fc.wieght"])(gm)
    assert gm.code == before
    assert isinstance(gm.conv, nn.Conv1d)


def test_mode_changed_in_between_is_that_of_the_layer_put_back() -> None:
    gm: Any = net().train()
    Lower(["norm.weight"])(gm)
    gm.eval()
    assert gm.norm.training is False
    RaiseLeaves()(gm)
    assert isinstance(gm.norm, nn.BatchNorm1d)
    assert gm.norm.training is False
    gm.train()
    assert gm.norm.training is True


@pytest.mark.parametrize("kind", [KINDS[n] for n in ("conv2d", "batch_norm2d", "lstm_deep", "gru")], ids=by_name)
def test_layer_put_back_trains_the_parameters_of_the_graph(kind: Kind) -> None:
    """A recurrent layer keeps a second list of its weights, which must be these ones."""
    gm, model = captured(kind), kind.build()
    Lower(kind.parameters)(gm)
    RaiseLeaves()(gm)
    for module in (gm, model):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(2):
            run(module, kind, training=True)
            optimizer.step()
    assert_same(gm, model, kind)
    for (name, ours), theirs in zip(gm.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda m, n=name: f"{n}: {m}")  # type: ignore[misc]


@pytest.mark.parametrize("through", [copy.deepcopy, lambda gm: pickle.loads(pickle.dumps(gm))], ids=["copied", "pickled"])
@pytest.mark.parametrize(
    "kind", [KINDS[n] for n in ("conv2d", "batch_norm2d", "lstm", "attention_out_proj", "twice")], ids=by_name
)
def test_layer_is_put_back_in_a_graph_that_was_copied_meanwhile(kind: Kind, through: Any) -> None:
    gm = captured(kind)
    before = gm.code
    Lower(kind.parameters)(gm)
    other = through(gm)
    RaiseLeaves()(other)
    assert other.code == before
    assert_same(other, kind.build(), kind)


def test_layer_called_in_two_ways_is_put_back_at_both_places() -> None:
    class TwoWays(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 3)

        def forward(self, x: Tensor) -> Any:
            out, state = self.rnn(x)
            again, _ = self.rnn(out, state)
            return again

    kind = Kind("two_ways", TwoWays, lambda: (torch.linspace(-1, 1, 24).view(4, 2, 3),), ("rnn.weight_hh_l0",))
    gm = captured(kind)
    before = gm.code
    Lower(kind.parameters)(gm)
    assert not gm.graph.find_nodes(op="call_module")
    assert_same(gm, kind.build(), kind)
    RaiseLeaves()(gm)
    assert gm.code == before
    assert_same(gm, kind.build(), kind)


def test_layer_called_by_keyword_at_one_place_and_by_position_at_another_is_put_back_as_it_was_at_each() -> None:
    class TwoWays(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Any:
            return self.fc(input=torch.tanh(self.fc(x)))

    gm = fxprune.capture(TwoWays(), (torch.ones(2, 3),), frontend="trace")
    before = gm.code
    Lower(["fc.weight"])(gm)
    RaiseLeaves()(gm)
    assert gm.code == before


def test_layer_registered_under_two_names_is_put_back_under_both() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = self.first

        def forward(self, x: Tensor) -> Any:
            return self.second(torch.tanh(self.first(x)))

    gm = fxprune.capture(Shared(), (torch.ones(2, 3),), frontend="trace")
    before = gm.code
    Lower(["second.weight"])(gm)
    assert gm.first is gm.second
    assert isinstance(gm.first, Lowered)
    RaiseLeaves()(gm)
    assert gm.first is gm.second
    assert isinstance(gm.first, nn.Linear)
    assert gm.code == before


def test_tied_layers_are_put_back_each_in_its_place() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Any:
            return self.first(torch.tanh(self.second(torch.relu(self.first(x)))))

    gm = fxprune.capture(Tied(), (torch.ones(2, 3),), frontend="trace")
    before = gm.code
    fxprune.l1_unstructured(gm, "second.weight", 0.5)
    gm = copy.deepcopy(gm)
    fxprune.remove(gm, "first.weight")
    assert gm.code == before


def test_layer_whose_nodes_were_changed_meanwhile_stays_written_out() -> None:
    gm = net()
    Lower(["fc.weight"])(gm)
    (weight,) = gm.graph.find_nodes(op="get_attr", target="fc.weight")
    with gm.graph.inserting_after(weight):
        doubled = gm.graph.call_function(operator.mul, (weight, 2.0))
    weight.replace_all_uses_with(doubled, delete_user_cb=lambda user: user is not doubled)
    gm.recompile()
    changed, x = gm.code, torch.rand(2, 2, 4)
    output = gm.eval()(x)
    assert RaiseLeaves()(gm).modified is False
    assert gm.code == changed
    assert torch.equal(gm(x), output)
    check_graph(gm)


def test_layer_with_a_masked_parameter_stays_written_out_and_others_are_put_back() -> None:
    gm = net()
    Lower(["conv.weight", "fc.bias"])(gm)
    fxprune.identity(gm, "fc.weight")
    assert RaiseLeaves()(gm).modified is True
    assert isinstance(gm.conv, nn.Conv1d)
    assert isinstance(gm.fc, Lowered)
    assert RaiseLeaves()(gm).modified is False
    check_graph(gm)


def test_layer_written_out_says_what_it_stands_for() -> None:
    gm = net()
    Lower(["fc.weight"])(gm)
    assert "(fc): Lowered(Linear)" in str(gm)


def doubles(*arguments: Any) -> Any:
    return arguments[-1] * 2 if isinstance(arguments[-1], Tensor) else (arguments[-1][0] * 2,)


@pytest.mark.parametrize("register", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_hooks_on_a_layer_of_the_graph_are_not_lost_in_silence(register: str) -> None:
    gm = net()
    x = torch.randn(2, 2, 4)
    handle = getattr(gm.get_submodule("fc"), f"register_{register}")(doubles)
    before, code = gm(x), gm.code
    with pytest.raises(fxprune.LoweringError, match=r"node 'fc' calls 'fc' \(Linear\).*: doubles\. Remove the hooks first"):
        fxprune.l1_unstructured(gm, "fc.weight", 0.5)
    with pytest.raises(fxprune.LoweringError, match="Remove the hooks first"):
        fxprune.mask(gm, {"fc.bias": torch.zeros(2)})
    assert gm.code == code
    assert torch.equal(gm(x), before)
    fxprune.l1_unstructured(gm, "conv.weight", 0.5)  # another layer
    handle.remove()
    fxprune.l1_unstructured(gm, "fc.weight", 0.5)
