"""A correction keeps every argument of the call that it replaces, positional or by keyword, given or default."""

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
    """Calls a function of eight channels, with tensors of its own as further arguments."""

    def __init__(self, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.h = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 2, 1)
        self.weight, self.bias, self.mask = (nn.Parameter(torch.rand(8) + 0.5) for _ in range(3))
        self.standardised = nn.Parameter(torch.randn(8, 8, 1))
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.call(self, self.a(x)))


class OfLast(Calls):
    """The same with the channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.call(self, self.a(x).mT).mT)


class OfWeights(Calls):
    """Standardises the weights of the second layer, over its inputs, as networks without norms do."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.call(self, self.standardised.reshape(1, 8, 8))
        return self.h(F.conv1d(self.a(x), weight.reshape(8, 8, 1)))


def _statistic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that multiplies its input by statistics over the channels; of two statistics, kept dimensions alone."""

    def multiplied(h: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found = function(h, *args, **kwargs)
        if "mean" in function.__name__ and function is not torch.mean:
            return h * found[0] * found[1]
        return h * (found if found.dim() == h.dim() else found.unsqueeze(1))

    return multiplied


_WEIGHT, _BIAS, _EPS = ("weight", _UNSET), ("bias", _UNSET), (1e-2, _UNSET)
_DIM, _KEEP = ([1],), (True, _UNSET)
_UNBIASED, _CORRECTION = (
    {"dim": _DIM, "unbiased": (True, False), "keepdim": _KEEP},
    {"dim": _DIM, "correction": (0, 2), "keepdim": _KEEP},
)
_RUNNING = {"running_mean": (None,), "running_var": (None,)}
_FUNCTIONS: dict[str, tuple[type[Calls], Callable[..., Any], dict[str, tuple[Any, ...]]]] = {
    "F.layer_norm": (OfLast, F.layer_norm, {"normalized_shape": ((8,),), "weight": _WEIGHT, "bias": _BIAS, "eps": _EPS}),
    "torch.layer_norm": (OfLast, torch.layer_norm, {"normalized_shape": ((8,),), "weight": _WEIGHT, "bias": _BIAS}),
    "F.rms_norm": (OfLast, F.rms_norm, {"normalized_shape": ((8,),), "weight": _WEIGHT, "eps": (None, *_EPS)}),
    "F.group_norm": (Calls, F.group_norm, {"num_groups": (2,), "weight": _WEIGHT, "bias": _BIAS, "eps": _EPS}),
    "torch.group_norm": (Calls, torch.group_norm, {"num_groups": (2,), "weight": _WEIGHT, "bias": _BIAS, "eps": _EPS}),
    "F.batch_norm": (
        OfWeights, F.batch_norm, _RUNNING | {"weight": _WEIGHT, "bias": _BIAS, "training": (True,), "momentum": (0.0, _UNSET)},
    ),
    "torch.batch_norm": (
        OfWeights, torch.batch_norm,
        {"weight": ("weight", None), "bias": ("bias", None)} | _RUNNING
        | {"training": (True,), "momentum": (0.0,), "eps": (1e-2,), "cudnn_enabled": (False,)},
    ),
    "torch.var": (Calls, _statistic(torch.var), _UNBIASED),
    "torch.var, corrected": (Calls, _statistic(torch.var), _CORRECTION),
    "torch.std": (Calls, _statistic(torch.std), _UNBIASED),
    "Tensor.std": (Calls, _statistic(lambda h, *args, **kwargs: h.std(*args, **kwargs)), _CORRECTION),
    "torch.var_mean": (Calls, _statistic(torch.var_mean), _UNBIASED | {"keepdim": (True,)}),
    "torch.std_mean": (Calls, _statistic(torch.std_mean), _CORRECTION | {"keepdim": (True,)}),
    "torch.mean": (Calls, _statistic(torch.mean), {"dim": _DIM, "keepdim": _KEEP}),
    "torch.amax": (Calls, _statistic(torch.amax), {"dim": _DIM, "keepdim": _KEEP}),
    "torch.logsumexp": (Calls, _statistic(torch.logsumexp), {"dim": _DIM, "keepdim": _KEEP}),
    "torch.prod": (Calls, _statistic(torch.prod), {"dim": (1,), "keepdim": _KEEP}),
    "torch.softmax": (Calls, torch.softmax, {"dim": (1,), "dtype": (torch.double, None, _UNSET)}),
    "F.softmax": (Calls, F.softmax, {"dim": (1,), "_stacklevel": (3, _UNSET), "dtype": (torch.double, None, _UNSET)}),
    "F.log_softmax": (Calls, lambda h, *a, **k: F.log_softmax(h, *a, **k).exp(), {"dim": (1, -2), "_stacklevel": (3, _UNSET)}),
}  # fmt: skip


def _spellings(options: dict[str, tuple[Any, ...]]) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each combination of options, and how many of them go by position: none, or as many as can."""
    for values in itertools.product(*options.values()):
        given = {name: value for name, value in zip(options, values, strict=True) if value is not _UNSET}
        ahead = next((k for k, value in enumerate(values) if value is _UNSET), len(values))
        yield given, 0
        if ahead:
            yield given, ahead


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_every_argument_in_every_spelling(name: str) -> None:
    build, function, options = _FUNCTIONS[name]
    corrected = 0
    for given, positional in _spellings(options):

        def call(m: Any, h: Tensor, given: dict[str, Any] = given, positional: int = positional) -> Any:
            read = [(n, getattr(m, v) if isinstance(v, str) else v) for n, v in given.items()]
            return function(h, *[v for _, v in read[:positional]], **dict(read[positional:]))

        torch.manual_seed(0)
        try:
            model = build(call).double().eval()
            model(X)
        except (TypeError, RuntimeError):  # a spelling that torch does not take, as ``var(h, 1, correction=0)`` by position
            continue
        gm = fxprune.capture(model, X, frontend="trace")
        fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
        masked = gm(X)
        small = fxprune.shrink(gm, verify=False)
        assert relative_error(small(X), masked) <= 1e-9, (name, given, positional)
        corrected += small.get_parameter("a.weight").shape[0] == 4
    assert corrected, name
