"""Gradients of a user's loss with respect to the parameters of a graph; the graph does not change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, fx, nn

from fxprune.errors import PlanError, PruningTypeError
from fxprune.importance.criterion import short
from fxprune.torch_internals.interrupts import interruptible
from fxprune.torch_internals.switches import alone

Loss: TypeAlias = Callable[[fx.GraphModule], Tensor]


def check_loss(loss: object) -> None:
    """Raise PruningTypeError unless a loss can be called."""
    if not callable(loss):
        raise PruningTypeError(f"loss must be a function from the graph to a tensor of one element, not {short(loss)}")


@contextlib.contextmanager
def undisturbed(gm: fx.GraphModule) -> Iterator[None]:
    """Put modes, buffers, ``requires_grad``, ``.grad`` and random states of ``gm`` back after the context."""
    modes = {module: module.training for module in gm.modules()}
    wants = {parameter: (parameter.requires_grad, parameter.grad) for parameter in gm.parameters()}
    buffers = [(m, name, b, b.detach().clone()) for m in modes for name, b in m._buffers.items() if b is not None]
    devices = {t.device for t in (*gm.parameters(), *gm.buffers()) if t.device.type == "cuda"}
    try:
        with alone(), torch.random.fork_rng(devices=list(devices)), torch.inference_mode(False):
            for parameter in wants:
                parameter.grad = None  # a backward adds to it in place
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, (wanted, grad) in wants.items():
            parameter.requires_grad_(wanted)
            parameter.grad = grad
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                if not buffer.is_meta and not torch.equal(buffer, value):
                    buffer.copy_(value)


def gradients(
    gm: fx.GraphModule, loss: Loss, parameters: Iterable[nn.Parameter], *, differentiable: bool = False
) -> dict[nn.Parameter, Tensor]:
    """Return the gradients of ``loss(gm)``, differentiable in turn if asked; zeros where the loss does not use a parameter.

    Raises:
        PlanError: the loss is not one finite real number with a gradient.
    """
    wanted = list(parameters)
    if not wanted:
        return {}
    for parameter in wanted:
        parameter.requires_grad_()
    with torch.enable_grad():
        with interruptible():
            value = loss(gm)
        if not isinstance(value, Tensor) or value.numel() != 1:
            given = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise PlanError(f"loss must return a tensor of one element, not {given}")
        if not value.requires_grad:
            raise PlanError("loss must depend on the parameters of the graph it is given: what it returned has no gradient")
        if value.is_complex() or not value.isfinite().all():
            raise PlanError(f"loss must be a finite real number, not {value.item()}")
        found = torch.autograd.grad(value.sum(), wanted, create_graph=differentiable, allow_unused=True)
    return {p: torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)}
