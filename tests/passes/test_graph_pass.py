"""Every pass keeps its contract wherever a pipeline runs it: the graph is legal, and as the pass says, after each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.passes.infra.pass_manager import PassManager

import fxprune
from fxprune.errors import ShrinkError
from fxprune.graph.parts import shared_copy
from fxprune.passes import Finalize, Lower, Mask, RaiseLeaves, Shrink
from fxprune.passes.bake import Bake
from fxprune.passes.graph_pass import GraphPass
from fxprune.passes.shrink_units import ShrinkUnits
from fxprune.testing import check_graph
from tests.golden.registry import NETS
from tests.passes import masked_texts, shrunk_texts
from tests.passes.texts import Text
from tests.shrinking import captured, doubled

TEXTS = {text.name: text for text in (*masked_texts.TEXTS, *shrunk_texts.TEXTS)}
X = torch.linspace(-1, 1, 12).reshape(2, 6)


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch) -> set[type[GraphPass]]:
    """Check every graph after every pass, those inside of others included; the passes that ran."""
    ran: set[type[GraphPass]] = set()

    def checked(self: GraphPass, graph_module: fx.GraphModule) -> PassResult:
        self.requires(graph_module)
        before = graph_module.code
        result = self.run(graph_module)
        assert result.graph_module is graph_module
        assert result.modified or graph_module.code == before, f"{self} changed the graph and did not say so"
        check_graph(graph_module)
        self.ensures(graph_module)
        ran.add(type(self))
        return result

    monkeypatch.setattr(GraphPass, "__call__", checked)
    return ran


def _every_way(model: nn.Module, inputs: tuple[Tensor, ...], frontend: str = "trace") -> None:
    """Go through the pipelines: prune, verified and not; mask and shrink; mask, finalize and shrink; lower and raise."""
    gm = captured(model, inputs, frontend)
    for verify in (False, True):
        fxprune.prune(model, doubled(inputs), 0.5, frontend="trace" if frontend == "trace" else "export", verify=verify)
    plan = fxprune.plan(fxprune.analyze(gm), 0.5)
    fxprune.shrink(fxprune.mask(shared_copy(gm), plan), verify=False)
    PassManager([Mask(plan), Finalize(), Shrink()])(shared_copy(gm))
    text = gm.code
    PassManager([Lower([next(iter(gm.named_parameters()))[0]]), RaiseLeaves()])(gm)
    assert gm.code == text


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_nets(text: Text, ran: set[type[GraphPass]]) -> None:
    torch.manual_seed(0)
    _every_way(text.build(), (torch.randn(*text.shape),), text.frontend)
    assert ShrinkUnits in ran


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in NETS if not name.startswith(("llama", "bert", "gpt2"))])
def test_golden_networks(name: str, ran: set[type[GraphPass]]) -> None:
    model, inputs = NETS[name].build(), NETS[name].inputs(2)
    gm = captured(model, inputs)
    fxprune.shrink(fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5)), verify=False)
    fxprune.prune(model, doubled(inputs), 0.5, verify=False)
    assert ShrinkUnits in ran


@fx.wrap
def _halved(x: Tensor) -> Tensor:
    return torch.relu(x) * x.shape[1]


class Net(nn.Module):
    """Has something for the passes that most networks do not need."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(_halved(self.first(x)))))


def test_every_pass_runs_somewhere(ran: set[type[GraphPass]]) -> None:
    _every_way(TEXTS["sizes_of_attention"].build(), (torch.randn(*TEXTS["sizes_of_attention"].shape),))
    _every_way(Net(), (X,))
    gm = captured(Net(), (X,))
    with torch.no_grad():
        gm.get_parameter("first.weight")[:3] = 0
    fxprune.shrink(gm, from_zeros=True, verify=False)
    every = {each for each in GraphPass.__subclasses__() if each.__module__.startswith("fxprune.passes")}
    assert every <= ran


def test_every_pass_is_a_frozen_dataclass_in_a_short_file() -> None:
    for each in GraphPass.__subclasses__():
        assert vars(each)["__dataclass_params__"].frozen, each
        assert each.__doc__ is not None
        assert each.__doc__.startswith("Pass: "), each


def test_units_of_a_masked_graph_are_refused() -> None:
    gm = captured(Net(), (X,))
    deps = fxprune.analyze(gm)
    plan = fxprune.plan(deps, 0.5)
    fxprune.mask(gm, plan)
    text = gm.code
    with pytest.raises(ShrinkError, match=r"'first\.weight' is masked: bake the masks first"):
        ShrinkUnits(deps, plan.removed(deps))(gm)
    assert gm.code == text


def test_what_a_pass_ensures_can_fail() -> None:
    gm = captured(Net(), (X,))
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    with pytest.raises(AssertionError, match="a parameter is masked"):
        Bake().ensures(gm)
    with pytest.raises(AssertionError, match="calls a module with one of the parameters"):
        Lower(["last.weight"]).ensures(fxprune.finalize(gm))


def test_the_example_of_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    guide = Path(fxprune.__file__).parents[1] / "passes" / "README.md"
    example = guide.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    exec(compile(example, str(guide), "exec"), {})
    assert capsys.readouterr().out.split() == ["True", "False"]
