"""Runs a model on copies of its tensors, without chance, in either mode and precision; the model does not change."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fxprune.frontends.model.snapshot import ModelSnapshot
from fxprune.frontends.modes.reads import in_mode
from fxprune.graph.side_effects import writes_to_parameters
from fxprune.torch_internals.switches import own_random_numbers, quiet
from fxprune.verification.differences import named_leaves
from fxprune.verification.inputs import Inputs
from fxprune.verification.without_chance import WIDER, deterministic


@dataclasses.dataclass(frozen=True)
class Result:
    """The outputs of a run, the buffers after it and, if asked for, the gradients of parameters, all by name."""

    outputs: dict[str, Any]
    buffers: dict[str, Tensor]
    gradients: dict[str, Tensor]

    def is_finite(self) -> bool:
        """Tell whether no output holds NaN or an infinity."""
        return all(bool(t.isfinite().all()) for t in self.outputs.values() if isinstance(t, Tensor))


class Subject:
    """A model with its own copies of the tensors; parameters are copied only if a run may change them or in another precision.

    With ``gradients`` a run computes the gradients of a fixed random projection of the outputs too.
    """

    def __init__(self, model: nn.Module, *, double: bool, gradients: bool = False) -> None:
        self.model, self.double, self.gradients = model, double, gradients
        self._parameters = self._copies(model.named_parameters(remove_duplicate=False), copy=writes_to_parameters(model))
        for parameter in self._parameters.values():
            parameter.requires_grad_(gradients and (parameter.is_floating_point() or parameter.is_complex()))

    def _copies(self, tensors: Iterable[tuple[str, Tensor]], *, copy: bool) -> dict[str, Tensor]:
        """Return detached tensors by name; all names of one tensor get the same copy."""
        copies: dict[Tensor, Tensor] = {}
        named = {}
        for name, tensor in tensors:
            if tensor not in copies:
                dtype = WIDER.get(tensor.dtype, tensor.dtype) if self.double else tensor.dtype
                copies[tensor] = tensor.detach().to(dtype, copy=copy)
            named[name] = copies[tensor]
        return named

    def run(self, inputs: Inputs, *, training: bool) -> Result:
        """Run the model once, in train or eval mode; errors of the model are not caught."""
        buffers = self._copies(self.model.named_buffers(remove_duplicate=False), copy=True)
        args, kwargs = inputs.copied(self.double)
        kept = ModelSnapshot(self.model)
        with (
            in_mode(kept.modules, training),
            own_random_numbers(kept.tensors.values()),
            quiet(),  # users read the model's warnings in runs of their own
            kept.untouched(),
            torch.set_grad_enabled(self.gradients),
            deterministic(training or self.gradients, self.double),
        ):
            output = functional_call(self.model, {**self._parameters, **buffers}, args, kwargs, tie_weights=False)
            outputs = dict(named_leaves(output))
            gradients = self._differentiate(outputs) if self.gradients else {}
        outputs = {name: leaf.detach() if isinstance(leaf, Tensor) else leaf for name, leaf in outputs.items()}
        return Result(outputs, {name: buffer.detach() for name, buffer in buffers.items()}, gradients)

    def _differentiate(self, outputs: dict[str, Any]) -> dict[str, Tensor]:
        generator = np.random.default_rng(0)  # within deterministic() torch's generators give no random numbers
        projections = []
        for leaf in outputs.values():
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                real = torch.view_as_real(leaf) if leaf.is_complex() else leaf
                weights = torch.as_tensor(generator.standard_normal(tuple(real.shape))).to(real)
                projections.append((real * weights).sum())
        parameters = {name: p for name, p in self._parameters.items() if p.requires_grad}
        if not projections or not parameters:
            return {}
        total = torch.stack([p.to(projections[0]) for p in projections]).sum()
        found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(parameters, found, strict=True))
