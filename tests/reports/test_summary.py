"""summary: rows, totals, and the table they make."""

import textwrap
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune.errors import InputError, PruningTypeError
from fxprune.reports.comparison import Comparison, Cost, Layer, Work
from fxprune.reports.summary import Row, Summary, summary


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tensor) -> Any:
        y = self.norm(self.conv(self.embed(tokens).transpose(1, 2)))
        return self.head(y.transpose(1, 2)) * self.scale


def build() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def captured(model: nn.Module | None = None) -> Any:
    return fxprune.capture(model or build(), torch.arange(5).view(1, 5), frontend="trace")


def row(gm: Any, name: str) -> Row:
    (found,) = [r for r in fxprune.summary(gm).rows if r.name == name]
    return found


def test_summary_of_a_dense_graph_has_a_row_for_each_parameter_and_no_mask() -> None:
    summary = fxprune.summary(captured())
    assert [r.name for r in summary.rows] == [
        "scale",
        "embed.weight = head.weight",
        "conv.weight",
        "conv.bias",
        "norm.weight",
        "norm.bias",
    ]
    assert [r.shape for r in summary.rows] == [(), (6, 4), (4, 4, 3), (4,), (4,), (4,)]
    assert {(r.method, r.mask_bytes) for r in summary.rows} == {("", 0)}
    assert (summary.elements, summary.mask_bytes) == (1 + 24 + 48 + 4 + 4 + 4, 0)
    assert row(captured(), "norm.bias").sparsity == 1.0
    assert (summary.zeros, summary.sparsity) == (4, 4 / 85)


def test_table_reads() -> None:
    gm = captured()
    fxprune.l1_unstructured(gm, "conv.weight", 0.5)
    fxprune.ln_structured(gm, "conv.weight", 1, 2, 0)
    fxprune.random_structured(gm, "head.weight", 0.5, 0)
    fxprune.mask(gm, {"norm.weight": torch.tensor([0.5, 1.0, 0.0, 1.0])})
    expected = """
        parameter                   shape    method                          elements    zeros    sparsity
        --------------------------  -------  ----------------------------  ----------  -------  ----------
        scale                       scalar                                          1        0        0.0%
        embed.weight = head.weight  6x4      RandomStructured                      24       12       50.0%
        conv.weight                 4x4x3    L1Unstructured, LnStructured          48       29       60.4%
        conv.bias                   4                                               4        0        0.0%
        norm.weight                 4        given mask                             4        1       25.0%
        norm.bias                   4                                               4        4      100.0%
        total                                                                      85       46       54.1%
        3 of 6 parameters masked; masks take 88 B
    """
    assert str(fxprune.summary(gm)) == textwrap.dedent(expected).strip()


def test_zeros_are_counted_after_the_mask_and_before_it_is_baked_as_after() -> None:
    gm = captured()
    with torch.no_grad():
        gm.get_parameter("conv.bias").copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    fxprune.custom_from_mask(gm, "conv.bias", torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert row(gm, "conv.bias").zeros == 2
    assert row(gm, "conv.bias").sparsity == 0.5
    fxprune.finalize(gm)
    assert row(gm, "conv.bias") == Row("conv.bias", (4,), "", 4, 2, 0)


@pytest.mark.parametrize(
    ("mask", "mask_bytes"),
    [(torch.ones(4), 4), (torch.ones(4).bool(), 4), (torch.full((4,), 0.5), 16), (torch.full((4,), 0.5).double(), 16)],
)
def test_mask_bytes_are_one_an_element_or_those_of_the_parameter(mask: Tensor, mask_bytes: int) -> None:
    gm = captured()
    fxprune.custom_from_mask(gm, "conv.bias", mask)
    assert row(gm, "conv.bias").mask_bytes == fxprune.summary(gm).mask_bytes == mask_bytes


def test_mask_of_a_tied_parameter_is_counted_once() -> None:
    gm = captured()
    fxprune.identity(gm, "embed.weight")
    assert row(gm, "embed.weight = head.weight").mask_bytes == fxprune.summary(gm).mask_bytes == 24


def test_methods_are_named_in_the_order_of_their_calls() -> None:
    class Mine(fxprune.BasePruningMethod):
        PRUNING_TYPE = "unstructured"

        def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
            return default_mask

    gm = captured()
    names = []
    for method, prune in (
        ("Identity", lambda: fxprune.identity(gm, "conv.weight")),
        ("RandomUnstructured", lambda: fxprune.random_unstructured(gm, "conv.weight", 2)),
        ("L1Unstructured", lambda: fxprune.l1_unstructured(gm, "conv.weight", 2)),
        ("RandomStructured", lambda: fxprune.random_structured(gm, "conv.weight", 1, 0)),
        ("LnStructured", lambda: fxprune.ln_structured(gm, "conv.weight", 1, 2, 0)),
        ("CustomFromMask", lambda: fxprune.custom_from_mask(gm, "conv.weight", torch.ones(4, 4, 3))),
        ("CustomFromMask", lambda: fxprune.global_unstructured(gm, ["conv.weight"], fxprune.L1Unstructured, amount=1)),
        ("Mine", lambda: Mine.apply(gm, "conv.weight")),
    ):
        prune()
        names.append(method)
        assert row(gm, "conv.weight").method == ", ".join(names)
    fxprune.remove(gm, "conv.weight")
    assert row(gm, "conv.weight").method == ""


def test_methods_of_a_model_pruned_by_torch_are_named() -> None:
    model = build()
    assert isinstance(model.conv, nn.Module)
    torch_prune.l1_unstructured(model.conv, "weight", 0.5)
    torch_prune.random_structured(model.conv, "weight", 1, 0)
    torch_prune.identity(model.conv, "bias")
    gm = captured(model)
    assert row(gm, "conv.weight").method == "L1Unstructured, RandomStructured"
    assert row(gm, "conv.bias").method == "Identity"


def test_summary_only_reads() -> None:
    gm = captured()
    fxprune.l1_unstructured(gm, "conv.weight", 0.5)
    text, keys = gm.code, list(gm.state_dict())
    assert fxprune.summary(gm) == fxprune.summary(gm)
    assert gm.code == text
    assert list(gm.state_dict()) == keys


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (3 * 1024**3, "3.0 GiB"),
        (1024**4, "1024.0 GiB"),
    ],
)
def test_memory_is_given_in_a_unit_that_fits(size: int, text: str) -> None:
    found = Summary((Row("w", (3,), "Identity", 3, 0, size),))
    assert str(found).endswith(f"masks take {text}")


def test_summary_of_a_graph_without_parameters_is_empty() -> None:
    summary = fxprune.summary(fxprune.capture(nn.Sequential(nn.ReLU()), torch.ones(1, 2)))
    assert summary.rows == ()
    assert (summary.elements, summary.zeros, summary.sparsity) == (0, 0, 0.0)
    assert str(summary).endswith("0 of 0 parameters masked; masks take 0 B")


def test_parameter_of_no_elements_has_no_sparsity() -> None:
    assert Row("w", (0,), "", 0, 0, 0).sparsity == 0.0


def test_model_on_the_meta_device_is_summed_up_without_values() -> None:
    gm = fxprune.capture(build().to("meta"), torch.arange(5, device="meta").view(1, 5), frontend="trace")
    fxprune.identity(gm, "conv.weight")
    assert row(gm, "conv.weight") == Row("conv.weight", (4, 4, 3), "Identity", 48, 0, 48)


class Narrow(nn.Module):
    """Layers around a hidden width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, width, 3, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.conv(x)).mean(2))
        return y


COUNTED = [Work("conv", 2 * 3 * 4 * 3 * 8 * 5, 2 * 3 * 4 * 3 * 6 * 5), Work("head", 2 * 3 * 8 * 2, 2 * 3 * 6 * 2)]


@pytest.mark.parametrize("form", ["module", "trace", "export", "masked"])
def test_two_models_are_compared_in_parameters_bytes_and_flops(form: Any) -> None:
    x = torch.randn(3, 4, 7)
    models: list[Any] = [Narrow(8), Narrow(6)]
    if form != "module":
        models = [fxprune.capture(m, x, frontend="trace" if form == "masked" else form) for m in models]
    if form == "masked":
        for gm in models:
            fxprune.l1_unstructured(gm, "conv.weight", 0.5)
    found = summary(models[0], models[1], x, layers=True, latency=False, file=None)
    assert (found.before.parameters, found.after.parameters) == (96 + 16 + 18, 72 + 12 + 14)
    assert (found.before.bytes, found.after.bytes) == (4 * 130, 4 * 98)
    assert list(found.work) == COUNTED
    assert found.before.flops == sum(work.before for work in COUNTED)
    assert found.after.flops == sum(work.after for work in COUNTED)
    assert (found.before.latency, found.after.latency) == (None, None)
    assert {layer.name: (layer.before, layer.after, layer.removed) for layer in found.layers} == {
        "conv.weight": ((8, 4, 3), (6, 4, 3), 24),
        "norm.weight": ((8,), (6,), 2),
        "norm.bias": ((8,), (6,), 2),
        "head.weight": ((2, 8), (2, 6), 4),
        "head.bias": ((2,), (2,), 0),
    }


def test_table_of_two_models_reads(capsys: pytest.CaptureFixture[str]) -> None:
    before = Cost(1_000_000, 4_000_000, 2_000_000, 0.002)
    after = Cost(250_000, 1_000_000, 1_000_000, 0.0015)
    layers = (Layer("fc.weight", (4, 3), (2, 3)), Layer("gone", (), None), Layer("new", None, (2,)))
    expected = """
                       before      after    ratio
        ------------  ---------  ---------  -------
        parameters    1,000,000    250,000    0.250
        bytes         4,000,000  1,000,000    0.250
        FLOPs         2,000,000  1,000,000    0.500
        latency (ms)      2.000      1.500    0.750

        parameter      before      after    removed
        -----------  --------  --  -------  ---------
        fc.weight         4x3  ->      2x3          6
        gone           scalar  ->        -          1
        new                 -  ->        2         -2

        FLOPs of       before    after    ratio
        -----------  --------  -------  -------
        fc                 24       12    0.500
        (no module)         0        2        -
    """
    table = str(Comparison(before, after, layers, (Work("fc", 24, 12), Work("", 0, 2))))
    assert [line.split() for line in table.splitlines()] == [line.split() for line in expected.strip().splitlines()]
    printed = summary(Narrow(8), Narrow(6))
    assert capsys.readouterr().out == f"{printed}\n"
    assert str(printed).splitlines()[-1].split() == ["bytes", "520", "392", "0.754"]
    assert len(str(printed).splitlines()) == 4


def test_latency_is_that_of_one_run() -> None:
    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.02)
            return x

    found = summary(Slow(), nn.Identity(), torch.ones(1), file=None)
    assert found.before.latency is not None
    assert found.after.latency is not None
    assert 0.02 <= found.before.latency < 0.2
    assert found.after.latency < 0.01
    assert "latency (ms)" in str(found)
    assert (found.before.flops, found.layers, found.work) == (0, (), ())


def test_attention_and_recurrent_layers_have_flops() -> None:
    lstm, attention = nn.LSTM(4, 5, batch_first=True), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    x = torch.randn(2, 3, 4)
    found = summary(lstm, attention, x, latency=False, file=None)
    assert found.before.flops == 2 * 2 * 3 * (4 * 5 * 4 + 4 * 5 * 5)
    assert found.after.flops == 2 * 2 * 3 * (4 * 12 + 4 * 4 + 2 * 4 * 8) + 2 * 2 * (2 * 2 * 3 * 3 * 2)


def test_comparison_leaves_both_models_as_they_are() -> None:
    models = [Narrow(8).train(), Narrow(6).eval()]
    models[1].head.train()
    embedding = nn.Embedding(4, 3, max_norm=0.1)
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in (*models, embedding)]
    state = torch.get_rng_state()
    summary(models[0], models[1], torch.randn(3, 4, 7, generator=torch.Generator()), layers=True, file=None)
    summary(embedding, embedding, torch.arange(4), file=None)
    assert str([dict(m.state_dict()) for m in (*models, embedding)]) == str(before)
    assert [m.training for m in (models[0], models[1], models[1].head)] == [True, False, True]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled or not torch.backends.mkldnn.is_available()


def test_comparison_refuses_what_it_cannot_run() -> None:
    with pytest.raises(PruningTypeError, match=r"after must be a torch\.nn\.Module, not int"):
        summary(Narrow(8), 3)  # type: ignore[call-overload]
    with pytest.raises(PruningTypeError, match=r"expected a torch\.fx\.GraphModule, got Narrow"):
        summary(Narrow(8))  # type: ignore[call-overload]
    with pytest.raises(PruningTypeError, match=r"are for two models: summary\(before, after, example_inputs\)"):
        summary(captured(), layers=True)  # type: ignore[call-overload]
    with pytest.raises(InputError, match=r"do not fit Narrow\.forward"):
        summary(Narrow(8), Narrow(6), (torch.ones(1), torch.ones(1)))
    with pytest.raises(InputError, match="the model after fails on the example inputs: RuntimeError: Given groups=1"):
        summary(nn.Identity(), Narrow(6), torch.ones(1, 5, 7))
