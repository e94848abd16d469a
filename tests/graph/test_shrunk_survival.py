"""What masked and shrunk graphs have to live through: copies, pickles, compilers, exports, another round of pruning."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.testing import check_graph
from tests.compare import assert_same, relative_error, run
from tests.export.test_formats import reloaded
from tests.graph.test_survival import assert_survived, by_pickle, by_torch_save, gradients
from tests.nets import ConvNet, SequenceNet, randomised
from tests.passes.text_nets import Heads, Norms, Pools
from tests.shrinking import assert_equal, captured, pruned

FRONTENDS = ("trace", "export")
STAGES = ("masked", "small")


class Corrected(nn.Module):
    """All kinds of corrections, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.norms, self.pools, self.heads = Norms(), Pools(), Heads()
        self.up, self.between = nn.Conv1d(3, 6, 1), nn.Linear(4, 3)
        self.group = nn.GroupNorm(2, 6)
        self.down = nn.Conv1d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.group(self.up(x.transpose(1, 2))))
        y = self.down(y).transpose(1, 2)
        return self.norms(x) + self.pools(x) + self.heads(y)


def images(batch: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 3, 6, 6, dtype=torch.double),)


def tokens(batch: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 11, (batch, 5)),)


def rows(batch: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 5, 3, dtype=torch.double),)


Inputs = Callable[[int], tuple[Tensor, ...]]

NETS: list[tuple[Callable[[], nn.Module], Inputs]] = [(ConvNet, images), (SequenceNet, tokens), (Corrected, rows)]

every_graph = pytest.mark.parametrize(
    ("net", "inputs", "frontend", "stage"),
    [
        pytest.param(net, inputs, frontend, stage, id=f"{net.__name__}-{frontend}-{stage}")
        for net, inputs in NETS
        for frontend in FRONTENDS
        for stage in STAGES
    ],
)


_MADE: dict[tuple[Any, str], Any] = {}


def graph(net: Callable[[], nn.Module], inputs: Inputs, frontend: str, stage: str) -> fx.GraphModule:
    """Return a copy of a network's graph, masked or shrunk."""
    if (net, frontend) not in _MADE:
        torch.manual_seed(0)
        _MADE[net, frontend] = pruned(randomised(net()), inputs(2), 0.5, frontend, choose="inner")
    gm: fx.GraphModule = getattr(_MADE[net, frontend], stage)
    return copy.deepcopy(gm)


def test_the_graphs_are_corrected_and_smaller() -> None:
    for frontend in FRONTENDS:
        graph(Corrected, rows, frontend, "masked")
        made = _MADE[Corrected, frontend]
        assert made.plan.params_after < 0.6 * made.plan.params_before
        assert_equal(made, rows(1), rows(3))
        for name in ("layer_norm", "rms_norm", "group_norm", "var", "mean", "keep_only"):
            assert f"{name}_of_kept" in made.masked.code or f"over_kept_{name}" in made.masked.code, name
        assert "kept" not in made.small.code


@every_graph
@pytest.mark.parametrize("copier", [copy.deepcopy, by_pickle])
def test_copies_are_equal_and_independent(net: Any, inputs: Inputs, frontend: str, stage: str, copier: Any) -> None:
    gm = graph(net, inputs, frontend, stage)
    copied = copier(gm)
    assert copied.code == gm.code
    check_graph(copied)
    assert_survived(copied, gm, inputs(3))
    assert not {id(t) for t in copied.parameters()} & {id(t) for t in gm.parameters()}


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(("net", "inputs"), NETS)
@pytest.mark.parametrize("copier", [copy.deepcopy, by_torch_save])
def test_copies_of_masked_graphs_shrink_as_the_graph_does(net: Any, inputs: Inputs, frontend: str, copier: Any) -> None:
    copied = copier(graph(net, inputs, frontend, "masked"))
    small = fxprune.shrink(copied, example_inputs=inputs(2))
    assert small.code == graph(net, inputs, frontend, "small").code
    assert_same(small, graph(net, inputs, frontend, "small"), inputs(3))


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_loaded_graph_is_captured_again_and_shrinks(frontend: str) -> None:
    loaded = by_pickle(graph(Corrected, rows, frontend, "masked"))
    small = fxprune.shrink(fxprune.capture(loaded, rows(2)))
    assert_same(small, graph(Corrected, rows, frontend, "small"), rows(3))


@every_graph
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled_without_a_graph_break(net: Any, inputs: Inputs, frontend: str, stage: str) -> None:
    torch._dynamo.reset()
    training = stage == "masked"
    gm = graph(net, inputs, frontend, stage).train(training)
    reference = copy.deepcopy(gm)
    # Compilers that take dropout apart draw other random numbers for it; "eager" leaves it whole.
    compiled = torch.compile(gm, fullgraph=True, backend="eager" if training else "aot_eager")
    x = inputs(3)
    with torch._dynamo.config.patch(allow_rnn=True):
        assert relative_error(run(compiled, x), run(reference, x)) <= 1e-9
        ours, theirs = gradients(compiled, x), gradients(reference, x)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours["_orig_mod." + name], gradient, rtol=1e-9, atol=1e-12)


@every_graph
def test_scripted_and_reloaded(net: Any, inputs: Inputs, frontend: str, stage: str) -> None:
    gm = graph(net, inputs, frontend, stage)
    loaded = reloaded(fxprune.to_torchscript(gm, inputs(2), method="script"))
    for training in (False, True):
        for batch in (2, 5, 1):
            x, reference = inputs(batch), copy.deepcopy(gm).train(training)
            assert relative_error(run(loaded.train(training), x), run(reference, x)) <= 1e-9


@every_graph
def test_exported_program(net: Any, inputs: Inputs, frontend: str, stage: str) -> None:
    gm = graph(net, inputs, frontend, stage).eval()
    program = fxprune.to_exported_program(gm, inputs(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = program.module()
    for batch in (2, 5):
        x = inputs(batch)
        assert relative_error(module(*x), gm(*x)) <= 1e-9


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("net", "shape"), [(ConvNet, (3, 6, 6)), (Corrected, (5, 3))])
def test_onnx_in_onnxruntime(net: Callable[[], nn.Module], shape: tuple[int, ...], stage: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    gm = fxprune.capture(randomised(net()).eval(), torch.randn(2, *shape))
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    if stage == "small":
        fxprune.shrink(gm)
    path = tmp_path / "net.onnx"
    fxprune.to_onnx(gm, torch.randn(2, *shape), path)
    session = onnxruntime.InferenceSession(str(path))
    for batch in (2, 4):
        x = torch.randn(batch, *shape)
        (ours,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            assert relative_error(torch.from_numpy(ours), gm(x)) <= 1e-4


def sizes(gm: nn.Module) -> int:
    return sum(p.numel() for p in gm.parameters())


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(("net", "inputs"), NETS)
def test_a_second_round(net: Any, inputs: Inputs, frontend: str) -> None:
    gm = graph(net, inputs, frontend, "small")
    again = fxprune.prune(gm, inputs(2), 0.4)
    assert sizes(again) < sizes(gm)
    masked = copy.deepcopy(gm)
    plan = fxprune.plan(fxprune.analyze(masked), 0.4)
    assert plan.params_before == sizes(gm)
    small = fxprune.shrink(fxprune.mask(copy.deepcopy(masked), plan))
    assert sizes(small) == plan.params_after == sizes(again)
    fxprune.mask(masked, plan)
    assert relative_error(run(small.eval(), x := inputs(3)), run(masked.eval(), x)) <= 1e-9
    assert relative_error(run(again.eval(), x), run(masked, x)) <= 1e-9


@every_graph
def test_captured_again(net: Any, inputs: Inputs, frontend: str, stage: str) -> None:
    gm = graph(net, inputs, frontend, stage)
    again = captured(gm, inputs(2), "auto")
    check_graph(again)
    assert again.state_dict().keys() == gm.state_dict().keys()
    assert_same(again, gm, inputs(3))
    if stage == "small":
        assert fxprune.analyze(again).fingerprint == fxprune.analyze(gm).fingerprint


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(("net", "inputs"), NETS)
def test_weights_move_between_shrunk_graphs(net: Any, inputs: Inputs, frontend: str) -> None:
    gm, other = graph(net, inputs, frontend, "small"), graph(net, inputs, frontend, "small")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(gm.state_dict())
    assert_same(other, gm, inputs(3))


class Dispatched(nn.Module):
    """Calls functions that torch makes within another, so that their own names do not lead to them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(nn.functional.adaptive_max_pool2d(nn.functional.max_pool2d(self.one(x), 2), 2))


def test_functions_with_another_name_pickle() -> None:
    x = torch.randn(2, 3, 8, 8)
    small = fxprune.prune(Dispatched(), x, 0.5)
    torch.testing.assert_close(pickle.loads(pickle.dumps(small))(x), small(x))
