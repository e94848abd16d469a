"""The k-th smallest magnitude by histograms is the one that sorting finds, for every dtype, however tensors are cut."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fxprune
from fxprune import Cut, Histogram, magnitude_histogram, merge_histograms
from fxprune.methods.histograms import magnitudes, pieces

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def found(tensors: list[Tensor], rank: int, dtype: torch.dtype) -> Cut:
    cut = Cut(dtype, rank)
    while not cut.is_exact:
        cut = magnitude_histogram(tensors, cut).cut()
    return cut


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [1, 2, 77, 999, 1000])
def test_the_value_of_a_rank_is_that_of_a_sort(dtype: torch.dtype, rank: int) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(20, 30).to(dtype), torch.randn(400).to(dtype) * 1e-3]
    cut = found(tensors, rank, dtype)
    ranked = torch.cat([t.flatten() for t in tensors]).abs().sort().values
    assert cut.value == float(ranked[rank - 1])
    assert cut.rank == int((ranked[:rank] == ranked[rank - 1]).sum())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_eight_bits(dtype: torch.dtype) -> None:
    values = torch.randn(500).to(dtype)
    assert found([values], 250, dtype).value == float(values.float().abs().sort().values[249])


def test_integers_are_in_the_order_of_magnitudes() -> None:
    numbers = [0.0, -0.0, 5e-324, -1e-310, 1.0, -1.0, -math.nextafter(1, 2), 1e308, -math.inf, math.nan]
    special = torch.tensor(numbers, dtype=torch.float64)
    assert magnitudes(special, torch.float64).tolist()[:2] == [0, 0]
    order = magnitudes(special, torch.float64)[1:]
    assert (order.diff() >= 0).all()
    assert (order.diff() == 0).nonzero().flatten().tolist() == [3]  # 1 and -1


def test_nothing_is_as_great_as_what_is_no_number() -> None:
    cut = found([torch.tensor([math.nan, math.inf, 3.0, -math.nan])], 2, torch.float32)
    assert cut.value == math.inf
    assert math.isnan(found([torch.tensor([math.nan, math.inf])], 2, torch.float32).value)


def test_magnitudes_are_compared_in_the_dtype_of_the_cut() -> None:
    half, single = torch.tensor([1.0, 2.0], dtype=torch.bfloat16), torch.tensor([1.0000001, -3.0])
    assert found([half, single], 2, torch.float32).value == float(single[0]) != 1
    modulus = torch.tensor([3 + 4j, 1j], dtype=torch.complex64)
    assert found([modulus, single], 4, torch.float32).value == 5


floats = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40)


@given(parts=st.lists(floats, min_size=1, max_size=4), data=st.data())
def test_parts_counted_apart_have_the_cut_of_the_whole(parts: list[list[float]], data: st.DataObject) -> None:
    tensors = [torch.tensor(part, dtype=torch.float32) for part in parts]
    total = sum(map(len, parts))
    rank = data.draw(st.integers(1, total))
    cut = Cut(torch.float32, rank)
    while not cut.is_exact:
        merged = merge_histograms(magnitude_histogram([tensor], cut) for tensor in tensors)
        whole = magnitude_histogram(tensors, cut)
        assert merged.at == whole.at
        assert torch.equal(merged.counts, whole.counts)
        cut = merged.cut()
    assert cut.value == sorted(abs(float(x)) for tensor in tensors for x in tensor)[rank - 1]


def test_only_what_a_mask_leaves_is_counted() -> None:
    values, mask = torch.arange(1.0, 11.0), torch.tensor([1, 0] * 5, dtype=torch.uint8)
    cut = Cut(torch.float32, 3)
    while not cut.is_exact:
        cut = magnitude_histogram([values, torch.tensor([100.0])], cut, [mask, None]).cut()
    assert cut.value == 5


@pytest.mark.parametrize("size", [1, 7, 12, 1000])
@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(120).view(2, 3, 4, 5),
        torch.arange(120).view(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.arange(120).view(5, 24).t(),
        torch.arange(240).view(120, 2)[:, 0],
        torch.arange(3).view(3, 1).expand(3, 40),
        torch.tensor(7),
        torch.arange(0),
    ],
    ids=["contiguous", "channels_last", "transposed", "strided", "expanded", "single", "empty"],
)
def test_pieces_are_small_views_in_the_order_of_positions(tensor: Tensor, size: int) -> None:
    flat = torch.arange(tensor.numel()).view(tensor.shape)
    found = list(pieces(size, tensor, flat))
    assert torch.cat([piece.flatten() for piece, _ in found]).tolist() == tensor.flatten().tolist()
    assert torch.cat([piece.flatten() for _, piece in found]).tolist() == list(range(tensor.numel()))
    assert all(piece.numel() <= size for piece, _ in found) or tensor.numel() == 0
    assert all(piece.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for piece, _ in found)


REFUSALS: list[tuple[Any, type[Exception], str]] = [
    (lambda: Cut(torch.int32, 1), TypeError, r"compared in a floating-point dtype, not in torch\.int32"),
    (lambda: Cut(torch.complex64, 1), TypeError, r"not in torch\.complex64"),
    (lambda: Cut(torch.float32, 0), ValueError, r"rank counts from 1, got 0"),
    (lambda: Cut(torch.float32, 1).value, ValueError, r"only 0 of 31 bits are known; go on with magnitude_histogram"),
    (lambda: magnitude_histogram([], Cut(torch.float32, 1)).cut(), ValueError, r"no magnitude of rank 1 among 0"),
    (lambda: magnitude_histogram([torch.ones(3)], Cut(torch.float32, 4)).cut(), ValueError, r"rank 4 among 3"),
    (lambda: merge_histograms([]), ValueError, r"no histogram to merge"),
    (
        lambda: merge_histograms(magnitude_histogram([torch.ones(3)], Cut(torch.float32, k)) for k in (1, 2)),
        ValueError,
        r"histograms at different cuts cannot be merged: .*rank=1.*rank=2",
    ),
    (
        lambda: magnitude_histogram([], found([torch.ones(1)], 1, torch.float32)),
        ValueError,
        r"all bits of the cut are known",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS)
def test_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(fxprune.FxpruneError, match=message) as caught:
        call()
    assert isinstance(caught.value, error)


def test_a_histogram_has_a_count_for_each_digit() -> None:
    histogram = magnitude_histogram([torch.tensor([1.0, -1.0, 2.0, 0.0])], Cut(torch.bfloat16, 2))
    assert isinstance(histogram, Histogram)
    assert histogram.counts.shape == (2**15,)
    assert histogram.counts.nonzero().flatten().tolist() == [0, 0x3F80, 0x4000]
    assert histogram.counts[0x3F80] == 2
