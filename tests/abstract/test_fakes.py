"""Fakes: what a capture has found out of an operator's results is what FakeTensorMode gives, and is not asked again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

import fxprune
from fxprune.abstract.fakes import Fakes


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
    monkeypatch.setattr(Fakes, "_known", {})
    mode = type(Fakes().mode)
    told, compared = mode.dispatch, list[str]()

    def both(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = told(self, func, types, args, kwargs or {})
        expected = FakeTensorMode.dispatch(self, func, types, args, kwargs or {})
        operands = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor)]
        one, other = ([form(leaf, operands) for leaf in pytree.tree_leaves(result)] for result in (found, expected))
        assert one == other, func
        compared.append(func.name())
        return found

    gm = fxprune.capture(model, IMAGE)
    monkeypatch.setattr(mode, "dispatch", both)
    fxprune.analyze(gm)
    wanted = {"aten::convolution", "aten::native_batch_norm", "aten::relu_", "aten::slice.Tensor"}
    assert (wanted if isinstance(model, Views) else {"aten::_foreach_add_.Scalar", "aten::view.dtype"}) <= set(compared)


def test_what_a_capture_has_asked_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fakes, "_known", {})
    asked: list[str] = []
    dispatch = FakeTensorMode.dispatch

    def noted(self: Any, func: Any, *args: Any) -> Any:
        asked.append(func.name())
        return dispatch(self, func, *args)

    gm = fxprune.capture(Views(), IMAGE)
    monkeypatch.setattr(FakeTensorMode, "dispatch", noted)
    fxprune.analyze(gm)
    assert "aten::conv2d" in asked  # the analysis sees it as it was called
    assert not {"aten::convolution", "aten::native_batch_norm", "aten::relu_", "aten::addmm"} & set(asked)
