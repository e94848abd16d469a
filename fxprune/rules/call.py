"""One call of an operator, as a rule sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fxprune.algebra.axes import Axis, Reason
from fxprune.algebra.units import Units
from fxprune.rules.labels import Label, Zero
from fxprune.torch_internals.operators import OpOverload, arguments_of


@dataclass(frozen=True, eq=False)
class Mixing:
    """An operand dimension along which a call combines positions.

    Attributes:
        kind: how they are combined, a word of ``KINDS`` in ``parsing.py``.
        operand: the number of the tensor argument.
        dim: the dimension.
        axis: the axis whose positions are combined: that of the dimension, or its part within each group.
        zero: what the operand holds at removed positions.
        neutral: whether removed positions change nothing, so that the masked call needs no correction. At a "contract" it is
            enough to correct a single operand; with any other kind every operand that is not neutral is corrected.
        name: the name of the axis in the pattern; operands of a "contract" meet under the same name.
    """

    kind: str
    operand: int
    dim: int
    axis: Axis
    zero: Zero
    neutral: bool
    name: str = ""


@dataclass(eq=False)
class Call:
    """A call of an ATen operator on labelled tensors.

    Attributes:
        op: the operator.
        arguments: all arguments by name, defaults included; tensors are fake tensors.
        operands: the labels of all tensor arguments in the order of the schema, with the tensors of lists one by one; None for
            a tensor that was left out.
        shapes: the shapes of the tensors that the call returned.
        units: the units, which the rule couples and keeps whole.
        at: a reason without text, which names operator, node and source line.
        mixings: the mixing points that the rule found.
        axes: the axes of a pattern by name; the work of most operators is a product over them.
    """

    op: OpOverload
    arguments: dict[str, Any]
    operands: list[Label | None]
    shapes: list[tuple[int, ...]]
    units: Units
    at: Reason
    mixings: list[Mixing] = field(default_factory=list)
    axes: dict[str, Axis] = field(default_factory=dict)

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    def operand(self, index: int) -> Label:
        """Return the label of a tensor argument that was not left out."""
        label = self.operands[index]
        assert label is not None, f"{self.op} was called without its tensor argument {index}"
        return label

    def given(self) -> Iterator[tuple[Label, Tensor]]:
        """Yield each tensor argument that was not left out, with its label."""
        labels = (label for label in self.operands if label is not None)
        tensors = (tensor for value in self.arguments.values() for tensor in tensors_in(value) if tensor is not None)
        yield from zip(labels, tensors, strict=True)

    def dim(self, argument: str = "dim") -> int:
        """Return a dimension argument as a number from 0."""
        return int(self[argument]) % max(len(self.operand(0)), 1)

    def dims(self, argument: str = "dim") -> list[int]:
        """Return a list of dimensions as numbers from 0; all of them if the argument is missing, None or empty."""
        rank, given = len(self.operand(0)), self.arguments.get(argument)
        if given is None or (isinstance(given, Sequence) and not given):
            return list(range(rank))
        return [d % max(rank, 1) for d in (given if isinstance(given, Sequence) else [given])]

    def why(self, text: str) -> Reason:
        """Return a reason with this text that names operator, node and source line of the call."""
        return Reason(text, self.at.op, self.at.node, self.at.source)

    def couple(self, one: Axis, other: Axis) -> None:
        """Say that two axes meet element by element."""
        if one is not other and not self.units.join(one, other):
            self.units.couple(one, other, self.why("meets an axis that stays whole"))

    def keep_whole(self, axis: Axis, text: str) -> None:
        """Say that no position of an axis can go."""
        if not axis.is_whole:
            self.units.keep_whole(axis, self.why(text))

    def whole(self, size: int, text: str) -> Axis:
        """Return an axis that stays whole."""
        return Axis.whole(size, self.why(text))


def tensors_in(value: Any) -> list[Tensor | None]:
    """Return the tensors of an argument value, with None for each element of a list that is no tensor."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
        return [v if isinstance(v, Tensor) else None for v in value]
    return []


def bound_arguments(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, defaults included."""
    by_name = dict(zip((argument.name for argument in arguments_of(op)), args, strict=False), **kwargs)
    return {argument.name: by_name.get(argument.name, argument.default_value) for argument in arguments_of(op)}
