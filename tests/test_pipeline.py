"""prune: one call from a model to a smaller graph; what it leaves alone, what it refuses, what it warns of."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune.testing import check_graph
from tests.compare import assert_same, relative_error
from tests.golden.registry import NETS
from tests.nets import ConvNet, SequenceNet, randomised
from tests.passes.text_nets import Heads, Norms
from tests.plans import IMAGE, Net
from tests.zoo import shim

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def sizes(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def convnet() -> nn.Module:
    torch.manual_seed(0)
    return randomised(ConvNet())


@pytest.mark.parametrize("frontend", ["auto", "trace", "export"])
def test_one_call_is_the_calls_one_by_one(frontend: Any) -> None:
    model = convnet()
    slim = fxprune.prune(model, X, 0.5, frontend=frontend)
    check_graph(slim)
    gm = fxprune.capture(convnet(), X, frontend=frontend)
    plan = fxprune.plan(fxprune.analyze(gm), 0.5)
    small = fxprune.shrink(fxprune.mask(gm, plan))
    assert slim.code == small.code
    assert sizes(slim) == plan.params_after < sizes(model)
    assert slim.state_dict().keys() == small.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, small.state_dict()[key]) for key, value in slim.state_dict().items())


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend, self.last = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attend(x, x, x, need_weights=False)[0])


def test_what_was_masked_reads_as_what_was_not() -> None:
    model, x = Attending().eval(), torch.randn(2, 5, 16)
    slim = fxprune.prune(model, x, 0.5, verify=False)
    assert "attend_in_proj_weight = self.attend.in_proj_weight" in slim.code
    assert fxprune.prune(model, x, 0.5).code == slim.code
    gm = fxprune.capture(model, x)
    assert fxprune.shrink(fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))).code == slim.code


@pytest.mark.parametrize("build", [convnet, lambda: NETS["vit"].build(), lambda: NETS["lstm"].build()])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_is(build: Callable[[], nn.Module], training: bool) -> None:
    model = build().train(training)
    inputs = X if isinstance(model, ConvNet) else NETS["vit" if hasattr(model, "blocks") else "lstm"].inputs(2)
    before = {name: (id(t), t.detach().clone()) for name, t in (*model.named_parameters(), *model.named_buffers())}
    twin, text, generator = copy.deepcopy(model), str(model), torch.get_rng_state()
    slim = fxprune.prune(model, inputs, 0.5)
    assert torch.equal(torch.get_rng_state(), generator)
    assert str(model) == text
    assert all(module.training is training for module in model.modules())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert id(tensor) == before[name][0], name
        assert torch.equal(tensor, before[name][1]), name
    assert_same(model, twin, inputs if isinstance(inputs, tuple) else (inputs,))
    shared = {id(p) for p in model.parameters()} & {id(p) for p in slim.parameters()}
    with torch.no_grad():  # what the smaller graph lost nothing of is the model's own
        assert all(p.shape == model.get_parameter(n).shape for n, p in slim.named_parameters() if id(p) in shared)


class SameBuffers(nn.Module):
    """Buffers of which nothing can go: one twice, two in one memory, one that repeats a number, one in a parameter's memory."""

    once: Tensor
    again: Tensor
    row: Tensor
    wide: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.last = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        self.whole = nn.BatchNorm1d(4)
        self.register_buffer("once", torch.rand(2, 4))
        self.register_buffer("again", self.get_buffer("once"))
        self.register_buffer("row", self.get_buffer("once")[1], persistent=False)
        self.register_buffer("wide", torch.rand(1).expand(4))
        self.register_buffer("bias", self.last.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        y = self.whole(self.last(self.norm(self.up(x)).relu()))
        return y * self.once[0] + self.again[1] * self.row + self.wide + self.bias


@pytest.mark.parametrize("way", ["prune", "unverified", "nothing to remove", "shrink"])
def test_the_small_graph_has_buffers_of_its_own(way: str) -> None:
    torch.manual_seed(0)
    model, x = SameBuffers().train(), torch.randn(5, 3)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    if way == "shrink":
        gm = fxprune.capture(model, x)
        small = fxprune.shrink(fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5)))
    else:
        small = fxprune.prune(model, x, 0 if way == "nothing to remove" else 0.5, verify=way == "prune")
    small(x)
    assert small.get_buffer("whole.num_batches_tracked") == small.get_buffer("norm.num_batches_tracked") == 1
    assert not torch.equal(small.get_buffer("whole.running_mean"), before["whole.running_mean"])
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    model(x)
    model(x)
    assert small.get_buffer("norm.num_batches_tracked") == 1
    assert small.get_buffer("once") is small.get_buffer("again")
    assert small.get_buffer("row").data_ptr() == small.get_buffer("once")[1].data_ptr()
    assert small.get_buffer("wide").stride() == (0,)
    assert small.get_buffer("bias").data_ptr() == small.get_parameter("last.bias").data_ptr()
    assert small.get_parameter("last.bias") is model.last.bias
    assert small.state_dict().keys() == model.state_dict().keys()
    for name in ("once", "row", "wide"):
        assert torch.equal(small.get_buffer(name), model.get_buffer(name))
        assert small.get_buffer(name).data_ptr() != model.get_buffer(name).data_ptr()


def test_options_reach_the_plan() -> None:
    torch.manual_seed(0)
    model = Net(6, 3, 5, 2)
    slim = fxprune.prune(model, IMAGE, 0.5, ignore="fc", scope="global")
    assert slim.get_parameter("fc.weight").shape == (7, 10)
    assert fxprune.prune(model, IMAGE, 1, choose="outer").get_parameter("grouped.weight").shape[:2] == (5, 3)
    assert fxprune.prune(model, IMAGE, 0.5, choose="inner", round_to=3).get_parameter("stem.weight").shape[0] == 6
    assert sizes(fxprune.prune(model, IMAGE, max_params=0.6)) <= 0.6 * sizes(model)
    slim = fxprune.prune(model, IMAGE, max_flops=0.5, scope="global", importance=fxprune.Random(3))
    assert sizes(slim) < sizes(model)
    slim = fxprune.prune(model, IMAGE, 0.0, overrides={"stem": 0.34})
    assert sizes(slim) < sizes(model)


@pytest.mark.parametrize("keep", [True, False])
def test_no_verification_on_request(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("fxprune.pipeline.verify_rewriting", lambda *args, **_: seen.append(args))
    fxprune.prune(convnet(), X, 0.5, verify=keep)
    assert len(seen) == keep


def test_failed_verification_leaves_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> float:
        raise fxprune.VerificationError("they differ")

    model = convnet()
    twin = copy.deepcopy(model)
    monkeypatch.setattr("fxprune.pipeline.verify_rewriting", refuse)
    with pytest.raises(fxprune.VerificationError, match="they differ"):
        fxprune.prune(model, X, 0.5)
    assert_same(model, twin, (X,), tolerance=0.0)


def test_a_model_that_torch_pruned_is_pruned_with_its_masks() -> None:
    model = convnet()
    torch_prune.l1_unstructured(model.stem, "weight", 0.3)
    slim = fxprune.prune(model, X, 0.5)
    assert not fxprune.is_pruned(slim)
    zeros = float((slim.get_parameter("stem.weight") == 0).float().mean())
    assert 0 < zeros < 1
    assert hasattr(model.stem, "weight_orig")


@pytest.mark.parametrize("layout", ["chunk", "split", "unflatten", "separate"])
def test_heads_go_before_their_dimensions(layout: str) -> None:
    """Of heads and their dimensions the outermost of at least eight units goes: whole heads make attention faster."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(6, 120)
            self.out = nn.Linear(40, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.qkv(x)
            if layout == "unflatten":
                q, k, v = y.unflatten(-1, (3, 8, 5)).permute(2, 0, 3, 1, 4).unbind(0)
            else:
                parts = y.chunk(3, -1) if layout == "chunk" else y.split(40, -1)
                if layout == "separate":
                    parts = (y[..., :40], y[..., 40:80], y[..., 80:])
                q, k, v = (parts[i].unflatten(-1, (8, 5)).transpose(1, 2) for i in range(3))
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out(mixed.transpose(1, 2).flatten(2))

    gm = fxprune.capture(Attention(), torch.randn(2, 4, 6))
    for options in ({}, {"choose": "outer"}):
        choices = fxprune.plan(fxprune.analyze(gm), 0.5, **options).choices  # type: ignore[arg-type]
        assert [(choice.size, len(choice.kept)) for choice in choices] == [(8, 4)]


class Grid(nn.Module):
    """Has a node that cannot be rewritten, behind a norm that a mask corrects."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.wide, self.last = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 40), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        return self.last((self.wide(y + torch.meshgrid(y[0], y[1], indexing="ij")[0][0])).relu())


def test_a_verified_prune_captures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it masked in vain it strips of the masks; without masks it starts with another capture."""
    captured: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        captured.append(1)
        return fxprune.capture(*args, **kwargs)

    monkeypatch.setattr("fxprune.pipeline.capture", counted)
    torch.manual_seed(0)
    model, x = Grid().double().eval(), torch.randn(5, 6, dtype=torch.float64)
    slim = fxprune.prune(model, x, 0.5)
    assert len(captured) == 1
    other = fxprune.prune(model, x, 0.5, verify=False)
    assert len(captured) > 2
    assert slim.get_parameter("wide.weight").shape == (20, 8)
    assert slim.code == other.code
    assert slim.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in slim.state_dict().items())


def test_pruned_again_it_gets_smaller_still() -> None:
    first = fxprune.prune(convnet(), X, 0.5)
    second = fxprune.prune(first, X, 0.5)
    assert sizes(second) < sizes(first)
    assert len(second.get_parameter("stem.weight")) == 2
    assert len(first.get_parameter("stem.weight")) == 4


def test_sequences_with_tied_weights() -> None:
    torch.manual_seed(0)
    model, tokens = randomised(SequenceNet()), torch.randint(0, 11, (2, 5))
    slim = fxprune.prune(model, tokens, 0.5)
    assert slim.get_parameter("out.weight") is slim.get_parameter("embed.weight")
    assert sizes(slim) < sizes(model)
    assert slim(torch.randint(0, 11, (4, 5)))["logits"].shape == (4, 5, 11)


def test_the_smaller_graph_is_fine_tuned_like_any_module() -> None:
    slim = fxprune.prune(convnet(), X, 0.5).train()
    optimizer = torch.optim.SGD(slim.parameters(), 0.05)
    target, losses = torch.randn(2, 5), []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (slim.eval()(X) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_resnet_and_a_reference() -> None:
    shim.install()
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model, x = models.resnet18().eval(), torch.randn(1, 3, 64, 64)
    slim = fxprune.prune(model, x, 0.5)
    assert 0.2 < sizes(slim) / sizes(model) < 0.3
    assert str(slim.conv1) == "Conv2d(3, 32, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3), bias=False)"
    gm = fxprune.capture(model, x)
    masked = fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    assert fxprune.verify(masked, slim, x) < 1e-9
    assert relative_error(slim(x), masked(x)) < 1e-4


# Refusals and warnings.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"amount": 1.0}, fxprune.PlanError, r"amount must be .*\[0, 1\).*1\.0"),
        ({"amount": -0.1}, fxprune.PlanError, "amount must"),
        ({"amount": -1}, fxprune.PlanError, "amount must"),
        ({"amount": float("nan")}, fxprune.PlanError, "amount must"),
        ({"amount": "half"}, fxprune.PruningError, "amount must be an int or a float, not 'half'"),
        ({"amount": True}, fxprune.PruningError, "amount must"),
        ({}, fxprune.PlanError, "give either amount, or max_params, max_flops or both"),
        ({"amount": 0.5, "max_params": 0.5}, fxprune.PlanError, "give either amount, or max_params"),
        ({"max_params": 1}, fxprune.PlanError, "max_params"),
        ({"max_flops": 2.0}, fxprune.PlanError, "max_flops"),
        ({"amount": 0.5, "ignore": "nothing.*"}, fxprune.PlanError, r"'nothing\.\*'"),
        ({"amount": 0.5, "overrides": {"nothing": 0.2}}, fxprune.PlanError, "'nothing'"),
        ({"amount": 0.5, "overrides": {"stem": 1.5}}, fxprune.PlanError, r"overrides\['stem'\]"),
        ({"amount": 0.5, "scope": "all"}, fxprune.PlanError, 'scope must be "local" or "global", not \'all\''),
        ({"amount": 0.5, "choose": "some"}, fxprune.PlanError, "choose must be None"),
        ({"amount": 0.5, "round_to": 0}, fxprune.PlanError, "round_to must be"),
        ({"amount": 0.5, "importance": "l1"}, fxprune.PruningError, "importance"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fxprune.prune(convnet(), X, **options)


def test_a_module_to_ignore_that_is_not_of_the_model_is_refused() -> None:
    with pytest.raises(fxprune.PlanError, match="Linear"):
        fxprune.prune(convnet(), X, 0.5, ignore=nn.Linear(2, 2))


def test_what_is_no_model_and_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(fxprune.FxpruneError, match="function"):
        fxprune.prune(lambda x: x, X, 0.5)  # type: ignore[arg-type]
    with pytest.raises(fxprune.InputError):
        fxprune.prune(convnet(), (X, X), 0.5)


class Whole(nn.Module):
    """A model of which nothing can go: its result is that of its only layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).cumsum(-1)


def test_a_warning_where_nothing_can_be_removed() -> None:
    model = Whole()
    with pytest.warns(
        fxprune.PruneWarning, match=r"nothing was removed:\s+layer\.weight\[0\], 4 positions: whole: .*"
    ) as caught:
        slim = fxprune.prune(model, torch.randn(2, 3), 0.5)
    assert "test_pipeline" in caught[0].filename
    assert slim.get_parameter("layer.weight") is model.layer.weight


@pytest.mark.parametrize("amount", [0, 0.0])
def test_no_warning_where_nothing_was_to_be_removed(amount: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slim = fxprune.prune(convnet(), X, amount)
        fxprune.prune(Whole(), torch.randn(2, 3), amount)
    assert slim.code == fxprune.capture(convnet(), X).code


def test_a_share_too_small_for_any_unit_warns() -> None:
    torch.manual_seed(0)
    with pytest.warns(fxprune.PruneWarning, match="nothing was removed"):
        fxprune.prune(Norms(), torch.randn(2, 3), 0.01)


def test_one_unit_of_every_group_stays_whatever_is_asked_for() -> None:
    torch.manual_seed(0)
    slim = fxprune.prune(Heads(), torch.randn(2, 5, 4), 0.999, choose="all")
    assert slim.get_parameter("qkv.weight").shape == (3, 4)
    assert slim.get_parameter("out.weight").shape == (2, 1)


def test_what_torch_compile_made_is_taken_as_the_model_it_was_given() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    small = fxprune.prune(torch.compile(model, backend="eager"), torch.randn(3, 4), 0.5)  # type: ignore[arg-type]
    assert {name: tuple(p.shape) for name, p in small.named_parameters()} == {
        "0.weight": (4, 4), "0.bias": (4,), "2.weight": (2, 4), "2.bias": (2,)
    }  # fmt: skip


def test_examples_without_any_sample() -> None:
    small = fxprune.prune(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(0, 4), 0.5)
    assert small(torch.randn(3, 4)).shape == (3, 2)


def test_parameters_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    small = fxprune.prune(model, torch.randn(3, 4), 0.5)
    assert small.get_parameter("0.weight").shape == (4, 4)
