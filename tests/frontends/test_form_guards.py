"""What a graph takes from the form of the example is checked at the call, or follows."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)


class BranchesOnDtype(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x.float()))) * (2 if x.dtype == torch.float32 else 3)


class Scales(Net):
    """Images of bytes, or of floats."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x if x.is_floating_point() else x.float() / 255))


class AsksTorch(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x if torch.is_floating_point(x) else x.float() / 255))


class Limits(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y / (y.abs().amax() + torch.finfo(y.dtype).eps * 1e3))


class Makes(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return self.b(h * torch.linspace(0, 1, 8, dtype=h.dtype, device=h.device))


class CastsBack(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h.float().softmax(-1).to(h.dtype))


class LimitsInTraining(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y / (y.abs().amax() + torch.finfo(y.dtype).eps * 1e3) if self.training else y)


class AsksForGradients(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) * (2 if x.requires_grad else 3)


class AsksForLayout(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) * (2 if x.is_contiguous() else 3)


class Plain(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return self.b(h + torch.zeros_like(h) + h.new_ones(8) + torch.arange(8, device=x.device).type_as(h))


class Attends(nn.Module):
    """torch's own layers ask for dtypes, and hand none to an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x[:, None], x[:, None], x[:, None], need_weights=False)[0][:, 0]


def captured(kind: type[nn.Module], x: Tensor, frontend: str = "export") -> tuple[nn.Module, fx.GraphModule]:
    torch.manual_seed(0)
    model = kind().eval()
    return model, fxprune.capture(model, x, frontend=frontend)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "change", "what", "frontend"),
    [
        (BranchesOnDtype, lambda x: x.half(), r"input 'x' was of torch.float32 .*test_form_guards.py:\d+ asks for", "export"),
        (Scales, lambda x: x.to(torch.uint8), "input 'x' was of torch.float32", "export"),
        (AsksTorch, lambda x: x.to(torch.uint8), "input 'x' was of torch.float32", "export"),
        (AsksForGradients, lambda x: x.clone().requires_grad_(), "input 'x' did not require gradients", "export"),
        (AsksForLayout, lambda x: x.t().contiguous().t(), "input 'x' was contiguous", "export"),
        (BranchesOnDtype, lambda x: x.half(), r"input 'x' was of torch.float32 .*test_form_guards.py:\d+ asks for", "trace"),
        (Scales, lambda x: x.to(torch.uint8), "input 'x' was of torch.float32", "trace"),
        (AsksTorch, lambda x: x.to(torch.uint8), "input 'x' was of torch.float32", "trace"),
    ],
)
def test_an_input_of_another_form_is_refused(
    kind: type[nn.Module], change: Callable[[Tensor], Tensor], what: str, frontend: str
) -> None:
    x = torch.randn(3, 4)
    model, gm = captured(kind, x, frontend)
    assert torch.equal(gm(x), model(x))
    with pytest.raises(RuntimeError, match=what):
        gm(change(x))
    with pytest.raises(RuntimeError, match=what):
        pickle.loads(pickle.dumps(gm))(change(x))
    fxprune.to_torchscript(gm, x)
    assert fxprune.verify(gm, copy.deepcopy(gm), x) < 1e-9


@pytest.mark.parametrize(
    ("kind", "frontend"),
    [(BranchesOnDtype, "export"), (Limits, "export"), (Makes, "export"), (CastsBack, "export"), (BranchesOnDtype, "trace")]
    + [(Limits, "trace"), (LimitsInTraining, "trace")],
)
@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.double, nn.Module.bfloat16])
def test_a_graph_that_holds_dtypes_is_not_converted(
    kind: type[nn.Module], frontend: str, convert: Callable[[nn.Module], nn.Module]
) -> None:
    model, gm = captured(kind, torch.randn(3, 4), frontend)
    for graph in (gm, copy.deepcopy(gm), pickle.loads(pickle.dumps(gm))):
        with pytest.raises(fxprune.CaptureError, match=r"in torch.float32 .*test_form_guards.py:\d+: convert the model"):
            convert(graph)
        assert {p.dtype for p in graph.parameters()} == {torch.float32}
    x = torch.randn(3, 4)
    assert torch.equal(gm.float()(x), model(x))


@pytest.mark.parametrize(
    ("kind", "frontend"), [(Plain, "export"), (Attends, "export"), (Plain, "trace"), (Makes, "trace"), (CastsBack, "trace")]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_graph_without_dtypes_is_converted(kind: type[nn.Module], frontend: str, dtype: torch.dtype) -> None:
    model, gm = captured(kind, torch.randn(3, 4), frontend)
    x = torch.randn(3, 4).to(dtype)
    assert torch.equal(gm.to(dtype)(x), model.to(dtype)(x))


@pytest.mark.parametrize("kind", [Makes, CastsBack, Plain])
def test_another_device(kind: type[nn.Module]) -> None:
    _, gm = captured(kind, torch.randn(3, 4))
    gm.to("meta")
    assert gm(torch.randn(3, 4, device="meta")).device.type == "meta"


@pytest.mark.parametrize("kind", [CastsBack, Makes, Plain])
@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.filterwarnings("ignore:the graph has dtypes as constants:fxprune.CaptureWarning")
def test_autocast(kind: type[nn.Module], frontend: str) -> None:
    model, x = kind().eval(), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        try:
            gm = fxprune.capture(model, x, frontend=frontend)  # type: ignore[arg-type]
        except fxprune.CaptureError:
            assert frontend == "trace"
            return
        assert torch.allclose(gm(x).float(), model(x).float(), rtol=0.05, atol=0.05)
        gm(x).sum().backward()
    assert torch.equal(gm(x), model(x))
    assert not [node for node in gm.graph.nodes if "assert_tensor_metadata" in str(node.target)]


class BranchesOnComputed(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h) * (2 if h.dtype == torch.float32 else 3)


class MakesLikeComputed(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h * torch.full((), 0.3, dtype=h.dtype))


class BranchesOnScores(Net):
    def forward(self, x: Tensor) -> Tensor:
        scores = self.a(x).softmax(-1)
        return self.b(scores) * (2 if torch.finfo(scores.dtype).bits == 32 else 3)


class AsksForWeights(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.to(self.a.weight.dtype)))


@pytest.mark.parametrize("kind", [BranchesOnComputed, MakesLikeComputed, BranchesOnScores])
def test_dtypes_of_computed_tensors_are_warned_of_under_autocast(kind: type[nn.Module]) -> None:
    x = torch.randn(3, 4)
    model, gm = captured(kind, x)
    assert torch.equal(gm(x), model(x))
    for graph in (gm, copy.deepcopy(gm), pickle.loads(pickle.dumps(gm)), fxprune.prune(model, x, 0.25, frontend="export")):
        with torch.autocast("cpu", torch.bfloat16):
            with pytest.warns(fxprune.CaptureWarning, match=r":\d+ asks of a computed tensor; under autocast"):
                graph(x)
            torch.compile(graph, backend="eager", fullgraph=True)(x)
        graph(x)
    fxprune.to_torchscript(gm, x)


def test_dtypes_of_weights_are_not_warned_of_under_autocast() -> None:
    x = torch.randn(3, 4)
    model, gm = captured(AsksForWeights, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gm(x), model(x))


def test_gradients_of_other_tensors_are_warned_of() -> None:
    class Asks(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y * 2 if self.a.weight.requires_grad else y)

    with pytest.warns(fxprune.CaptureWarning, match=r"test_form_guards.py:\d+ asks whether a tensor requires gradients"):
        fxprune.capture(Asks().eval(), torch.randn(3, 4), frontend="export")


def test_a_capture_that_fails_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    class Fails(Net):
        def forward(self, x: Tensor) -> Tensor:
            if (y := self.a(x)).sum() > 0:
                return y
            return self.a(self.a(x))

    frontends: tuple[Any, ...] = ("export", "auto")
    for frontend in frontends:
        with pytest.raises(fxprune.CaptureError):
            fxprune.capture(Fails().eval(), torch.randn(3, 4), frontend=frontend)
    assert logging.root.manager.disable == 0
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
