"""Fakes: what a capture has found out of an operator's results is what FakeTensorMode gives, and is not asked again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

import fxprune
from fxprune.abstract.fakes import Fakes
from fxprune.abstract.propagation import PROPAGATION


class Views(nn.Module):
    """Parts of results, writes in place, and operators of several results."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3)
        self.norm = nn.BatchNorm2d(10)
        self.fc = nn.Linear(9, 7)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.norm(self.conv(x)).relu_().chunk(2, 1)
        y = one.transpose(1, 2)[:, 1:].reshape(x.shape[0], -1, 9) + other.contiguous()[:, 0, 1:2, :]
        return self.fc(y).softmax(-1)


IMAGE = torch.randn(2, 3, 11, 11)


def form(tensor: Any, operands: Sequence[Tensor]) -> Any:
    """Return what there is to know about a result."""
    if not isinstance(tensor, Tensor):
        return tensor
    memory = tensor.untyped_storage()._cdata
    shares = [i for i, operand in enumerate(operands) if operand.untyped_storage()._cdata == memory]
    same = [i for i, operand in enumerate(operands) if operand is tensor]
    place = tensor.stride(), tensor.storage_offset()
    return tensor.dtype, tensor.shape, place, tensor.device, tensor.is_inference(), shares, same


class Lists(nn.Module):
    """Operators that write to all tensors of a list, and other types for the same memory."""

    def forward(self, x: Tensor) -> Tensor:
        y, z = x * 2, x + 1
        torch._foreach_add_([y, z], 1.0)
        y[:, 1:].view(torch.int16)[:, 1:].zero_()
        return y + z


@pytest.mark.parametrize("model", [Views(), Views().eval(), Lists()])
def test_results_are_those_of_fake_tensor_mode(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    PROPAGATION.clear()
    told, compared = Fakes.call, list[str]()

    def both(self: Any, func: Any, args: Any, kwargs: Any) -> Any:
        found = told(self, func, args, kwargs)
        fake_args, fake_kwargs = pytree.tree_map(self.of, (args, kwargs))
        with _disable_current_modes():
            expected = FakeTensorMode.dispatch(self.mode, func, (), fake_args, fake_kwargs)
        operands = [leaf for leaf in pytree.tree_leaves((fake_args, fake_kwargs)) if isinstance(leaf, FakeTensor)]
        one, other = ([form(leaf, operands) for leaf in pytree.tree_leaves(result)] for result in (found, expected))
        assert one == other, func
        compared.append(func.name())
        return found

    gm = fxprune.capture(model, IMAGE)
    monkeypatch.setattr(Fakes, "call", both)
    for _ in range(2):  # found out, and known
        fxprune.analyze(gm)
    wanted = {"aten::conv2d", "aten::batch_norm", "aten::relu_", "aten::slice.Tensor"}
    assert (wanted if isinstance(model, Views) else {"aten::_foreach_add_.Scalar", "aten::view.dtype"}) <= set(compared)


def test_what_a_capture_has_asked_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    PROPAGATION.clear()
    asked: list[str] = []
    dispatch = FakeTensorMode.dispatch

    def noted(self: Any, func: Any, *args: Any) -> Any:
        asked.append(func.name())
        return dispatch(self, func, *args)

    gm = fxprune.capture(Views(), IMAGE)
    monkeypatch.setattr(FakeTensorMode, "dispatch", noted)
    fxprune.analyze(gm)
    assert "aten::reshape" in asked  # the analysis sees it as it was called, the capture sees what it consists of
    assert not {"aten::conv2d", "aten::batch_norm", "aten::relu_", "aten::linear"} & set(asked)


CPU = torch.device("cpu")
aten = torch.ops.aten


def call(func: Any, *args: Any) -> Tensor:
    """Return what an operator gives for fake tensors, in a run of its own, as an analysis calls it."""
    fakes = Fakes()
    operands = pytree.tree_map(lambda leaf: fakes.like(leaf) if isinstance(leaf, Tensor) else leaf, args)
    with torch.inference_mode(), fakes.mode:
        result: Tensor = fakes.call(func, operands, {})
    return result


def test_the_kernels_that_attention_may_take_decide_how_its_result_lies_in_memory() -> None:
    query = torch.empty(2, 8, 4, 16).transpose(1, 2)
    for _ in range(2):
        assert call(aten.scaled_dot_product_attention.default, query, query, query).stride() == (512, 16, 64, 1)
        with sdpa_kernel(SDPBackend.MATH):
            assert call(aten.scaled_dot_product_attention.default, query, query, query).stride() == (512, 128, 16, 1)


def test_autocast_decides_on_the_type_of_a_result() -> None:
    x = torch.empty(4, 4)
    for _ in range(2):
        assert call(aten.matmul.default, x, x).dtype is torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert call(aten.matmul.default, x, x).dtype is torch.bfloat16


def test_the_default_type_decides_on_the_type_of_a_result() -> None:
    x = torch.empty(4, dtype=torch.int64)
    assert call(aten.div.Tensor, x, x).dtype is torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert call(aten.div.Tensor, x, x).dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_operator_of_another_library_is_asked_each_time() -> None:
    sizes = [2, 3]
    with torch.library._scoped_library("fxprune_test_fakes", "DEF") as library:
        library.define("change(Tensor x) -> Tensor")
        torch.library.register_fake("fxprune_test_fakes::change", lambda x: x.new_empty(sizes.pop()), lib=library)
        x = torch.empty(7)
        assert call(torch.ops.fxprune_test_fakes.change.default, x).shape == (3,)
        assert call(torch.ops.fxprune_test_fakes.change.default, x).shape == (2,)


def test_a_view_starts_where_its_base_does() -> None:
    fakes = Fakes()
    x = fakes.empty((6, 4), torch.float32, CPU)
    with torch.inference_mode(), fakes.mode:
        for _ in range(2):
            part = fakes.call(aten.slice.Tensor, (x, 0, 2, 5), {})
            inner = fakes.call(aten.slice.Tensor, (part, 0, 1, 2), {})
            assert (part.storage_offset(), inner.storage_offset()) == (8, 12)
            assert fakes.call(aten.as_strided.default, (inner, [2], [1], 3), {}).storage_offset() == 3
    assert inner.untyped_storage()._cdata == x.untyped_storage()._cdata


def test_a_tensor_that_got_another_form_in_place_is_known_by_that() -> None:
    fakes = Fakes()
    x = fakes.empty((6, 4), torch.float32, CPU)
    with torch.inference_mode(), fakes.mode:
        assert fakes.call(aten.relu.default, (x,), {}).shape == (6, 4)
        assert fakes.call(aten.t_.default, (x,), {}) is x
        assert fakes.call(aten.relu.default, (x,), {}).shape == (4, 6)


def test_a_square_matrix_that_is_transposed_in_place_lies_in_memory_otherwise() -> None:
    fakes = Fakes()
    with torch.inference_mode(), fakes.mode:
        for _ in range(2):
            x = fakes.empty((4, 4), torch.float32, CPU)
            assert fakes.call(aten.t_.default, (x,), {}).stride() == (1, 4)


def test_a_tensor_that_is_given_the_memory_of_another_shares_it() -> None:
    fakes = Fakes()
    with torch.inference_mode(), fakes.mode:
        for _ in range(2):
            x, y = (fakes.empty((4, 4), torch.float32, CPU) for _ in range(2))
            shared = fakes.call(aten.set_.source_Tensor, (x, y), {})
            assert shared.untyped_storage()._cdata == y.untyped_storage()._cdata


def test_a_model_on_the_meta_device_is_on_it() -> None:
    x = torch.empty(2, 3, device="meta")
    for _ in range(2):
        assert call(aten.relu.default, x).device.type == "meta"
        assert call(aten.relu.default, torch.empty(2, 3)).device.type == "cpu"
