"""Shrink: the text of the graph it leaves, what it keeps, what it refuses, and its contract as a pass."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_manager import PassManager

import fxprune
from fxprune.graph.metadata import EXAMPLE
from fxprune.passes.mask import Mask
from fxprune.passes.shrink import Shrink, shrunk_copy
from fxprune.testing import check_graph
from tests.compare import assert_same, relative_error
from tests.kinds import readable
from tests.nets import randomised
from tests.passes.shrunk_texts import TEXTS
from tests.passes.text_nets import Groups, Norms, Places, Uneven
from tests.passes.texts import Text
from tests.shrinking import assert_equal, assert_sizes, captured, pruned

X = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.name)
def test_shrunk_graph_reads(text: Text) -> None:
    found = text.pruned()
    assert readable(found.small) == text.expected
    assert_sizes(found)
    assert_equal(found, *((torch.randn(batch, *text.shape[1:]),) for batch in (1, 2, 4)))


def test_modules_print_their_sizes() -> None:
    small = pruned(Groups(), (torch.randn(2, 3, 4, 4),), choose="outer").small
    # Whether norms print their bias depends on the version of torch.
    assert [str(module) for module in small.children()] == [
        "Conv2d(3, 4, kernel_size=(1, 1), stride=(1, 1))",
        str(nn.GroupNorm(1, 4)),
        "Conv2d(4, 4, kernel_size=(1, 1), stride=(1, 1))",
        "Linear(in_features=4, out_features=2, bias=True)",
    ]
    small = pruned(Norms(), (X,)).small
    assert [str(module) for module in small.children()] == [
        "Linear(in_features=3, out_features=4, bias=True)",
        str(nn.LayerNorm(4)),
        "RMSNorm((4,), eps=1e-06, elementwise_affine=True)",
        "Linear(in_features=4, out_features=2, bias=True)",
    ]


class SameMemory(nn.Module):
    """Two parameters in one memory, and two buffers."""

    scale: Tensor
    gain: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(3, 8).double(), nn.Linear(3, 8).double(), nn.Linear(8, 2).double()
        self.two.weight = nn.Parameter(self.one.weight.detach())
        self.register_buffer("scale", torch.rand(8).double())
        self.register_buffer("gain", self.scale.view(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.one(x) * self.scale) + self.two(x) * self.gain)


@pytest.mark.parametrize("training", [True, False])
def test_tensors_in_one_memory_shrink_together(training: bool) -> None:
    small = fxprune.prune(SameMemory().train(training), X, 0.5)
    one, two = small.get_parameter("one.weight"), small.get_parameter("two.weight")
    assert one.shape == (4, 3)
    assert one.data_ptr() == two.data_ptr()
    assert small.get_buffer("scale").data_ptr() == small.get_buffer("gain").data_ptr()


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_that_average_over_all_batches(training: bool) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU(), nn.Conv2d(8, 4, 3))
    model = nn.Sequential(*layers, nn.BatchNorm2d(4, momentum=None)).double()
    images = [torch.randn(batch, 3, 7, 7).double() for batch in (2, 3, 4)]
    for image in images[:2]:  # so that the next batch counts for a third
        model(image)
    found = pruned(model.train(training), images[:1])
    assert found.small.get_parameter("0.weight").shape[0] == 4
    assert_equal(found, *([image] for image in images))
    theirs, ours = (gm.train() for gm in (copy.deepcopy(found.masked), copy.deepcopy(found.small)))
    for image in images:
        assert relative_error(ours(image), theirs(image)) < 1e-12
    kept = found.plan.provenance("1.running_var", 0)
    assert relative_error(ours.get_buffer("1.running_var"), theirs.get_buffer("1.running_var")[kept]) < 1e-12
    assert ours.get_buffer("1.num_batches_tracked") == theirs.get_buffer("1.num_batches_tracked") == 5
    assert relative_error(ours.eval()(images[0]), theirs.eval()(images[0])) < 1e-12
    assert fxprune.prune(model, images[0], 0.5).code == found.small.code


def test_index_tables_name_the_places_of_what_is_left() -> None:
    small = pruned(Places(), (X,)).small
    assert small.get_buffer("index_table_0").tolist() == [2, 3, 0, 1]
    options: dict[str, Any] = {"overrides": {"up.bias": 3, "third": 0}, "importance": lambda _, g: torch.arange(g.size)}
    small = pruned(Uneven(), (X,), **options).small
    assert small.get_buffer("index_table_0").tolist() == [0, 1, 3]
    for copied in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(copied(X), small(X))


def masked(amount: float = 0.5) -> fx.GraphModule:
    torch.manual_seed(0)
    gm = captured(Norms(), (X,))
    return fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), amount))


def state_of(gm: fx.GraphModule) -> tuple[Any, ...]:
    """Return what must not change when shrink fails: text, meta, modules, parameters, values."""
    tensors = {name: (id(t), t.detach().clone()) for name, t in (*gm.named_parameters(), *gm.named_buffers())}
    return gm.code, id(gm.graph), sorted(gm.meta), {n: id(m) for n, m in gm.named_modules()}, tensors


def assert_untouched(gm: fx.GraphModule, before: tuple[Any, ...]) -> None:
    after = state_of(gm)
    assert after[:4] == before[:4]
    assert after[4].keys() == before[4].keys()
    for name, (identity, value) in before[4].items():
        assert after[4][name][0] == identity, name
        assert torch.equal(after[4][name][1], value), name
    check_graph(gm)


def test_failed_verification_leaves_the_graph_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = masked()
    before, result = state_of(gm), gm(X)

    def refuse(*_: Any, **__: Any) -> float:
        raise fxprune.VerificationError("they differ")

    monkeypatch.setattr("fxprune.pipeline.verify_rewriting", refuse)
    with pytest.raises(fxprune.VerificationError, match="they differ"):
        fxprune.shrink(gm)
    assert_untouched(gm, before)
    assert torch.equal(gm(X), result)
    monkeypatch.undo()
    assert fxprune.shrink(gm).get_parameter("up.weight").shape == (4, 3)


def test_failed_repair_leaves_the_graph_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = masked()
    before = state_of(gm)

    def refuse(*_: Any, **__: Any) -> None:
        raise fxprune.ShrinkError("a node cannot be rewritten")

    monkeypatch.setattr("fxprune.passes.repair.repair.Repair.rewrite", refuse)
    with pytest.raises(fxprune.ShrinkError, match="a node cannot be rewritten"):
        fxprune.shrink(gm)
    assert_untouched(gm, before)


def test_verification_finds_a_graph_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = masked()
    before = state_of(gm)

    def wrong(graph: fx.GraphModule, **options: Any) -> Any:
        smaller, removed = original(graph, **options)
        with torch.no_grad():
            smaller.get_parameter("up.weight")[0].add_(1)
        return smaller, removed

    original = shrunk_copy
    monkeypatch.setattr("fxprune.pipeline.shrunk_copy", wrong)
    with pytest.raises(fxprune.VerificationError, match="the first node that differs is 'up'"):
        fxprune.shrink(gm)
    assert_untouched(gm, before)


def test_the_graph_itself_gets_smaller_and_what_loses_nothing_stays() -> None:
    gm = masked()
    parameters = dict(gm.named_parameters())
    reference = copy.deepcopy(gm)
    assert fxprune.shrink(gm) is gm
    check_graph(gm)
    assert gm.get_parameter("down.bias") is parameters["down.bias"]
    assert not any("_mask" in name or "_orig" in name or "keep" in name for name in gm.state_dict())
    assert all(p.requires_grad for p in gm.parameters())
    assert_same_results(gm, reference)


def assert_same_results(one: nn.Module, other: nn.Module) -> None:
    assert relative_error(copy.deepcopy(one).eval()(X), copy.deepcopy(other).eval()(X)) <= 1e-12


def test_frozen_parameters_stay_frozen_and_the_mode_stays() -> None:
    model = Norms().double()
    model.up.weight.requires_grad_(False)
    for training in (False, True):
        gm = fxprune.capture(model.train(training), X)
        small = fxprune.shrink(fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5)))
        assert not small.get_parameter("up.weight").requires_grad
        assert small.get_parameter("down.weight").requires_grad
        assert all(module.training is training for module in small.modules())


def test_without_masks_nothing_changes() -> None:
    torch.manual_seed(0)
    gm = captured(Norms(), (X,))
    before = gm.code, dict(gm.named_parameters())
    fxprune.shrink(gm)
    assert (gm.code, dict(gm.named_parameters()).keys()) == (before[0], before[1].keys())
    assert all(p is before[1][name] for name, p in gm.named_parameters())


def test_shrunk_twice_is_shrunk_once() -> None:
    once = fxprune.shrink(masked())
    twice = fxprune.shrink(copy.deepcopy(once))
    assert twice.code == once.code
    assert_same(twice, once, (X,))


def test_inputs_to_verify_with(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = masked()
    seen: list[Any] = []
    monkeypatch.setattr("fxprune.pipeline.verify_rewriting", lambda *args, **kwargs: seen.append(args[2:]))
    fxprune.shrink(copy.deepcopy(gm), verify=False)
    assert not seen
    fxprune.shrink(copy.deepcopy(gm), example_inputs=(X[:2],))
    assert torch.equal(seen[-1][0][0], X[:2])
    bare = pickle.loads(pickle.dumps(gm))
    before = state_of(bare)
    if EXAMPLE.get(bare) is None:
        with pytest.raises(fxprune.PruningError, match=r"there are no inputs to verify with.*give example_inputs"):
            fxprune.shrink(bare)
        assert_untouched(bare, before)
    monkeypatch.undo()
    assert_same_results(fxprune.shrink(bare, example_inputs=X), gm)


def test_on_the_meta_device_nothing_is_verified() -> None:
    with torch.device("meta"):
        gm = fxprune.capture(Norms(), torch.randn(2, 3))
    small = fxprune.shrink(fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5, importance=_rising)))
    assert (small.get_parameter("up.weight").shape, small.get_parameter("up.weight").device.type) == ((4, 3), "meta")
    assert small(torch.randn(5, 3, device="meta")).shape == (5, 2)


def _rising(_: Any, group: Any) -> Tensor:
    return torch.arange(group.size)


def test_masks_of_whole_rows_that_someone_else_made_are_taken_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    gm = captured(model, (X,))
    rows = torch.arange(8) % 2
    fxprune.mask(gm, {"0.weight": rows[:, None].expand(8, 3), "0.bias": rows})
    reference = copy.deepcopy(gm)
    small = fxprune.shrink(gm)
    assert small.get_parameter("0.weight").shape == (4, 3)
    assert small.get_parameter("2.weight").shape == (2, 4)
    assert_same_results(small, reference)


def test_zeros_in_the_weights_are_taken_out_on_request() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        for parameter in list(model.parameters())[:2]:
            parameter[::2] = 0
    gm = captured(model, (X,))
    reference = copy.deepcopy(gm)
    assert fxprune.shrink(copy.deepcopy(gm)).get_parameter("0.weight").shape == (8, 3)
    small = fxprune.shrink(gm, from_zeros=True)
    assert small.get_parameter("0.weight").shape == (4, 3)
    assert_same_results(small, reference)


def test_the_pass_says_whether_it_changed_the_graph() -> None:
    gm = masked()
    result = Shrink()(gm)
    assert (result.graph_module is gm, result.modified) == (True, True)
    code = gm.code
    assert Shrink()(gm).modified is False
    assert gm.code == code
    torch.manual_seed(0)
    whole = captured(Norms(), (X,))
    plan = fxprune.plan(fxprune.analyze(whole), 0.5)
    managed = PassManager(passes=[Mask(plan), Shrink()])(whole)
    assert managed.modified is True
    assert managed.graph_module.code == code


@pytest.mark.parametrize("wrong", [nn.Linear(2, 2), None, "graph"])
def test_what_is_no_graph_is_refused(wrong: Any) -> None:
    with pytest.raises(fxprune.PruningError, match=f"expected a torch.fx.GraphModule, got {type(wrong).__name__}"):
        fxprune.shrink(wrong)


class Effects(nn.Module):
    """Has lines that count by what they do to their arguments alone."""

    def __init__(self, effect: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.act = nn.ReLU(inplace=True)
        self.effect = effect

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        self.effect(self, h)
        return self.two(h)


EFFECTS: dict[str, Callable[[Any, Tensor], Any]] = {
    "method": lambda m, h: h.relu_(),
    "function": lambda m, h: torch.relu_(h),
    "flag": lambda m, h: nn.functional.relu(h, inplace=True),
    "module": lambda m, h: m.act(h),
    "part": lambda m, h: h[:, 2:5].mul_(3.0),
    "view": lambda m, h: h.t().mul_(2.0),
    "statistics": lambda m, h: m.norm(h),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_lines_that_write_stay_though_nothing_reads_them(name: str) -> None:
    found = pruned(Effects(EFFECTS[name]), (X,))
    assert found.small.get_parameter("one.weight").shape == (4, 3)
    assert_equal(found, (X,), (torch.randn(5, 3),))


def test_what_was_shrunk_is_verified_against_every_larger_graph() -> None:
    layers = nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)
    gm = captured(randomised(nn.Sequential(*layers)), (X,))
    once = pruned_copy(gm, 0.5)
    for again in (copy.deepcopy(once), pickle.loads(pickle.dumps(once)), fxprune.capture(once, X)):
        fxprune.shrink(again, example_inputs=X)  # nothing is masked
        fxprune.verify(once, again, X, gradients=True)
    twice = pruned_copy(once, 0.5)
    left = twice.meta["fxprune.kept"]["0.weight"][0]
    assert torch.equal(twice.get_parameter("0.weight"), gm.get_parameter("0.weight")[left])
    deps = fxprune.analyze(gm)
    kept = [twice.meta["fxprune.kept"][group.members[0].parameter][group.members[0].dim] for group in deps.groups]
    scores = lambda deps, group: torch.isin(torch.arange(16), kept[group.index]).double().numpy()  # noqa: E731
    masked = fxprune.mask(copy.deepcopy(gm), fxprune.plan(deps, 12, importance=scores))
    fxprune.verify(masked, twice, X, gradients=True)


def pruned_copy(gm: fx.GraphModule, amount: float) -> fx.GraphModule:
    masked = fxprune.mask(copy.deepcopy(gm), fxprune.plan(fxprune.analyze(gm), amount))
    small = fxprune.shrink(copy.deepcopy(masked), verify=False)
    fxprune.verify(masked, small, X, gradients=True)
    return small


def test_a_node_that_cannot_be_written_out_any_further_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.passes.repair.rerun.Rerun.comes_out_right", lambda self, node, steps: False)
    model = nn.Sequential(nn.Linear(3, 8), nn.PReLU(), nn.Linear(8, 2))
    why = r"whole: node '_1' .* runs several operators \(aten._prelu_kernel.default, aten.reshape.default\)"
    with pytest.warns(fxprune.PruneWarning, match=why):
        fxprune.prune(model, torch.randn(2, 3), 0.5)
