"""summary: rows, totals, and the table they make."""

import textwrap
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune.report import Row, Summary


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
    summary = Summary((Row("w", (3,), "Identity", 3, 0, size),))
    assert str(summary).endswith(f"masks take {text}")


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
