"""Reads the patterns of rules slice by slice, from the known slices of operands to those of results."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from fxprune.rules.call import Call
from fxprune.rules.notation import Dim, Pattern
from fxprune.rules.registry import op_card
from fxprune.torch_internals.operators import arguments_of
from fxprune.zeros.slice_states import Slices, SliceState, added, finite, join, meet, multiplied, of_states

Known = tuple[Slices | None, ...]
"""The slices of a tensor along each dimension; None along a dimension where all of them are FINITE."""


def nothing_of(shape: Sequence[int]) -> Known:
    """Return the known slices of a tensor of this shape whose values are just numbers."""
    return (None,) * len(shape)


class Reading:
    """Evaluates the zeros text of a pattern on the slices of a call's operands.

    Example: ``linear`` has the text ``"0*1+2"``. If row 3 of the weight is zero and element 3 of the bias is 0.5, slice 3 of
    the result is 0.5 throughout.
    """

    def __init__(self, rule: Pattern, call: Call, operands: Sequence[Known]) -> None:
        self.call, self.operands = call, list(operands)
        self.layout = rule.lay(call)
        dims = [dim for dims in (*self.layout.operands.values(), *self.layout.results) for dim, _ in dims or ()]
        # Along a whole axis the operator may move values, as ``sort`` does: position 2 of the result need not come from
        # position 2 of the operand, so that the operand's slice 2 says nothing about the result's slice 2.
        self.whole = {name for dim in dims for name in dim.whole}
        self.mixed = {name for dim in dims for name in dim.mixed}
        self.zeros, self.mixed_zeros = rule.zeros_of(call), rule.mixed_zeros
        if self.mixed_zeros is not None:
            # "z" relies on the correction of a masked graph, and this graph has none. Without it a softmax turns a zero into
            # some number, and a weight norm divides operand 0 by a number, so that its zeros stay.
            self.mixed_zeros = self.mixed_zeros.replace("z", "0" if rule.mixes == "norm" else "n")
        self._read_running_mean()

    def _read_running_mean(self) -> None:
        """Let zeros pass a batch norm where its running mean is zero as well; elsewhere train and eval mode differ."""
        is_ours = self.call.op.namespace == "aten" and op_card(self.call.op).batch_norm_scale is not None
        if not is_ours or self.call.arguments.get("running_mean") is None:
            return
        mean = self.operands[_number_of(self.call, "running_mean")]
        still = None
        if len(self.operands[0]) > 1 and (inputs := self.operands[0][1]) is not None and mean and mean[0] is not None:
            zero = (inputs["state"] == SliceState.ZERO) & (mean[0]["state"] == SliceState.ZERO)
            still = of_states(np.where(zero, SliceState.ZERO, np.minimum(inputs["state"], SliceState.FINITE)))
        self.operands[0] = tuple(still if d == 1 else s for d, s in enumerate(self.operands[0]))
        self.zeros = "0*1+2"

    def result(self, index: int) -> Known:
        """Return the known slices of a result."""
        dims = self.layout.results[index]
        if dims is None:
            return nothing_of(self.call.shapes[index])
        parts = self.zeros.split(",")
        zeros = parts[min(index, len(parts) - 1)].strip()
        return tuple(self._along(dim, zeros, index) for dim, _ in dims)

    def _along(self, dim: Dim, zeros: str, index: int) -> Slices | None:
        """Return the slices along a dimension, which several names may share, as in ``(g c)``."""
        names = [name for name in dim.names if name not in self.whole]
        forms = [(names, zeros)]
        if self.mixed_zeros is not None:
            apart = [name for name in names if name not in self.mixed]
            forms = [(apart, zeros), (names if len(apart) < len(names) else [], self.mixed_zeros)]
        grids = []
        for some, text in forms:
            if some:
                grid = np.broadcast_to(self._sum(text, some, index), self._sizes(some))
                grids.append(grid.reshape([self.layout.sizes[name] if name in some else 1 for name in dim.names]))
        return np.broadcast_to(functools.reduce(join, grids), self._sizes(dim.names)).reshape([-1]) if grids else None

    def _sizes(self, names: Sequence[str]) -> list[int]:
        return [self.layout.sizes[name] for name in names]

    def _sum(self, text: str, names: Sequence[str], index: int) -> Slices:
        terms = []
        for term in text.split("+"):
            factors = [(factor, self._factor(factor, names)) for factor in term.split("*")]
            present = [(factor, slices) for factor, slices in factors if slices is not None]
            if len(present) == 1 and self._passes_numbers(present[0][0], index):
                terms.append(present[0][1])
            elif present:
                terms.append(multiplied([slices for _, slices in present]))
        return added(terms) if terms else finite([1] * len(names))

    def _factor(self, factor: str, names: Sequence[str]) -> Slices | None:
        """Return the slices of a factor, such as "0" or "n", on the grid of ``names``; None for an operand left out."""
        if factor == "u":  # unknown wherever an operand is zero
            zero = [self._on(i, names)["state"] == SliceState.ZERO for i in range(len(self.operands))]
            flags = functools.reduce(np.logical_or, zero)
            return of_states(np.where(flags, SliceState.UNKNOWN, SliceState.FINITE))
        if not factor.isdecimal():
            return of_states(np.full([1] * len(names), SliceState.ZERO if factor == "z" else SliceState.FINITE))
        operand = int(factor)
        left_out = operand >= len(self.operands) or self.call.operands[operand] is None
        return None if left_out else self._on(operand, names)

    def _passes_numbers(self, factor: str, index: int) -> bool:
        """Tell whether a term of this one factor is an operand whose numbers the result takes over as they are."""
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

    def _on(self, operand: int, names: Sequence[str]) -> Slices:
        """Return the slices of an operand on the grid of ``names``, of size one along names that it does not have."""
        grids = []
        for slices, (dim, _) in zip(self.operands[operand], self.layout.operands.get(operand, ()), strict=False):
            shared = [name for name in dim.names if name in names]
            if slices is not None and shared:
                grid = slices.reshape(self._sizes(dim.names))
                grid = meet(grid, [k for k, name in enumerate(dim.names) if name not in names])
                grid = grid.transpose(sorted(range(len(shared)), key=lambda k: names.index(shared[k])))
                grids.append(grid.reshape([self.layout.sizes[name] if name in shared else 1 for name in names]))
        return functools.reduce(join, grids) if grids else finite([1] * len(names))


def _number_of(call: Call, argument: str) -> int:
    """Return which operand an argument is."""
    return [a.name for a in arguments_of(call.op) if "Tensor" in str(a.type)].index(argument)
