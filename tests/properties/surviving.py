"""surviving: compares a masked graph with the shrunk one by what both have: gradients and buffers at what is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.graph.masks import find_masked
from fxprune.planning.plan import Plan
from tests.compare import tensors_of


def run_backward(gm: nn.Module, arguments: Any, kwargs: Any = None) -> Any:
    """Run a graph with fixed seeds, forward and backward from random directions; return its output."""
    torch.manual_seed(0)
    output = gm(*arguments, **(kwargs or {}))
    tensors = [t for t in tensors_of(output) if t.requires_grad]
    if tensors:
        torch.autograd.backward(tensors, [torch.randn_like(t) for t in tensors])
    return output


def survivors(tensor: Tensor, name: str, plan: Plan) -> Tensor:
    """Return what is kept of a parameter, buffer or gradient."""
    for dim in range(tensor.dim()):
        tensor = tensor.index_select(dim, torch.from_numpy(plan.provenance(name, dim)))
    return tensor


def gradient_error(masked: nn.Module, small: nn.Module, plan: Plan) -> tuple[float, str]:
    """Return the largest error of a gradient of the shrunk graph, and of which parameter.

    Relative to the largest of the network: some gradients are rounding alone. A wrong shape is an infinite error.
    """
    pairs = list(_gradients(masked, small, plan))
    largest = max((float(expected.abs().max()) for _, expected, _ in pairs if expected.numel()), default=0.0)
    return max(((_error(actual, expected, largest), name) for name, expected, actual in pairs), default=(0.0, ""))


def buffer_error(masked: nn.Module, small: nn.Module, plan: Plan) -> tuple[float, str]:
    """Return the largest error of a buffer of floating-point numbers, relative to its largest, and of which."""
    theirs = dict(masked.named_buffers())
    found = []
    for name, buffer in small.named_buffers():
        if name in theirs and buffer.is_floating_point():
            expected = survivors(theirs[name], name, plan)
            largest = float(expected.abs().max()) if expected.numel() else 0.0
            found.append((_error(buffer, expected, largest) if largest < float("inf") else 0.0, name))
    return max(found, default=(0.0, ""))


def _gradients(masked: nn.Module, small: nn.Module, plan: Plan) -> Iterator[tuple[str, Tensor, Tensor]]:
    for name, parameter in small.named_parameters():
        found = find_masked(masked, name)
        theirs = masked.get_parameter(name) if found is None else found.orig
        # No gradient is one of zeros: a graph that dropped a call need not reach a parameter.
        expected = survivors(torch.zeros_like(theirs) if theirs.grad is None else theirs.grad, name, plan)
        yield name, expected, torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _error(actual: Tensor, expected: Tensor, largest: float) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    if not actual.numel():
        return 0.0
    error = float((actual.detach().double() - expected.detach().double()).abs().max()) / (largest + 1e-30)
    return error if error == error else float("inf")
