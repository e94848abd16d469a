"""Operators that work element by element, with broadcasting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxprune.rules.call import Call
from fxprune.rules.card import Coded, Rule
from fxprune.rules.labels import Label, Zero
from fxprune.rules.notation import Pattern
from fxprune.rules.parsing import broadcasting
from fxprune.rules.registry import op_card, register_aten
from fxprune.torch_internals.operators import OpOverload, no_modes
from fxprune.torch_internals.tensors import pytree


def broadcast(call: Call) -> str:
    """Return the pattern of operands that broadcast against each other."""
    shapes = [*(label.shape for label in call.operands if label is not None), *call.shapes]
    names = [f"x{d}" for d in range(max(map(len, shapes), default=0))]
    before = ", ".join("" if label is None else broadcasting(names, label.shape) for label in call.operands)
    return f"{before} -> {', '.join(broadcasting(names, shape) for shape in call.shapes)}"


@functools.lru_cache(maxsize=1 << 12)
def _known(op: OpOverload, plain: str) -> dict[tuple[Zero | None, ...], Zero]:
    """Return the table of the states of an operator's result by those of its operands, the same for the same arguments."""
    return {}


_BROADCAST = Pattern(broadcast)


def element_wise(call: Call) -> list[Label]:
    """Couple the axes that meet in the call.

    The state of the result at removed positions comes from a call of the operator on zeros: ``sigmoid(0)`` is 0.5, FINITE.
    """
    results = _BROADCAST.apply(call)
    rank = len(results[0]) if results else 0
    known = _known(call.op, str([_plain(value) for value in call.arguments.values()]))
    states: list[Zero] = []
    for d in range(-rank, 0):
        at = tuple([_state(operand, d) for operand in call.operands])
        if at not in known:
            known[at] = _try(call, at)
        states.append(known[at])
    return [Label(label.axes, tuple(states[rank - len(label) :])) for label in results]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype
    return [_plain(leaf) for leaf in value] if isinstance(value, list | tuple) else value


def _state(operand: Label | None, d: int) -> Zero | None:
    """Return the state of an operand where positions of the result's dimension ``d``, counted from the end, are removed."""
    if operand is None:
        return None
    if len(operand) < -d or operand.axes[d].size == 1:
        return Zero.FINITE
    return operand.zeros[d]


# Positive numbers, as the operands of roots and logarithms in models are.
_USUAL = torch.tensor([0.7, 1.3, 2.1])
_ANY = torch.tensor([0.7, -1.3, 2.1, -40.0, 0.02, 5e3, -0.3, 17.0])


def _try(call: Call, states: tuple[Zero | None, ...]) -> Zero:
    """Return the state of the result where operands are in these states, from calls on zeros and on some other numbers."""
    if Zero.UNKNOWN in states:
        return Zero.UNKNOWN
    if torch.Tag.nondeterministic_seeded in call.op.tags:
        return Zero.FINITE  # a single draw proves nothing, and would advance the user's random state
    with no_modes(), torch.no_grad():
        usual = _values(call, states, _USUAL)
        if usual is None or not usual.isfinite().all() or not _has_gradient(call, states):
            return Zero.UNKNOWN
        if usual.any():
            return Zero.FINITE
        # A comparison or a clamp may be zero by chance, so the operands that are not zero take other numbers as well.
        any_values = _values(call, states, _ANY)
        return Zero.FINITE if any_values is None or any_values.any() else Zero.ZERO


def _has_gradient(call: Call, states: tuple[Zero | None, ...]) -> bool:
    """Tell whether the gradient at zero is finite; that of a square root is not, and 0 * inf in a mask's gradient is nan."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs: list[Tensor] = []
        result = _values(call, states, _USUAL, inputs)
        if result is None or not result.requires_grad:
            return True
        total = result.abs().sum() if result.is_complex() else result.sum()
        try:
            gradients = torch.autograd.grad(total, inputs, allow_unused=True)
        except RuntimeError:  # an operator without a derivative
            return True
        return all(g is None or bool(g.isfinite().all()) for g in gradients)


def _values(call: Call, states: tuple[Zero | None, ...], numbers: Tensor, inputs: list[Tensor] | None = None) -> Tensor | None:
    """Return the results, flattened, of the operator on zeros and ``numbers``; None if it does not take such operands.

    The operands that are zero require a gradient and are appended to ``inputs``, if there is such a list.
    """
    waiting = [state for state in states if state is not None]

    def stand_in(leaf: Tensor) -> Tensor:
        state = waiting.pop(0)
        # Every operand has other numbers, so that a difference of operands is not zero.
        values = torch.zeros(len(numbers)) if state is Zero.ZERO else numbers.roll(len(waiting)) + 0.05 * len(waiting)
        values = values if leaf.dim() else values[0]
        if leaf.is_complex():
            values = values * (1 + 0.5j)
        values = values.to(leaf.dtype) if leaf.dtype != torch.bool else values > 1
        if inputs is not None and state is Zero.ZERO and leaf.is_floating_point():
            inputs.append(values.clone().requires_grad_())
            return inputs[-1]
        return values

    returned = [result.reshape(-1) for result in called_on(call, stand_in) or ()]
    if not returned:
        return None
    return torch.cat(returned) if inputs is not None else torch.cat([r.to(torch.complex128) for r in returned])


def called_on(call: Call, stand_in: Callable[[Tensor], Tensor]) -> list[Tensor] | None:
    """Repeat a call on the CPU with ``stand_in(tensor)`` in place of each tensor; return None if the operator refuses them."""

    def replaced(leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        return stand_in(leaf) if isinstance(leaf, Tensor) else leaf

    try:
        result = call.op(**pytree.tree_map(replaced, call.arguments))
    except Exception:
        return None
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


POINTWISE = Coded("...x, ...x -> ...x", element_wise)


def find_rule(op: OpOverload) -> Rule | None:
    """Return the rule on the card of an operator; without one, ``POINTWISE`` if torch tags the operator as pointwise."""
    rule = op_card(op).rule
    return POINTWISE if rule is None and torch.Tag.pointwise in op.tags else rule


# Element-wise operators that torch, or an older version of it, does not tag as pointwise.
register_aten(
    "_to_copy to.dtype to.dtype_layout to.device contiguous clone detach alias lift lift_fresh lift_fresh_copy "
    "_conj resolve_conj resolve_neg conj _neg_view real imag positive "
    "copy_ fill_.Scalar fill_.Tensor zero_ fill.Scalar fill.Tensor masked_fill_.Scalar masked_fill_.Tensor "
    "masked_fill.Tensor zero "
    "hardswish hardswish_ hardtanh hardtanh_ hardsigmoid hardsigmoid_ relu6 relu6_ selu selu_ celu celu_ "
    "_prelu_kernel softplus mish mish_ logit threshold threshold_ leaky_relu leaky_relu_ elu_ "
    "log_sigmoid log_sigmoid_forward hardshrink softshrink "
    "where.self where.ScalarSelf where.ScalarOther where.Scalar "
    "clamp clamp_ clip clip_ clamp_max_ clamp_min_ nan_to_num nan_to_num_ square square_ negative negative_ "
    "divide.Tensor multiply.Tensor subtract.Tensor true_divide.Tensor floor_divide multiply.Scalar subtract.Scalar "
    "divide.Scalar true_divide.Scalar rsub.Tensor rsub.Scalar absolute absolute_ special_expit special_erf "
    "__and__.Tensor __or__.Tensor __xor__.Tensor __and__.Scalar __or__.Scalar polar complex isfinite isreal "
    "greater.Tensor greater.Scalar less.Tensor less.Scalar less_equal.Tensor greater_equal.Tensor not_equal.Tensor "
    "isclose fake_quantize_per_tensor_affine",
    POINTWISE,
)
# The random numbers are factors, so that zeros stay.
register_aten("native_dropout", Pattern("...x -> ...x, ...x", zeros="0, n"))
register_aten("rrelu", Pattern("...x -> ...x", zeros="0"))
