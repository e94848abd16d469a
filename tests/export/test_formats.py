"""TorchScript, torch.export and ONNX, of masked and of finalized graphs."""

from __future__ import annotations

import copy
import io
import operator
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from tests.compare import relative_error, run
from tests.graph.test_survival import FRONTENDS, NETS, conv_inputs, masked_graph, sequence_inputs
from tests.nets import ConvNet, SequenceNet, randomised


def reloaded(ts: torch.jit.ScriptModule) -> Any:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(ts, file)
        file.seek(0)
        return torch.jit.load(file)


@pytest.fixture(params=["masked", "finalized"])
def stage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def at_stage(gm: fx.GraphModule, stage: str) -> fx.GraphModule:
    return fxprune.finalize(gm) if stage == "finalized" else gm


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(("net", "inputs"), NETS)
def test_scripted_graph_is_equal_after_reloading_at_any_batch_size_in_both_modes(
    net: Any, inputs: Any, frontend: Any, stage: str
) -> None:
    gm = at_stage(masked_graph(net, inputs, frontend), stage)
    code = gm.code
    ts = fxprune.to_torchscript(gm, inputs(2), method="script")
    assert gm.code == code
    loaded = reloaded(ts)
    for training in (False, True):
        for batch in (2, 5, 1):
            x = inputs(batch)
            reference = copy.deepcopy(gm).train(training)
            assert relative_error(run(loaded.train(training), x), run(reference, x)) <= 1e-9


def test_torch_says_nothing_of_its_deprecated_exporter_to_the_user() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxprune.to_torchscript(fxprune.capture(ConvNet(), torch.randn(2, 3, 6, 6)), torch.randn(2, 3, 6, 6))


def test_after_finalize_no_multiply_by_a_mask_is_left() -> None:
    gm = fxprune.capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3))
    fxprune.l1_unstructured(gm, "0.weight", 0.5)
    x = torch.randn(2, 3)
    assert any(n.target is operator.mul for n in gm.graph.nodes)
    assert "aten::mul" in str(fxprune.to_torchscript(gm, x).inlined_graph)
    fxprune.finalize(gm)
    assert not any(n.target is operator.mul for n in gm.graph.nodes)
    assert "aten::mul" not in str(fxprune.to_torchscript(gm, x).inlined_graph)


def only_for_eager(x: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(x.numpy())) if not torch.jit.is_tracing() else torch.tanh(x)


fx.wrap("only_for_eager")


class NotScriptable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return only_for_eager(self.layer(x))


def test_what_cannot_be_scripted_is_traced_and_the_warning_says_why() -> None:
    gm = fxprune.capture(NotScriptable().eval(), torch.randn(2, 3))
    x = torch.randn(2, 3)
    with pytest.warns(fxprune.ExportWarning, match="traced, not scripted, so it is fixed to eval mode.*Scripting failed"):
        ts = fxprune.to_torchscript(gm, x)
    assert isinstance(ts, torch.jit.TopLevelTracedModule)
    with torch.no_grad():
        assert relative_error(reloaded(ts)(x), gm(x)) <= 1e-6
    with pytest.raises(fxprune.ExportError, match="TorchScript cannot script this graph"):
        fxprune.to_torchscript(gm, x, method="script")


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(("net", "inputs"), NETS)
def test_tracing_on_request(net: Any, inputs: Any, frontend: Any) -> None:
    gm = masked_graph(net, inputs, frontend).eval()
    x = inputs(2)
    ts = fxprune.to_torchscript(gm, x, method="trace")
    assert relative_error(reloaded(ts)(*x), gm(*x)) <= 1e-9


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(("net", "inputs"), NETS)
def test_exported_program(net: Any, inputs: Any, frontend: Any, stage: str) -> None:
    gm = at_stage(masked_graph(net, inputs, frontend).eval(), stage)
    program = fxprune.to_exported_program(gm, inputs(2))
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
    for batch in (2, 5):
        x = inputs(batch)
        assert relative_error(loaded(*x), gm(*x)) <= 1e-9


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_onnx_in_onnxruntime(frontend: Any, stage: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    gm = fxprune.capture(randomised(ConvNet()).eval(), torch.randn(2, 3, 6, 6), frontend=frontend)
    fxprune.global_unstructured(gm, ["stem.weight", "head.weight"], fxprune.L1Unstructured, amount=0.5)
    at_stage(gm, stage)
    path = tmp_path / "net.onnx"
    fxprune.to_onnx(gm, torch.randn(2, 3, 6, 6), path)
    session = onnxruntime.InferenceSession(str(path))
    for batch in (2, 4):
        x = torch.randn(batch, 3, 6, 6)
        (ours,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            assert relative_error(torch.from_numpy(ours), gm(x)) <= 1e-5


def test_keyword_inputs_are_taken_in_the_order_of_the_graph() -> None:
    class Net(nn.Module):
        def forward(self, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
            return a - b if c is None else a - b * c

    x, y, z = torch.randn(3, 2), torch.randn(3, 2), torch.randn(3, 2)
    gm = fxprune.capture(Net(), (x,), {"c": z, "b": y})
    for ts in (fxprune.to_torchscript(gm, (x,), {"b": y, "c": z}), fxprune.to_torchscript(gm, (x, y, z), method="trace")):
        assert torch.equal(ts(x, y, z), x - y * z)


@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_an_exported_program_takes_keywords_as_the_example_gave_them(dynamic_batch: bool) -> None:
    class Net(nn.Module):
        def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
            return a if b is None else a - 2 * b

    x, y = torch.randn(3, 2), torch.randn(3, 2)
    gm = fxprune.capture(Net(), x, {"b": y})
    program = fxprune.to_exported_program(gm, x, {"b": y}, dynamic_batch=dynamic_batch)
    assert torch.equal(program.module()(x, b=y), x - 2 * y)


def test_inputs_that_do_not_fit_the_graph() -> None:
    gm = fxprune.capture(ConvNet(), torch.randn(2, 3, 6, 6))
    for exporter in (fxprune.to_torchscript, fxprune.to_exported_program, fxprune.to_onnx):
        with pytest.raises(fxprune.InputError, match=r"do not fit the graph's forward\(x\): too many positional arguments"):
            exporter(gm, (torch.ones(1), torch.ones(1)))


def test_an_unknown_method_is_refused() -> None:
    gm = fxprune.capture(SequenceNet(), sequence_inputs(2))
    with pytest.raises(fxprune.ExportError, match='method must be "auto", "script" or "trace", not \'onnx\''):
        fxprune.to_torchscript(gm, sequence_inputs(2), method="onnx")  # type: ignore[arg-type]


def test_a_graph_that_torch_export_refuses() -> None:
    gm = fxprune.capture(NotScriptable().eval(), torch.randn(2, 3))
    with pytest.raises(fxprune.ExportError, match=r"torch\.export refuses this graph"):
        fxprune.to_exported_program(gm, conv_inputs(2)[0].float()[:, :, 0, :3].contiguous())
