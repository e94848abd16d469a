"""What the analysis has to know of an operator before any call of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxprune.abstract.counters import READS_VALUE
from fxprune.rules import POINTWISE, Rule, find_rule
from fxprune.torch_internals.operators import OpOverload, arguments_of, is_mutable

_ROOTS = ("torch", "_operator", "builtins", "math", "fxprune")  # where functions come from that do what their operator does


def runs_own_code(node: fx.Node) -> bool:
    """Tell whether a node calls a function of the user's own, which may ask for sizes whatever operators it runs."""
    module = getattr(node.target, "__module__", None) or "torch"
    return node.op == "call_function" and (
        str(module).partition(".")[0] not in _ROOTS or isinstance(node.target, torch.jit.ScriptFunction)
    )


@dataclass(frozen=True, eq=False)
class Operator:
    """An operator.

    Attributes:
        func: the operator.
        name: its name.
        rule: its rule.
        parameters: the name and the default of each parameter, and whether it takes tensors.
        is_mutable: whether it writes into an operand.
        is_free: whether it asks for what no rule is about, such as a device.
        reads_value: whether it asks for the value of a tensor.
    """

    func: OpOverload
    name: str
    rule: Rule | None
    parameters: list[tuple[str, Any, bool]]
    is_mutable: bool
    is_free: bool
    reads_value: bool

    @staticmethod
    def of(func: OpOverload) -> Operator:
        """Return an operator as the analysis takes it."""
        return Operator(
            func,
            str(func),
            find_rule(func, lambda: POINTWISE),
            [(a.name, a.default_value, "Tensor" in str(a.type)) for a in arguments_of(func)],
            is_mutable(func),
            func.namespace == "prim",
            func in READS_VALUE,
        )
