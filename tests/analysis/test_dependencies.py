"""Dependencies: costs, tables, explanations, mixing points and the graph of couplings."""

from __future__ import annotations

import re
from pathlib import Path

import networkx as nx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune.errors import AnalysisError, PruningIndexError, UnknownParameterError
from tests.golden.registry import NETS


def deps_of(model: nn.Module, *inputs: Tensor) -> fxprune.Dependencies:
    return fxprune.analyze(fxprune.capture(model.eval(), inputs))


class Net(nn.Module):
    """Two convolutions, grouped by 2 in the middle, and a classifier."""

    def __init__(self, stem: int = 4, inner: int = 3, outer: int = 5, groups: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, groups * inner, 3, padding=1)
        self.grouped = nn.Conv2d(groups * inner, groups * outer, 3, groups=groups)
        self.fc = nn.Linear(groups * outer, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.grouped(self.stem(x))).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, heads: int = 3, dim: int = 4, value: int = 5, fused: bool = True) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.q, self.k, self.v = nn.Linear(6, heads * dim), nn.Linear(6, heads * dim), nn.Linear(6, heads * value)
        self.o = nn.Linear(heads * value, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.o(mixed.transpose(1, 2).flatten(-2))


class Recurrent(nn.Module):
    def __init__(self, hidden: int = 4) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, hidden, batch_first=True), nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0])


def flops(model: nn.Module, *inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        model.to("meta").eval()(*(x.to("meta") for x in inputs))
    return counter.get_total_flops()


IMAGE, TOKENS, SERIES = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 6), torch.randn(2, 5, 3)


@pytest.mark.parametrize(
    ("wide", "narrow", "member", "inputs"),
    [
        (Net(), Net(groups=1), "stem.weight[0]*3", IMAGE),
        (Net(), Net(inner=2), "grouped.weight[1]", IMAGE),
        (Net(), Net(outer=4), "fc.weight[1]*2", IMAGE),
        (Attention(), Attention(heads=2), "o.weight[1]*5", TOKENS),
        (Attention(), Attention(dim=3), "k.weight[0]*3", TOKENS),
        (Attention(), Attention(value=4), "v.weight[0]*3", TOKENS),
        (Attention(fused=False), Attention(heads=2, fused=False), "o.weight[1]*5", TOKENS),
        (Attention(fused=False), Attention(dim=3, fused=False), "k.weight[0]*3", TOKENS),
        (Recurrent(), Recurrent(hidden=3), "lstm.weight_ih_l0[0]*4", SERIES),
    ],
    ids=["conv-groups", "conv-in", "conv-out", "heads", "key-dims", "value-dims", "heads-matmul", "key-dims-matmul", "lstm"],
)
def test_a_unit_costs_what_a_network_without_it_saves(wide: nn.Module, narrow: nn.Module, member: str, inputs: Tensor) -> None:
    groups = [g for g in deps_of(wide, inputs).groups if member in [str(m) for m in g.members]]
    assert len(groups) == 1, member
    saved = sum(p.numel() for p in wide.parameters()) - sum(p.numel() for p in narrow.parameters())
    assert groups[0].parameters == saved
    if not isinstance(wide, Recurrent):  # torch counts no operations of recurrent networks
        assert groups[0].flops == pytest.approx(flops(wide, inputs) - flops(narrow, inputs))


def test_recurrent_work_is_that_of_its_matrix_products() -> None:
    (group,) = deps_of(Recurrent(), SERIES).groups

    def count(hidden: int) -> int:
        steps = SERIES.shape[0] * SERIES.shape[1]
        return 2 * steps * (4 * hidden * (3 + hidden) + hidden * 2)

    assert group.flops == pytest.approx(count(4) - count(3))


# The first columns and the last lines; the members are those of the explanations below.
TABLE = """\
group  units  parameters / unit  FLOPs / unit  axes  members
0  2  259  40,316  5  stem.weight[0]*3, stem.bias[0]*3, grouped.weight[0]*5, grouped.bias[0]*5 and 1 more
1  3  146  26,784  3  stem.weight[0]*2, stem.bias[0]*2, grouped.weight[1]
2  5  70  7,832  3  grouped.weight[0]*2, grouped.bias[0]*2, fc.weight[1]*2
3 groups, 98.7% of the parameters in at least one"""

OUTER = "2 units of 259 parameters on stem.weight[0]*3 stem.bias[0]*3 grouped.weight[0]*5 grouped.bias[0]*5 fc.weight[1]*5"
INNER = "3 units of 146 parameters on stem.weight[0]*2 stem.bias[0]*2 grouped.weight[1]"


def test_a_table_of_groups() -> None:
    lines = str(deps_of(Net(), IMAGE)).splitlines()
    assert set(lines.pop(1)) == {"-", " "}
    assert [re.sub(" {2,}", "  ", line.strip()) for line in lines] == TABLE.splitlines()


def test_explanations() -> None:
    deps = deps_of(Net(), IMAGE)
    assert str(deps.explain("stem.weight")) == (
        f"stem.weight[0], 6 positions: 6 of them in 2 groups\n  group 0: {OUTER}\n  group 1: {INNER}"
    )
    code = "return self.fc(F.relu(self.grouped(self.stem(x))).mean((2, 3)))"
    line = Path(__file__).read_text().splitlines().index(f"        {code}") + 1
    assert str(deps.explain("stem.weight", 1)) == (
        "stem.weight[1], 3 positions: whole: meets an axis that stays whole (aten.conv2d.default in node 'stem'), "
        f"at {__file__}:{line}; graph input 'x' (node 'x')"
    )
    assert str(deps.explain("stem.weight", -1)) == (
        "stem.weight[3], 3 positions: whole: needs every position along this dimension (aten.conv2d.default in node 'stem'), "
        f"at {__file__}:{line}"
    )
    assert str(deps.explain("fc.bias")) == "fc.bias[0], 7 positions: whole: graph output (node 'output')"


def test_an_axis_that_is_partly_held_says_so() -> None:
    class Picked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.one(x)
            return self.two(hidden) * hidden[:, 1:2].sigmoid() + hidden[:, 3].sum()

    explanation = deps_of(Picked(), torch.randn(2, 4)).explain("one.weight")
    assert (explanation.size, explanation.free) == (5, 3)
    assert [g.size for g in explanation.groups] == [3]
    assert {r.text for r in explanation.reasons} == {
        "all of an axis of 1 would go together",  # the slice
        "is picked by its index",
    }


@pytest.mark.parametrize(
    ("name", "dim", "error", "message"),
    [
        ("stem.wieght", 0, UnknownParameterError, r"no parameter or buffer 'stem.wieght'; did you mean 'stem.weight'"),
        ("stem.weight", 4, PruningIndexError, r"'stem.weight' of shape \[6, 3, 3, 3\] has no dimension 4"),
        ("stem.bias", -2, PruningIndexError, r"'stem.bias' of shape \[6\] has no dimension -2"),
    ],
)
def test_what_does_not_exist_is_not_explained(name: str, dim: int, error: type[Exception], message: str) -> None:
    deps = deps_of(Net(), IMAGE)
    with pytest.raises(error, match=message):
        deps.explain(name, dim)


def test_tied_parameters_are_explained_under_all_names() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
    model[1].weight = model[0].weight
    deps = deps_of(model, torch.randn(2, 4))
    assert deps.explain("0.weight", 0).groups == deps.explain("1.weight", 0).groups


@pytest.mark.parametrize(
    ("name", "dim", "groups"), [("stem.bias", 0, [0, 1]), ("grouped.bias", 0, [0, 2]), ("fc.weight", 1, [0, 2])]
)
def test_groups_that_share_an_axis(name: str, dim: int, groups: list[int]) -> None:
    assert [group.index for group in deps_of(Net(), IMAGE).explain(name, dim).groups] == groups


# Mixing points.


class Mixed(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.one, self.middle, self.two = nn.Linear(4, 6), middle, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.middle(self.one(x)))


class Fn(nn.Module):
    def __init__(self, fn: object) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        assert callable(self.fn)
        return self.fn(x)


@pytest.mark.parametrize(
    ("middle", "expected"),
    [
        (nn.ReLU(), [("contract", True)]),
        (nn.GELU(), [("contract", True)]),
        # 0.5 at removed positions, but the columns of the next weight are zero there.
        (nn.Sigmoid(), [("contract", True)]),
        # 1 / 0 times zero is not zero.
        (Fn(torch.reciprocal), [("contract", False)]),
        (nn.LayerNorm(6), [("normalize", False), ("contract", True)]),
        (nn.RMSNorm(6), [("normalize", False), ("contract", True)]),
        (nn.GroupNorm(1, 6), [("normalize", False), ("contract", True)]),
        (nn.Softmax(-1), [("softmax", False), ("contract", True)]),
        (Fn(lambda x: x - x.mean(-1, keepdim=True)), [("mean", False), ("contract", True)]),
        (Fn(lambda x: x - x.sum(-1, keepdim=True)), [("sum", True), ("contract", True)]),
        (Fn(lambda x: x - x.sigmoid().sum(-1, keepdim=True)), [("sum", False), ("contract", True)]),
        (Fn(lambda x: x / x.norm(dim=-1, keepdim=True)), [("norm", True), ("contract", True)]),
        (Fn(lambda x: x - x.amax(-1, keepdim=True)), [("max", False), ("contract", True)]),
        (Fn(lambda x: x - x.logsumexp(-1, keepdim=True)), [("logsumexp", False), ("contract", True)]),
    ],
    ids=str,
)
def test_mixing_points(middle: nn.Module, expected: list[tuple[str, bool]]) -> None:
    points = deps_of(Mixed(middle), torch.randn(3, 4)).mixing_points
    found = {(p.step, p.kind): p.neutral for p in points}
    assert [(kind, neutral) for (_, kind), neutral in sorted(found.items())] == expected


def test_axes_that_stay_whole_have_no_mixing_points() -> None:
    assert {p.node for p in deps_of(Net(), IMAGE).mixing_points} == {"grouped", "fc"}


# The graph.


def test_the_graph_joins_axes_through_operations() -> None:
    deps = deps_of(Net(), IMAGE)
    graph = deps.graph
    axes = {n for n, data in graph.nodes(data=True) if data["kind"] == "axis"}
    assert axes == {str(m).split("*")[0] for g in deps.groups for m in g.members}
    assert nx.has_path(graph, "stem.weight[0]", "fc.weight[1]")
    for group in deps.groups:
        carrying = nx.Graph((a, b) for a, b, data in graph.edges(data=True) if str(group.index) in data["groups"].split())
        assert nx.is_connected(carrying)
        assert {n for n in carrying if n in axes} == {str(m).split("*")[0] for m in group.members}
    assert graph.nodes["stem.weight[0]"] == {"kind": "axis", "size": 6, "groups": "0 1"}
    assert graph.nodes["stem:aten.conv2d.default"] == {"kind": "op", "node": "stem", "op": "aten.conv2d.default"}


def test_the_graph_is_saved(tmp_path: Path) -> None:
    deps = deps_of(Net(), IMAGE)
    deps.save(str(tmp_path / "net.graphml"))
    read = nx.read_graphml(tmp_path / "net.graphml", force_multigraph=True)
    assert {n: dict(d) for n, d in read.nodes(data=True)} == {n: dict(d) for n, d in deps.graph.nodes(data=True)}
    assert sorted(map(sorted, read.edges())) == sorted(map(sorted, deps.graph.edges()))
    deps.save(str(tmp_path / "net.dot"))
    text = (tmp_path / "net.dot").read_text()
    assert text.startswith("graph couplings {\n")
    assert '  "stem.weight[0]" -- "stem:aten.conv2d.default" [label="0 1"];\n' in text
    with pytest.raises(AnalysisError, match=r"saved as .graphml or .dot, not as 'net.png'"):
        deps.save("net.png")


class Overlapping(nn.Module):
    """Uses the first two of three channels in one layer, the last two in another."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 5), nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        return self.left(hidden[:, :2]) + self.right(hidden[:, 1:])


def test_channels_of_which_no_two_are_alike_say_so() -> None:
    explanation = deps_of(Overlapping(), torch.randn(2, 4)).explain("one.weight")
    assert (explanation.free, explanation.groups) == (3, ())
    assert str(explanation) == (
        "one.weight[0], 3 positions: 3 of them could go, but no two alike, so that there is no group to choose from"
    )


def test_whatever_is_whole_has_a_reason() -> None:
    for name in ("shuffle", "swin", "vit", "lstm"):
        net = NETS[name]
        deps = fxprune.analyze(fxprune.capture(net.build(), net.inputs(2)))
        texts = [str(deps.explain(t.name, d)) for t in deps.tracked for d in range(len(t.label))]
        assert not [text for text in texts if text.endswith("whole: ")]
