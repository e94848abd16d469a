"""A call that is rewritten for the sizes that are left keeps all other arguments, by position or keyword, given or default."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from tests.compare import relative_error

X = torch.randn(2, 3, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0))
_UNSET = object()


class Calls(nn.Module):
    """Calls a function of eight channels, (2, 8, 5), whose result is brought to some channels by 5."""

    def __init__(self, call: Callable[[Any, Tensor], Any], width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.h, self.call = nn.Conv1d(3, 8, 1), nn.Conv1d(width, 2, 1), call
        self.weight, self.bias = nn.Parameter(torch.randn(8, 4, 3)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.h(self.call(self, torch.tanh(self.a(x))))
        return y


def _method(name: str) -> Callable[..., Any]:
    return lambda h, *args, **kwargs: getattr(h, name)(*args, **kwargs)


def _joined(parts: Any) -> Any:
    return torch.cat([torch.sin(part) for part in parts], 1)


# By name: the function, how its first argument is called, values of the others to try, what becomes of the result.
_CASES: dict[str, tuple[Callable[..., Any], str, dict[str, tuple[Any, ...]], Callable[[Any], Any]]] = {
    "torch.reshape": (torch.reshape, "input", {"shape": ((2, 4, 2, 5), (-1, 4, 2, 5))}, lambda y: y.flatten(1, 2)),
    "Tensor.reshape": (_method("reshape"), "", {"shape": ((2, 4, 2, 5), (-1, 4, 2, 5))}, lambda y: y.flatten(1, 2)),
    "Tensor.view": (_method("view"), "", {"size": ((2, 4, 2, 5), (-1, 4, 2, 5))}, lambda y: y.flatten(1, 2)),
    "torch.flatten": (torch.flatten, "input", {"start_dim": (1, -2), "end_dim": (-1, 2)}, lambda y: y.unflatten(1, (-1, 5))),
    "torch.unflatten": (torch.unflatten, "input", {"dim": (1, -2), "sizes": ((4, 2), (-1, 2))}, lambda y: y.flatten(1, 2)),
    "Tensor.unflatten": (_method("unflatten"), "", {"dim": (1, -2), "sizes": ((4, 2), (-1, 2))}, lambda y: y.flatten(1, 2)),
    "torch.split": (torch.split, "tensor", {"split_size_or_sections": (3, [2, 6]), "dim": (1, -2)}, _joined),
    "Tensor.split": (_method("split"), "", {"split_size": (3, [2, 6]), "dim": (1, -2)}, _joined),
    "torch.chunk": (torch.chunk, "input", {"chunks": (2, 3), "dim": (1, -2)}, _joined),
    "Tensor.chunk": (_method("chunk"), "", {"chunks": (2, 3), "dim": (1, -2)}, _joined),
    "torch.tensor_split": (torch.tensor_split, "input", {"indices_or_sections": (3, [2, 5]), "dim": (1, -2)}, _joined),
    "Tensor.tensor_split": (_method("tensor_split"), "", {"indices_or_sections": (3, (2, 5)), "dim": (1, -2)}, _joined),
    "torch.hsplit": (torch.hsplit, "input", {"sections": (2, 4)}, _joined),
    "torch.hsplit, indices": (torch.hsplit, "input", {"indices": ([2, 5],)}, _joined),
    "torch.unsafe_chunk": (torch.unsafe_chunk, "input", {"chunks": (2, 3), "dim": (1, -2)}, _joined),
    "torch.unsafe_split": (torch.unsafe_split, "tensor", {"split_size": (3,), "dim": (1, -2)}, _joined),
    "torch.split_with_sizes": (torch.split_with_sizes, "input", {"split_sizes": ([2, 6],), "dim": (1, -2)}, _joined),
    "torch.narrow": (torch.narrow, "input", {"dim": (1, -2), "start": (0, 2, -6), "length": (4,)}, lambda y: y),
    "torch.select": (torch.select, "input", {"dim": (2, -1), "index": (3, -1)}, lambda y: y.unsqueeze(2)),
    "torch.roll": (torch.roll, "input", {"shifts": (3, -2, (3,)), "dims": (1, -2, (1,))}, lambda y: y),
    "torch.tile": (torch.tile, "input", {"dims": ((1, 2, 1), (2, 1))}, lambda y: y),
    "Tensor.repeat": (_method("repeat"), "", {"repeats": ((1, 2, 1),)}, lambda y: y),
    "torch.repeat_interleave": (
        torch.repeat_interleave, "input", {"repeats": (2,), "dim": (1, -2), "output_size": (16, None, _UNSET)}, lambda y: y,
    ),
    "Tensor.expand": (_method("expand"), "", {"size": ((2, 8, 5), (-1, 8, 5), (2, -1, -1))}, lambda y: y),
    "torch.broadcast_to": (torch.broadcast_to, "input", {"size": ((2, 8, 5), (2, -1, 5))}, lambda y: y),
    "F.pad": (
        F.pad, "input", {"pad": ((0, 0, 1, 2), (1, 1, -1, 0)), "mode": ("constant", _UNSET), "value": (0.5, None, _UNSET)},
        lambda y: y,
    ),
    "F.group_norm": (
        F.group_norm, "input", {"num_groups": (8,), "weight": (None,), "bias": (None,), "eps": (1e-2, _UNSET)}, lambda y: y,
    ),
    "F.channel_shuffle": (F.channel_shuffle, "input", {"groups": (2, 4)}, lambda y: y.flatten(2)),
    "F.conv1d": (
        F.conv1d, "input",
        {"weight": ("weight",), "bias": ("bias", None), "stride": (2,), "padding": (3,), "dilation": (2,), "groups": (2,)},
        lambda y: y,
    ),
    "F.conv_transpose1d": (
        F.conv_transpose1d, "input",
        {"weight": ("weight",), "bias": ("bias",), "stride": (2,), "padding": (3,), "output_padding": (1,), "groups": (2,),
         "dilation": (2,)},
        lambda y: y,
    ),
    "F.layer_norm": (
        lambda h, *args, **kwargs: F.layer_norm(h.mT, *args, **kwargs).mT, "",
        {"normalized_shape": ((8,), [8]), "weight": (None, _UNSET), "bias": (None, _UNSET), "eps": (1e-2, _UNSET)}, lambda y: y,
    ),
    "F.scaled_dot_product_attention": (
        lambda h, *args, **kwargs: F.scaled_dot_product_attention(h.mT, h.mT, h.mT, *args, **kwargs).mT, "",
        {"attn_mask": (None, _UNSET), "dropout_p": (0.0, _UNSET), "is_causal": (True, False), "scale": (0.3, None, _UNSET)},
        lambda y: y,
    ),
    "torch.zeros": (
        lambda h, *args, **kwargs: h + torch.zeros(*args, **kwargs), "",
        {"size": ((8, 5), [8, 5]), "dtype": (torch.double,)}, lambda y: y,
    ),
    "torch.full": (
        lambda h, *args, **kwargs: h + torch.full(*args, **kwargs), "",
        {"size": ((8, 5),), "fill_value": (0.5,)}, lambda y: y,
    ),
    "Tensor.new_full": (
        lambda h, *args, **kwargs: h * h.new_full(*args, **kwargs), "",
        {"size": ((8, 5),), "fill_value": (0.5,)}, lambda y: y,
    ),
    "F.interpolate": (
        F.interpolate, "input", {"size": (7,), "scale_factor": (None,), "mode": ("linear",), "align_corners": (True,)},
        lambda y: y,
    ),
}  # fmt: skip


def _spellings(first: str, options: dict[str, tuple[Any, ...]]) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each combination of options, and how many arguments go by position: none, the first, or as many as can."""
    for values in itertools.product(*options.values()):
        given = {name: value for name, value in zip(options, values, strict=True) if value is not _UNSET}
        ahead = next((k for k, value in enumerate(values) if value is _UNSET), len(values))
        for positional in sorted({0, 1, ahead + 1} - (set() if first else {0})):
            yield given, positional


@pytest.mark.parametrize("name", _CASES)
def test_every_argument_in_every_spelling(name: str) -> None:
    function, first, options, after = _CASES[name]
    tried = shrunk = 0
    for given, positional in _spellings(first, options):

        def call(m: Any, h: Tensor, given: dict[str, Any] = given, positional: int = positional) -> Any:
            read = [(first, h), *((n, getattr(m, v) if isinstance(v, str) and hasattr(m, v) else v) for n, v in given.items())]
            return after(function(*[v for _, v in read[:positional]], **dict(read[positional:])))

        try:
            width = call(Calls(call, 8).double(), torch.zeros(2, 8, 5).double()).shape[1]
            model = Calls(call, width).double().eval()
            model(X)
        except (TypeError, RuntimeError):  # a spelling that torch does not take
            continue
        where = (name, given, positional)
        tried += 1
        gm = fxprune.capture(model, X, frontend="trace")
        fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
        masked = gm(X)
        small = fxprune.shrink(gm, verify=False)
        assert relative_error(small(X), masked) <= 1e-9, where
        shrunk += small.get_parameter("a.weight").shape[0] < 8
    assert tried == shrunk > 0
