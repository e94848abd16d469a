"""analyze on code that is easily misread: writes in place, picks by index, counted positions, unusual shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import FxpruneError, RuleError
from tests.zoo.exchange import exchange_error

INPUT = torch.randn(3, 4)


class Case(nn.Module):
    """Two linear layers of five hidden channels, with code of the test's own between them, and things that it may use."""

    index: Tensor
    one: Tensor

    def __init__(self, code: Callable[[Case, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)
        self.latents, self.places = nn.Parameter(torch.randn(5, 5)), nn.Embedding(7, 5)
        self.register_buffer("index", torch.tensor([0, 1, 2, 3, 4]))
        self.register_buffer("one", torch.tensor(2))
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


def found(code: Callable[[Case, Tensor], Tensor], frontend: str = "export") -> fxprune.Dependencies:
    gm = fxprune.capture(Case(code).eval(), INPUT, frontend=frontend)  # type: ignore[arg-type]
    deps = fxprune.analyze(gm)
    error = exchange_error(gm, deps, (INPUT,), {})
    assert error is None or error < 1e-5
    return deps


def free(deps: fxprune.Dependencies, name: str, dim: int = 0) -> int:
    return deps.explain(name, dim).free


def counted(case: Case, x: Tensor) -> Tensor:
    places = case.places(torch.ones(5, dtype=torch.long).cumsum(0) - 1)
    return case.b(case.a(x)) + F.relu((case.latents + places) @ case.b.weight.T).sum(0)


def test_positions_that_are_counted_stay() -> None:
    assert free(found(counted), "latents", 0) == 0


def picked(case: Case, x: Tensor) -> Tensor:
    hidden = case.a(x)
    return case.b(hidden) + torch.ops.aten.index.Tensor(hidden, [None, case.one])[:, None]


def test_a_position_picked_by_a_tensor_stays() -> None:
    deps = found(picked)
    assert free(deps, "a.weight") == 4
    assert "is picked by its index" in str(deps.explain("a.weight"))


def selected(case: Case, x: Tensor) -> Tensor:
    hidden = case.a(x)
    return case.b(hidden) + torch.index_select(hidden, 1, case.one)


def test_index_select_by_a_single_number_keeps_its_dimension() -> None:
    deps = found(selected)
    assert not deps.without_rule
    assert free(deps, "a.weight") == 4


def rewritten(case: Case, x: Tensor) -> Tensor:
    case.index[:2].fill_(3)
    return case.b(case.a(x)[:, case.index])


def test_an_index_that_was_written_to_is_not_known() -> None:
    deps = found(rewritten)
    assert free(deps, "a.weight") == 0
    assert "indexed by values that are not known" in str(deps.explain("a.weight"))


def clamped(case: Case, x: Tensor) -> Tensor:
    with torch.no_grad():
        case.a.bias.clamp_(min=0.1)
        case.b.weight.clamp_(min=0.1)
    return case.b(case.a(x))


def test_parameters_that_were_written_to_need_not_be_zero() -> None:
    deps = found(clamped)
    (contraction,) = {(p.node, p.neutral) for p in deps.mixing_points if "linear" in p.op}
    assert not contraction[1]


def test_a_flip_of_no_dimensions_is_none() -> None:
    (group,) = found(lambda case, x: case.b(torch.flip(case.a(x), ()))).groups
    assert all((m.positions[:, 0] == range(5)).all() for m in group.members)


def broadcast_heads(case: Case, x: Tensor) -> Tensor:
    hidden = case.a(x)[None]
    query, key = hidden[:, None], hidden[:, None].expand(1, 2, -1, -1)
    return case.b(F.scaled_dot_product_attention(query, key, key)).sum(1)[0]


def test_a_head_that_broadcasts_in_attention() -> None:
    deps = found(broadcast_heads)
    assert not deps.without_rule
    assert free(deps, "a.weight") == 5


def test_a_linear_layer_with_a_vector_for_a_weight() -> None:
    deps = found(lambda case, x: F.linear(case.a(x), case.places.weight[0])[:, None] + case.b(case.a(x)))
    assert not deps.without_rule
    assert free(deps, "a.weight") == 5


def test_a_rule_that_does_not_fit_keeps_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxprune.rules import OpCard, Pattern, registry

    entry = registry._ENTRIES[torch.ops.aten.linear.default]
    broken = registry._Entry(OpCard(Pattern("b i, o i, o -> b i")), entry.place, by_user=False)
    monkeypatch.setitem(registry._ENTRIES, torch.ops.aten.linear.default, broken)
    deps = fxprune.analyze(fxprune.capture(Case(lambda case, x: case.b(case.a(x))).eval(), INPUT))
    assert not deps.groups
    assert len(deps.without_rule) == 2
    assert "the rule 'b i, o i, o -> b i' of aten.linear.default" in str(deps.explain("a.weight"))


def test_weights_standardised_by_a_batch_norm_do_not_hold_their_inputs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Standardised(4, 5, 3), nn.ReLU(), Standardised(5, 2, 3))
    gm = fxprune.capture(model.eval(), torch.randn(2, 3, 9, 9))
    deps = fxprune.analyze(gm)
    assert [g.size for g in deps.groups] == [4, 5]
    assert {(p.kind, p.neutral) for p in deps.mixing_points if p.op == "aten.batch_norm.default"} == {("normalize", False)}
    error = exchange_error(gm, deps, (torch.randn(2, 3, 9, 9),), {})
    assert error is not None
    assert error < 1e-9


class Standardised(nn.Conv2d):
    """A convolution whose weight has mean zero and variance one for each output, by the function that is at hand."""

    def forward(self, input: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(input, weight.reshape_as(self.weight), self.bias)


@torch.library.custom_op("fxprune_tests::reverse_", mutates_args={"x"})
def reverse_(x: Tensor) -> None:
    """Write in place, and return nothing."""
    x.copy_(x.flip(-1))


def test_an_operator_that_only_writes_keeps_whole_what_it_touches() -> None:
    def code(case: Case, x: Tensor) -> Tensor:
        hidden = case.a(x).clone()
        torch.ops.fxprune_tests.reverse_(hidden)
        return case.b(hidden)

    deps = found(code)
    assert free(deps, "a.weight") == 0
    assert deps.without_rule


# Misuse.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"zeros": "q"}, r"'q' in zeros='q' is neither the number of one of 1 operands"),
        ({"zeros": "0*1"}, r"'1' in zeros='0\*1' is neither the number of one of 1 operands"),
        ({"mixes": "foo"}, r"mixes must be one of contract, .*, not 'foo'"),
        ({"pattern": "...a ...b -> ...a"}, r"'...a ...b' has more than one dimension that stands for any number"),
        ({"pattern": None}, r"a rule reads 'operands -> results', not None"),
        ({"op": "aten.add"}, r"'aten.add' is not an operator overload such as"),
        ({"op": torch.ops.aten.add}, r"aten.add.* is not an operator overload such as"),
    ],
)
def test_rules_that_mean_nothing_are_refused(arguments: dict[str, str], message: str) -> None:
    given = {"op": torch.ops.aten.bernoulli.out, "pattern": "...a -> ...a", **arguments}
    op, pattern = given.pop("op"), given.pop("pattern")
    with pytest.raises(RuleError, match=message):
        fxprune.register_rule(op, pattern, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "dim", "message"),
    [
        (None, 0, "name must be the dotted name of a parameter or buffer, not None"),
        ("a.weight", "0", "dim must be the number of a dimension of 'a.weight', not '0'"),
        ("a.weight", True, "dim must be the number of a dimension of 'a.weight', not True"),
    ],
)
def test_explain_refuses_other_types(name: str, dim: int, message: str) -> None:
    deps = found(lambda case, x: case.b(case.a(x)), "trace")
    with pytest.raises(FxpruneError, match=message) as caught:
        deps.explain(name, dim)
    assert isinstance(caught.value, TypeError)


def test_a_masked_parameter_is_explained_under_either_name(tmp_path: Path) -> None:
    gm = fxprune.capture(Case(lambda case, x: case.b(case.a(x))).eval(), INPUT)
    fxprune.l1_unstructured(gm, "a.weight", 0.3)
    deps = fxprune.analyze(gm)
    assert deps.explain("a.weight").groups == deps.explain("a.weight_orig").groups == deps.groups
    deps.save(tmp_path / "couplings.dot")
    assert (tmp_path / "couplings.dot").exists()
