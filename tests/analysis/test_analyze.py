"""analyze: one run on fake tensors, on every kind of graph, without touching it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import AnalysisError, RuleError
from fxprune.rules.registry import unregister
from tests.golden.registry import NETS, Net


def members(deps: fxprune.Dependencies) -> list[tuple[int, list[str]]]:
    """Return the sizes and members of all groups, masks of parameters aside."""
    return sorted((g.size, sorted(str(m) for m in g.members if "_mask[" not in str(m))) for g in deps.groups)


class Plain(nn.Module):
    """A convolution, a norm and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


PLAIN = [(6, ["conv.bias[0]", "conv.weight[0]", "fc.weight[1]", *(f"norm.{n}[0]" for n in ("bias", "running_mean"))])]
PLAIN[0][1].extend(["norm.running_var[0]", "norm.weight[0]"])
IMAGE = torch.randn(2, 3, 8, 8)


def plain_graph() -> fx.GraphModule:
    return fxprune.capture(Plain().eval(), IMAGE)


def test_the_graph_stays_as_it_was() -> None:
    gm = plain_graph()
    text, tensors = gm.code, {k: v.clone() for k, v in gm.state_dict().items()}
    keys = {node.name: set(node.meta) for node in gm.graph.nodes}
    fxprune.analyze(gm.train())
    assert gm.code == text
    assert gm.training
    assert {node.name: set(node.meta) for node in gm.graph.nodes} == keys
    assert all(torch.equal(tensors[k], v) for k, v in gm.state_dict().items())


@pytest.mark.parametrize("method", ["l1_unstructured", "ln_structured"])
@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_masked_graphs_have_the_groups_of_dense_ones(method: str, frontend: str) -> None:
    gm = fxprune.capture(Plain().eval(), IMAGE, frontend=frontend)  # type: ignore[arg-type]
    for name in ("conv.weight", "fc.weight"):
        if method == "l1_unstructured":
            fxprune.l1_unstructured(gm, name, 0.3)
        else:
            fxprune.ln_structured(gm, name, 0.3, n=1, dim=1)
    deps = fxprune.analyze(gm)
    assert members(deps) == PLAIN
    masks = {m.parameter for m in deps.groups[0].members if m.is_buffer}
    assert {"conv.weight_mask", "fc.weight_mask"} <= masks
    assert deps.explain("conv.weight", 0).groups == deps.groups


def test_masks_change_neither_costs_nor_units() -> None:
    dense, gm = fxprune.analyze(plain_graph()).groups[0], plain_graph()
    fxprune.l1_unstructured(gm, "conv.weight", 0.3)
    masked = fxprune.analyze(gm).groups[0]
    assert (masked.size, masked.parameters, masked.flops) == (dense.size, dense.parameters, dense.flops)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda gm: gm], ids=["deepcopy", "itself"])
def test_copies_are_analysed_alike(copy_of: object) -> None:
    assert callable(copy_of)
    assert members(fxprune.analyze(copy_of(plain_graph()))) == PLAIN


@pytest.mark.parametrize(
    "net", [NETS[n] for n in ("residual", "vit", "lstm", "multihead", "grouped_conv")], ids=lambda n: n.name
)
def test_train_mode_has_the_groups_of_eval_mode(net: Net) -> None:
    gm = fxprune.capture(net.build(), net.inputs(2))
    assert members(fxprune.analyze(gm.eval())) == members(fxprune.analyze(gm.train()))


def test_models_on_the_meta_device_have_the_groups_of_real_ones() -> None:
    with torch.device("meta"):
        gm = fxprune.capture(Plain().eval(), torch.empty(2, 3, 8, 8))
    assert members(fxprune.analyze(gm)) == PLAIN


def test_no_weight_is_read() -> None:
    gm = plain_graph()
    with torch.no_grad():
        for tensor in gm.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
    assert members(fxprune.analyze(gm)) == PLAIN


class ModeDependent(nn.Module):
    """Uses its hidden channels in train mode in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        if self.training:
            hidden = hidden + self.two(hidden)
        return self.three(hidden)


@pytest.mark.parametrize("training", [True, False])
def test_dependencies_hold_in_both_modes(training: bool) -> None:
    gm = fxprune.capture(ModeDependent().train(training), torch.randn(2, 4))
    (group,) = fxprune.analyze(gm).groups
    assert {"one.weight[0]", "two.weight[0]", "two.weight[1]", "three.weight[1]"} <= {str(m) for m in group.members}


def test_an_analysis_draws_no_random_numbers() -> None:
    layers = nn.Linear(4, 6), nn.Dropout(0.9), nn.RReLU(), nn.AlphaDropout(0.5), nn.Linear(6, 2)
    gm = fxprune.capture(nn.Sequential(*layers), torch.ones(3, 4)).train()
    before = torch.get_rng_state()
    fxprune.analyze(gm)
    assert torch.equal(torch.get_rng_state(), before)


class PickedByFlags(nn.Module):
    """Picks numbers by flags: how many there are, no shape says."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("flags", torch.tensor([True, False] * 4))
        self.one, self.two, self.three, self.four = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.one(x)
        return self.three(self.two(h).relu()), self.four(h[:, self.flags]), h[h > 0].mean(), x.masked_select(x > 0).sum()


def test_what_flags_pick_from_stays_whole() -> None:
    deps = fxprune.analyze(fxprune.capture(PickedByFlags(), torch.randn(3, 4), frontend="trace"))
    assert [str(group.members[0]) for group in deps.groups] == ["two.weight[0]"]
    assert "flags" in str(deps.explain("one.weight", 0))


def test_a_graph_without_example_values_is_refused() -> None:
    gm = plain_graph()
    for node in gm.graph.nodes:
        node.meta.pop("val", None)
    with pytest.raises(AnalysisError, match=r"input node 'x' carries no example value in meta\['val'\].*capture it again"):
        fxprune.analyze(gm)


def test_a_graph_that_cannot_run_is_refused_with_its_node() -> None:
    gm = plain_graph()
    node = next(n for n in gm.graph.nodes if n.op == "call_module" and n.target == "fc")
    with gm.graph.inserting_before(node):
        node.args = (gm.graph.call_function(torch.ops.aten.unsqueeze.default, (node.args[0], 1)),)
        flat = gm.graph.call_function(torch.reshape, (node.args[0], (2, 7)))
    node.args = (flat,)
    gm.recompile()
    with pytest.raises(AnalysisError, match=r"node 'reshape' .* cannot run on fake tensors: shape '\[2, 7\]' is invalid"):
        fxprune.analyze(gm)


# An operator of a user's own.


@torch.library.custom_op("fxprune_tests::halve", mutates_args=())
def halve(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply and halve along the channels."""
    return (x * weight).reshape(x.shape[0], 2, -1).sum(1)


@halve.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // 2)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(4, 6), nn.Parameter(torch.randn(6))
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(halve(self.fc(x), self.scale))


OP = torch.ops.fxprune_tests.halve.default


@pytest.fixture
def clean_registry() -> Iterator[None]:
    yield
    unregister(OP)


def custom_graph() -> fx.GraphModule:
    return fxprune.capture(Custom().eval(), torch.randn(2, 4), frontend="export")


def test_an_operator_without_a_rule_keeps_whole_what_it_touches() -> None:
    deps = fxprune.analyze(custom_graph())
    assert not deps.groups
    (named,) = deps.without_rule
    assert named.startswith("fxprune_tests.halve.default at node 'halve")
    assert "an operator without a rule: see fxprune.register_rule" in str(deps.explain("fc.weight", 0))


@pytest.mark.usefixtures("clean_registry")
def test_a_registered_rule_is_used() -> None:
    fxprune.register_rule(OP, "b (!h c), (!h c) -> b c", zeros="0*1")
    # The first part of a product takes what the second leaves.
    deps = fxprune.analyze(custom_graph())
    assert not deps.without_rule
    assert members(deps) == [(3, ["fc.bias[0]*2", "fc.weight[0]*2", "out.weight[1]", "scale[0]*2"])]


@pytest.mark.usefixtures("clean_registry")
def test_an_operator_is_registered_once() -> None:
    fxprune.register_rule(OP, "b (!h c), (!h c) -> b c")
    with pytest.raises(
        RuleError,
        match=r"fxprune_tests.halve.default has a rule already: .* from .*test_analyze.py:\d+, now again at .*test_analyze",
    ):
        fxprune.register_rule(OP, "b c, c -> b c")
    with pytest.raises(RuleError, match=r"aten.linear.default has a rule already: .* from .*contraction.py:\d+, now again at"):
        fxprune.register_rule(torch.ops.aten.linear.default, "b i, o i -> b o")


@pytest.mark.usefixtures("clean_registry")
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "b c, c -> b c",
            r"the rule 'b c, c -> b c' of fxprune_tests.halve.default at node 'halve\w*' has c where the size is 3",
        ),
        ("b c -> b c", r"is for 1 operands and 1 results \(got 2 and 1\); operands \[2, 6\], \[6\], results \[2, 3\]"),
        ("b c d, c -> b d", r"does not fit operand 0 of shape \[2, 6\]"),
    ],
)
def test_a_rule_that_contradicts_the_shapes_is_refused(pattern: str, message: str) -> None:
    fxprune.register_rule(OP, pattern)
    with pytest.raises(RuleError, match=message):
        fxprune.analyze(custom_graph())


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("b c", "a rule reads 'operands -> results'"), ("b c- -> b", "'c-' is not a dimension of a rule")],
)
def test_a_pattern_that_cannot_be_read_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        fxprune.register_rule(OP, pattern)
    with pytest.raises(RuleError, match="is not an operator overload such as"):
        fxprune.register_rule(torch.ops.fxprune_tests.halve, "b c -> b c")  # type: ignore[arg-type]


# What code does that rules do not see.


class Written(nn.Module):
    """Fills a buffer of zeros piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(4, 2), nn.Linear(4, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.zeros(x.shape[0], 5)
        both[:, :2] = self.one(x)
        both[:, 2:] = self.two(x)
        return self.out(both)


def test_writes_into_slices_couple_what_is_written() -> None:
    deps = fxprune.analyze(fxprune.capture(Written().eval(), torch.randn(2, 4), frontend="export"))
    assert members(deps) == [
        (2, ["one.bias[0]", "one.weight[0]", "out.weight[1]"]),
        (3, ["out.weight[1]", "two.bias[0]", "two.weight[0]"]),
    ]


class Overlapping(nn.Module):
    """Two parameters in one memory, one of them transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(4, 6, bias=False)
        self.up = nn.Linear(6, 4, bias=False)
        self.up.weight = nn.Parameter(self.down.weight.detach().t())

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.relu(self.down(x)))


def test_parameters_that_share_memory_in_another_layout_stay_whole() -> None:
    deps = fxprune.analyze(fxprune.capture(Overlapping().eval(), torch.randn(2, 4)))
    assert not deps.groups
    assert "shares its memory with" in str(deps.explain("down.weight", 0))


class OfOtherType(nn.Module):
    """Two buffers in one memory, one of them read as integers."""

    scale: Tensor
    bits: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("scale", torch.rand(6))
        self.register_buffer("bits", self.scale.view(torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x) * self.scale) * (self.bits > 0))


def test_buffers_that_share_memory_as_other_types_stay_whole() -> None:
    deps = fxprune.analyze(fxprune.capture(OfOtherType().eval(), torch.randn(2, 4)))
    assert not deps.groups
    assert "shares its memory with" in str(deps.explain("one.weight", 0))


class Permuted(nn.Module):
    """Orders channels by a buffer, and by a list."""

    def __init__(self, listed: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.register_buffer("order", torch.tensor([2, 0, 3, 1]))
        self.listed = listed

    def forward(self, x: Tensor) -> Tensor:
        order = [2, 0, 3, 1] if self.listed else self.order
        return self.two(self.one(x)[:, order])


def test_an_index_buffer_orders_units() -> None:
    (group,) = fxprune.analyze(fxprune.capture(Permuted(False).eval(), IMAGE)).groups
    positions = {str(m): m.positions.reshape(-1).tolist() for m in group.members}
    assert positions["one.weight[0]"] == [0, 1, 2, 3]
    assert positions["two.weight[1]"] == [1, 3, 0, 2]
    assert positions["order[0]"] == [1, 3, 0, 2]


def test_an_index_that_is_written_in_the_code_keeps_channels_whole() -> None:
    deps = fxprune.analyze(fxprune.capture(Permuted(True).eval(), IMAGE))
    assert not deps.groups


def test_what_is_not_used_stays_whole() -> None:
    model = Plain()
    model.spare = nn.Linear(3, 3)
    deps = fxprune.analyze(fxprune.capture(model.eval(), IMAGE))
    assert (
        str(deps.explain("spare.weight", 0)) == "spare.weight[0], 3 positions: whole: 'spare.weight' is not used by the graph"
    )
