"""Compares the gradients of a graph with those of its model, where the model's code has backwards that it wrote by hand.

A graph holds the operators of ``forward``. So a ``torch.autograd.Function`` or a hook on a tensor gives way to the derivative
of those operators, which may be the same, as for checkpointing, or another, as for a straight-through estimator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from fxprune.frontends.model.snapshot import ModelSnapshot
from fxprune.graph.paths import all_tensors
from fxprune.torch_internals.switches import accelerators, fixed_seed, uncompiled
from fxprune.torch_internals.tensors import tensors_in, with_tensors


def gradient_note(gm: fx.GraphModule, model: nn.Module, inputs: Any, functions: dict[str, None]) -> str | None:
    """Return a sentence on ``functions``, the hand-written backwards of the model, unless all gradients are the model's."""
    listed = ", ".join(functions)
    advice = "train the model itself, or write what is kept: for a straight-through estimator y + (f(y) - y).detach()"
    try:
        theirs, ours = _gradients(model, inputs), _gradients(gm, inputs)
    except Exception as error:  # such as a value that a model on the meta device asks for
        return (
            f"gradients could not be compared with the model's, which has hand-written backwards: {listed} ({error}); {advice}"
        )
    differ = [name for name, gradient in theirs.items() if not _is_close(ours.get(name), gradient)]
    if not differ:
        return None
    which = f"{differ[0]!r}" + (f" and {len(differ) - 1} other parameters or inputs" if len(differ) > 1 else "")
    return (
        f"the graph does not have the model's gradients, as of {which}: it takes the derivative of the operators of forward in "
        f"place of hand-written backwards: {listed}; {advice}"
    )


def _gradients(module: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """Return the gradients of a random projection of what a model or graph computes, by the names of parameters and inputs."""
    named = all_tensors(list(module.named_modules()))
    copies = {tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in dict.fromkeys(named.values())}
    state = {name: copies[tensor] for name, tensor in named.items()}
    args, kwargs = with_tensors(inputs, lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad))
    wanted = {name: copy for name, copy in state.items() if copy.requires_grad}
    wanted |= {f"input {place}": tensor for place, tensor in enumerate(tensors_in((args, kwargs))) if tensor.requires_grad}
    kinds = accelerators(named.values())
    with ModelSnapshot(module).untouched(), fixed_seed(kinds), uncompiled(), torch.enable_grad():
        result = functional_call(module, state, args, kwargs, tie_weights=False)
        total = torch.zeros(())
        for leaf in tensors_in(result):
            if leaf.requires_grad:
                real = torch.view_as_real(leaf) if leaf.is_complex() else leaf
                total = total + (real * torch.randn(real.shape, dtype=torch.float64).to(real)).sum().to(total)
        if not total.requires_grad or not wanted:
            return {}
        found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(wanted, found, strict=True))


def _is_close(ours: Tensor | None, theirs: Tensor) -> bool:
    if theirs.is_meta:
        return False  # nobody can tell
    ours = torch.zeros_like(theirs) if ours is None else ours
    tolerance = torch.finfo(theirs.dtype).eps ** 0.5  # wrong gradients are of another sign or size
    return bool((ours - theirs).norm() <= tolerance * max(float(theirs.norm()), float(ours.norm())))
