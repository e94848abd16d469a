"""Pruning small networks and comparing what comes of it: the masked graph with the shrunk one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.analysis.dependencies import Dependencies
from fxprune.planning.plan import Plan
from fxprune.testing import check_graph
from tests.compare import relative_error
from tests.properties.surviving import buffer_error, gradient_error, run_backward
from tests.zoo.pruning import WithoutDropout

TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A graph that is masked as a plan says, and the smaller one made from it."""

    masked: fx.GraphModule
    small: fx.GraphModule
    plan: Plan
    deps: Dependencies


def doubled(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return arguments with those of floating point in double precision."""
    return tuple(v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values)


def captured(model: nn.Module, inputs: Sequence[Any], frontend: str = "trace") -> fx.GraphModule:
    return fxprune.capture(model.double(), doubled(inputs), frontend=frontend)  # type: ignore[arg-type]


def pruned(
    model: nn.Module, inputs: Sequence[Any], amount: float | None = 0.5, frontend: str = "trace", **options: Any
) -> Pruned:
    """Capture in double precision, plan, mask and shrink, without verification."""
    masked = captured(model, inputs, frontend)
    deps = fxprune.analyze(copy.deepcopy(masked))
    plan = fxprune.plan(deps, amount, **options)
    fxprune.mask(masked, plan)
    small = fxprune.shrink(copy.deepcopy(masked), verify=False)
    return Pruned(masked, small, plan, deps)


def assert_equal(
    found: Pruned, *cases: Sequence[Any], training: Sequence[bool] = (False, True), tolerance: float = TOLERANCE
) -> None:
    """Assert that both graphs give the same results, gradients and running statistics, in both modes, without dropout."""
    check_graph(found.masked)
    check_graph(found.small)
    theirs, ours = copy.deepcopy(found.masked), copy.deepcopy(found.small)
    for mode in training:
        for arguments in cases:
            _as_before(theirs.train(mode), found.masked)
            _as_before(ours.train(mode), found.small)
            with WithoutDropout():
                expected, actual = run_backward(theirs, doubled(arguments)), run_backward(ours, doubled(arguments))
            errors = {
                "the results": (relative_error(actual, expected), ""),
                "the gradient of": gradient_error(theirs, ours, found.plan),
                "the buffer": buffer_error(theirs, ours, found.plan),
            }
            for what, (error, where) in errors.items():
                assert error <= tolerance, f"{what} {where} differ by {error:.1e}, training={mode}"


def _as_before(copied: nn.Module, original: nn.Module) -> None:
    """Give a copy of a graph the values of the original back, and take its gradients away."""
    copied.zero_grad()
    with torch.no_grad():
        for ours, theirs in ((copied.parameters(), original.parameters()), (copied.buffers(), original.buffers())):
            for mine, its in zip(ours, theirs, strict=True):
                mine.copy_(its)


def assert_sizes(found: Pruned) -> None:
    """Assert that every parameter and buffer has the size that the plan says, and that the plan's totals hold."""
    for name, tensor in (*found.small.named_parameters(), *found.small.named_buffers()):
        if name in found.plan.shapes:
            expected = [len(found.plan.provenance(name, dim)) for dim in range(tensor.dim())]
            assert list(tensor.shape) == expected, name
    assert sum(p.numel() for p in found.small.parameters()) == found.plan.params_after
    assert found.plan.params_after < found.plan.params_before
