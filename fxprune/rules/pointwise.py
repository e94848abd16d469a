"""Operators that work element by element, with broadcasting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxprune.rules.call import Call
from fxprune.rules.labels import Label, Zero
from fxprune.rules.notation import Pattern
from fxprune.rules.registry import overloads, register
from fxprune.torch_internals.operators import OpOverload, no_modes
from fxprune.torch_internals.tensors import pytree


def broadcast(call: Call) -> str:
    """Return the pattern of operands that broadcast against each other."""
    return _broadcast(tuple([None if label is None else label.shape for label in call.operands]), tuple(call.shapes))


@functools.lru_cache(maxsize=1 << 12)
def _broadcast(operands: tuple[tuple[int, ...] | None, ...], results: tuple[tuple[int, ...], ...]) -> str:
    rank = len(results[0]) if results else max((len(shape) for shape in operands if shape is not None), default=0)
    names = [f"x{d}" for d in range(rank)]

    def side(shape: tuple[int, ...]) -> str:
        return " ".join("1" if size == 1 else name for name, size in zip(names[rank - len(shape) :], shape, strict=True))

    return f"{', '.join('' if shape is None else side(shape) for shape in operands)} -> {', '.join(map(side, results))}"


class Pointwise:
    """The rule of all element-wise operators.

    What the result holds at removed positions is found out by calling the operator on zeros.
    """

    notation = "...x, ...x -> ...x"
    _pattern = Pattern(broadcast)

    def __init__(self) -> None:
        # What an operator makes of zeros, by operator and plain arguments, and then by operands that are zero.
        self._known: dict[tuple[OpOverload, str], dict[tuple[Zero | None, ...], Zero]] = {}

    def apply(self, call: Call) -> list[Label]:
        """Couple what meets in the call, and return the label of each tensor that it returned."""
        results = self._pattern.apply(call)
        rank, known = len(results[0]) if results else 0, self._states(call)
        states: list[Zero] = []
        for d in range(-rank, 0):
            at = tuple([_state(operand, d) for operand in call.operands])
            if at not in known:
                known[at] = self._evaluate(call, at)
            states.append(known[at])
        return [Label(label.axes, tuple(states[rank - len(label) :])) for label in results]

    def _states(self, call: Call) -> dict[tuple[Zero | None, ...], Zero]:
        """Return what is known of the operator with these plain arguments: its result by what stands in its operands."""
        key = (call.op, str([_plain(value) for value in call.arguments.values()]))
        return self._known.setdefault(key, {})

    def _evaluate(self, call: Call, states: tuple[Zero | None, ...]) -> Zero:
        if Zero.UNKNOWN in states:
            return Zero.UNKNOWN
        if torch.Tag.nondeterministic_seeded in call.op.tags:
            return Zero.FINITE  # one draw proves nothing, and is the user's to make
        return _try(call, states)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype
    return [_plain(leaf) for leaf in value] if isinstance(value, list | tuple) else value


def _state(operand: Label | None, d: int) -> Zero | None:
    """Return what an operand holds at the positions removed along the result's dimension ``d``, counted from the end."""
    if operand is None:
        return None
    if len(operand) < -d or operand.axes[d].size == 1:
        return Zero.FINITE
    return operand.zeros[d]


# Positive numbers: a root or a logarithm in a model takes what is positive, or the model itself is not finite.
_USUAL = torch.tensor([0.7, 1.3, 2.1])
_ANY = torch.tensor([0.7, -1.3, 2.1, -40.0, 0.02, 5e3, -0.3, 17.0])


def _try(call: Call, states: tuple[Zero | None, ...]) -> Zero:
    """Call the operator on zeros for the operands that are zero, and on some numbers for the others."""
    with no_modes(), torch.no_grad():
        usual = _values(call, states, _USUAL)
        if usual is None or not usual.isfinite().all() or not _has_gradient(call, states):
            return Zero.UNKNOWN
        if usual.any():
            return Zero.FINITE
        # Zero by chance, as a comparison or a clamp may be, or whatever the others are?
        others = _values(call, states, _ANY)
        return Zero.FINITE if others is None or others.any() else Zero.ZERO


def _has_gradient(call: Call, states: tuple[Zero | None, ...]) -> bool:
    """Tell whether the gradient is finite at zero, too, as that of a square root is not; masked zeros would spread it."""
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
    """Return what the operator makes of zeros and some numbers; None if it takes no such operands.

    Where there are ``inputs``, the operands that are zero take part in a gradient and are listed there.
    """
    waiting = [state for state in states if state is not None]

    def stand_in(leaf: Tensor) -> Tensor:
        state = waiting.pop(0)
        # No two operands are alike.
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
    if not returned:  # an operator that does not take such operands says nothing about zeros
        return None
    return torch.cat(returned) if inputs is not None else torch.cat([r.to(torch.complex128) for r in returned])


def called_on(call: Call, stand_in: Callable[[Tensor], Tensor]) -> list[Tensor] | None:
    """Return what an operator makes of other tensors, on the CPU; None if it does not take them.

    Args:
        call: a call of the operator.
        stand_in: what gives, for each tensor of the call in turn, the tensor in its place.
    """

    def replaced(leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return torch.device("cpu")  # where there are values
        return stand_in(leaf) if isinstance(leaf, Tensor) else leaf

    try:
        result = call.op(**pytree.tree_map(replaced, call.arguments))
    except Exception:
        return None
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


POINTWISE = Pointwise()

# Element-wise, though torch does not tag them so, or its older versions do not.
register(
    overloads(
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
        "isclose fake_quantize_per_tensor_affine"
    ),
    POINTWISE,
)
# What is drawn at random scales, so that zeros stay.
register(overloads("native_dropout"), Pattern("...x -> ...x, ...x", zeros="0, n"))
register(overloads("rrelu"), Pattern("...x -> ...x", zeros="0"))
