"""Facts of operators and functions that the analysis needs before a call."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx

from fxprune.torch_internals.operators import OpOverload, arguments_of

_ROOTS = ("torch", "_operator", "builtins", "math", "fxprune")  # packages of functions that do what their operators do


def runs_own_code(node: fx.Node) -> bool:
    """Tell whether a node calls a function of the user's own, which may ask for sizes whatever operators it runs."""
    module = getattr(node.target, "__module__", None) or "torch"
    return node.op == "call_function" and (
        str(module).partition(".")[0] not in _ROOTS or isinstance(node.target, torch.jit.ScriptFunction)
    )


@functools.cache
def parameters_of(op: OpOverload) -> list[tuple[str, Any, bool]]:
    """Return the name and the default of each parameter of an operator, and whether the parameter takes tensors."""
    return [(a.name, a.default_value, "Tensor" in str(a.type)) for a in arguments_of(op)]
