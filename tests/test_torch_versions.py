"""Where versions of torch differ: with each of them the same comes out. Run on all of them: ``python -m tests.versions``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fxprune
from fxprune.rules import find_rule
from fxprune.rules.pointwise import POINTWISE
from fxprune.rules.registry import overloads
from tests.compare import relative_error, run


class Recurrent(nn.Module):
    def __init__(self, dtype: torch.dtype, **options: Any) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True, dtype=dtype, **options)
        self.head = nn.Linear(options.get("proj_size", 6), 3, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x)[0])
        return out


class States(Recurrent):
    def forward(self, x: Tensor) -> Any:
        return self.lstm(x)[1]


LSTMS = pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.float64, {}), (torch.float64, {"num_layers": 2}), (torch.float32, {"proj_size": 3}), (torch.float32, {})],
    ids=["float64", "float64, two layers", "projections", "float32"],
)


# On a CPU torch says that oneDNN has no projections.
@pytest.mark.filterwarnings("ignore:LSTM with projections")
@LSTMS
@pytest.mark.parametrize("batch", [1, 2])
def test_fake_tensors_of_lstm_states_have_the_shapes_of_real_ones(dtype: torch.dtype, options: Any, batch: int) -> None:
    model, x = States(dtype, **options), torch.randn(batch, 5, 4, dtype=dtype)
    program = fxprune.to_exported_program(fxprune.capture(model, x), x, dynamic_batch=False)
    fakes = [node.meta["val"] for node in program.graph.output_node().args[0]]
    assert [fake.shape for fake in fakes] == [real.shape for real in model(x)]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@LSTMS
@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_hidden_units_of_an_lstm_can_go(dtype: torch.dtype, options: Any, frontend: Any) -> None:
    model, x = Recurrent(dtype, **options).eval(), torch.randn(2, 5, 4, dtype=dtype)
    gm = fxprune.capture(model, x, frontend=frontend)
    deps = fxprune.analyze(gm)
    hidden = [group for group in deps.groups if group.size == 6]
    assert {"lstm.weight_ih_l0", "lstm.weight_hh_l0"} <= {member.name for member in hidden[0].members}
    fxprune.mask(gm, fxprune.plan(deps, 0.5))
    masked = run(gm, (x,))
    fxprune.shrink(gm)
    assert relative_error(run(gm, (x,)), masked) <= 1e-6


class FloatTimesBool(nn.Module):
    kept: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.register_buffer("kept", torch.rand(3, 4) > 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.kept)


def test_onnx_takes_float_parameters_times_boolean_tensors(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = FloatTimesBool().eval(), torch.randn(2, 4)
    fxprune.to_onnx(fxprune.capture(model, x), x, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(result, model(x).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["leaky_relu", "leaky_relu_", "elu", "elu_", "celu_", "selu_", "hardsigmoid_", "hardtanh_"])
def test_activations_that_not_every_torch_tags_have_the_rule_of_element_wise_operators(name: str) -> None:
    (op,) = overloads(name)
    assert find_rule(op) is POINTWISE


@pytest.mark.parametrize("weights", [{"need_weights": False}, {}, {"average_attn_weights": False}], ids=str)
@pytest.mark.parametrize("batch", [0, 3])
def test_fused_attention_on_fake_tensors_gives_the_forms_of_a_real_run(weights: dict[str, bool], batch: int) -> None:
    with torch.no_grad():
        layer, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(batch, 5, 8)
        fakes = FakeTensorMode(allow_fallback_kernels=False)
        operands: list[Any] = [8, 2, layer.in_proj_weight, layer.in_proj_bias, layer.out_proj.weight, layer.out_proj.bias, None]
        options = [weights.get("need_weights", True), weights.get("average_attn_weights", True), None]
        real = torch.ops.aten._native_multi_head_attention(x, x, x, *operands, *options)
        with fakes:
            fake_x, *operands = [fakes.from_tensor(v) if isinstance(v, Tensor) else v for v in (x, *operands)]
            fake = torch.ops.aten._native_multi_head_attention(fake_x, fake_x, fake_x, *operands, *options)
    # Where there are no weights, a real run gives None and a fake one something empty.
    assert [(t.shape, t.stride()) for t in fake if t.numel()] == [
        (t.shape, t.stride()) for t in real if t is not None and t.numel()
    ]


def test_fused_encoder_layer_on_fake_tensors_gives_the_form_of_a_real_run() -> None:
    forms = []
    modes: tuple[Any, ...] = contextlib.nullcontext(), FakeTensorMode(allow_fallback_kernels=False)
    for mode in modes:
        with torch.no_grad(), mode:
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            attention = layer.self_attn
            result = torch.ops.aten._transformer_encoder_layer_fwd(
                torch.ones(3, 5, 8),
                *(8, 2, attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight, attention.out_proj.bias),
                *(False, False, 1e-5, layer.norm1.weight, layer.norm1.bias, layer.norm2.weight, layer.norm2.bias),
                *(layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, layer.linear2.bias),
            )
            forms.append((result.shape, result.stride(), result.dtype))
    assert forms[0] == forms[1]
