"""Reads the patterns of rules slice by slice: what is known of the results of an operator that a pattern describes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxprune.rules.call import Call
from fxprune.rules.notation import Dim, Layout, Pattern
from fxprune.rules.registry import op_card
from fxprune.torch_internals.operators import arguments_of
from fxprune.zeros.slice_states import Slices, SliceState, added, multiplied

Known = tuple[Slices | None, ...]
"""What is known of a tensor, for each dimension; None where there are just numbers."""


def nothing_of(shape: Sequence[int]) -> Known:
    """Return that nothing is known of a tensor of this shape."""
    return (None,) * len(shape)


class Reading:
    """Reads the text that says how zeros travel, slice by slice."""

    def __init__(self, rule: Pattern, call: Call, operands: Sequence[Known]) -> None:
        self.call, self.operands = call, list(operands)
        self.layout: Layout = rule.layout(call)
        dims = [dim for dims in (*self.layout.operands.values(), *self.layout.results) for dim in dims or ()]
        # Where every position counts a zero may turn up at another one.
        self.whole = {name for dim in dims for name in dim.whole}
        self.mixed = {name for dim in dims for name in dim.mixed}
        self.zeros, self.mixed_zeros = self.layout.zeros, rule.mixed_zeros
        if self.mixed_zeros is not None:
            # Where the rule counts on masks to make zeros, norms need them in what they divide.
            self.mixed_zeros = self.mixed_zeros.replace("z", "0" if rule.mixes == "norm" else "n")
        self._read_running_mean()

    def _read_running_mean(self) -> None:
        """Let zeros pass a batch norm whose running mean is zero there, too; otherwise the modes differ."""
        is_ours = self.call.op.namespace == "aten" and op_card(self.call.op).batch_norm_scale is not None
        if not is_ours or self.call.arguments.get("running_mean") is None:
            return
        index = _number_of(self.call, "running_mean")
        inputs, means = (self.operands[i][d] if len(self.operands[i]) > d else None for i, d in ((0, 1), (index, 0)))
        still = None
        if inputs is not None and means is not None:
            zero = (inputs.states == SliceState.ZERO) & (means.states == SliceState.ZERO)
            still = Slices(
                np.where(zero, SliceState.ZERO, np.minimum(inputs.states, SliceState.FINITE)).astype(np.int8),
                0.0 * inputs.values,
            )
        self.operands[0] = tuple(still if d == 1 else s for d, s in enumerate(self.operands[0]))
        self.zeros = "0*1+2"

    def result(self, index: int) -> Known:
        """Return what is known of one of the results."""
        dims = self.layout.results[index]
        if dims is None:
            return nothing_of(self.call.shapes[index])
        parts = self.zeros.split(",")
        zeros = parts[min(index, len(parts) - 1)].strip()
        return tuple(self._along(dim, zeros, index) for dim in dims)

    def _along(self, dim: Dim, zeros: str, index: int) -> Slices | None:
        names = [name for name in dim.names if name not in self.whole]
        found = None
        if self.mixed_zeros is None:
            forms = [(names, zeros)]
        else:
            apart = [name for name in names if name not in self.mixed]
            forms = [(apart, zeros), (names if len(apart) < len(names) else [], self.mixed_zeros)]
        for some, text in forms:
            if some:
                grid = self._sum(text, some, index).expand([self.layout.sizes[name] for name in some])
                grid = grid.reshape([self.layout.sizes[name] if name in some else 1 for name in dim.names])
                found = grid if found is None else found.join(grid)
        if found is None:
            return None
        return found.expand([self.layout.sizes[name] for name in dim.names]).reshape([-1])

    def _sum(self, text: str, names: Sequence[str], index: int) -> Slices:
        terms = []
        for term in text.split("+"):
            factors = [(factor, self._factor(factor, names)) for factor in term.split("*")]
            present = [(factor, slices) for factor, slices in factors if slices is not None]
            if len(present) == 1 and self._passes_numbers(present[0][0], index):
                terms.append(present[0][1])
            elif present:
                terms.append(multiplied([slices for _, slices in present]))
        return added(terms) if terms else Slices.all(SliceState.FINITE, [1] * len(names))

    def _factor(self, factor: str, names: Sequence[str]) -> Slices | None:
        one = [1] * len(names)
        if factor == "z":
            return Slices.all(SliceState.ZERO, one)
        if factor == "n":
            return Slices.all(SliceState.FINITE, one)
        if factor == "u":  # of zeros
            zero = added([Slices.all(SliceState.FINITE, one)])
            for i in range(len(self.operands)):
                here = self.on(i, names)
                zero = Slices(
                    np.where(here.states == SliceState.ZERO, SliceState.UNKNOWN, zero.states).astype(np.int8), 0.0 * here.values
                )
            return zero
        operand = int(factor)
        return None if operand >= len(self.operands) or self.call.operands[operand] is None else self.on(operand, names)

    def _passes_numbers(self, factor: str, index: int) -> bool:
        """Tell whether a term that is an operand alone is that operand, number by number."""
        if not factor.isdecimal():
            return False
        arguments, operand = self.call.arguments, int(factor)
        keeps_numbers = op_card(self.call.op).keeps_numbers
        if keeps_numbers:
            return operand == 0 and index == 0 and (keeps_numbers is True or keeps_numbers(self.call))
        if self.call.op.namespace != "aten":
            return False
        if arguments.get("bias") is not None and operand == _number_of(self.call, "bias"):
            return True
        return operand == 0 and bool(arguments.get("beta") == 1)

    def on(self, operand: int, names: Sequence[str]) -> Slices:
        """Return what is known of an operand on the grid of ``names``; of size one along those that it does not have."""
        found = None
        for slices, dim in zip(self.operands[operand], self.layout.operands.get(operand, ()), strict=False):
            shared = [name for name in dim.names if name in names]
            if slices is None or not shared:
                continue
            grid = slices.reshape([self.layout.sizes[name] for name in dim.names])
            grid = grid.meet([k for k, name in enumerate(dim.names) if name not in names])
            grid = grid.transpose(sorted(range(len(shared)), key=lambda k: names.index(shared[k])))
            grid = grid.reshape([self.layout.sizes[name] if name in shared else 1 for name in names])
            found = grid if found is None else found.join(grid)
        return Slices.all(SliceState.FINITE, [1] * len(names)) if found is None else found


def _number_of(call: Call, argument: str) -> int:
    """Return which operand an argument is."""
    tensors = [a.name for a in arguments_of(call.op) if "Tensor" in str(a.type)]
    return tensors.index(argument)
