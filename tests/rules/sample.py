"""Samples: small calls of operators, as data that brute force can repeat with positions taken away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

Keep = NDArray[np.bool_]
Keeps = list[tuple[Keep, ...]]
Draw = Callable[[torch.Generator], Tensor]


@dataclass(frozen=True)
class Operand:
    """A tensor argument of a sample.

    Attributes:
        shape: its shape.
        draw: what makes random values of it.
        exact: whether the analysis may know its values: integers and flags.
        counts: whether it holds whole numbers.
    """

    shape: tuple[int, ...]
    draw: Draw
    exact: bool = False
    counts: bool = False


def real(*shape: int) -> Operand:
    """Return an operand of numbers of either sign."""
    return Operand(shape, lambda g: torch.randn(shape, generator=g, dtype=torch.float64))


def between(low: float, high: float, *shape: int) -> Operand:
    """Return an operand of numbers in a range."""
    return Operand(shape, lambda g: low + (high - low) * torch.rand(shape, generator=g, dtype=torch.float64))


def complex_(*shape: int) -> Operand:
    """Return an operand of complex numbers."""
    return Operand(shape, lambda g: torch.randn(shape, generator=g, dtype=torch.complex128))


def integers(high: int, *shape: int, low: int = 0) -> Operand:
    """Return an operand of whole numbers below ``high``."""
    return Operand(shape, lambda g: torch.randint(low, high, shape, generator=g), exact=True, counts=True)


def flags(*shape: int) -> Operand:
    """Return an operand of flags."""
    return Operand(shape, lambda g: torch.rand(shape, generator=g) > 0.5, exact=True)


def exactly(value: Tensor) -> Operand:
    """Return an operand of given values."""
    exact = not (value.is_floating_point() or value.is_complex())
    return Operand(tuple(value.shape), lambda g: value.clone(), exact=exact, counts=value.dtype == torch.int64)


@dataclass(eq=False)
class Context:
    """The operands of one run of a sample: all of their positions, or those that are kept.

    Attributes:
        op: the operator.
        tensors: the operands.
        keeps: which positions of the full operands are there; None for all.
        results: which positions of the full results are expected; None for all.
        names: how many positions the axes of the rule's pattern have left.
        arguments: those of the call that was made.
        full: the shapes of the full operands.
    """

    op: OpOverload
    tensors: list[Tensor]
    full: list[tuple[int, ...]]
    keeps: Keeps | None = None
    results: Keeps | None = None
    names: dict[str, int] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, operand: int) -> Tensor:
        return self.tensors[operand]

    def call(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Call the operator, and return the tensors that it returns."""
        self.arguments = bound(self.op, args, kwargs)
        with torch.no_grad():
            result = self.op(*args, **kwargs)
        return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]

    def out(self, *full: int, result: int = 0) -> list[int]:
        """Return the expected shape of a result that is of shape ``full`` in the ordinary call."""
        if self.results is None:
            return list(full)
        return [int(keep.sum()) for keep in self.results[result]]

    def kept(self, operand: int, dim: int, stop: int) -> int:
        """Return how many positions of an operand's dimension before ``stop`` are kept."""
        return stop if self.keeps is None else int(self.keeps[operand][dim][:stop].sum())

    def size(self, name: str, full: int) -> int:
        """Return how many positions of an axis of the rule's pattern are kept, ``full`` in the ordinary call."""
        return self.names.get(name, full)

    def numbered(self, operand: int, of: int, dim: int) -> Tensor:
        """Return an index operand, its values counted over the kept positions of dimension ``dim`` of operand ``of``."""
        index = self.tensors[operand]
        if self.keeps is None:
            return index
        keep = torch.from_numpy(self.keeps[of][dim])
        return (torch.cumsum(keep, 0) - keep.long())[index.long()].to(index.dtype)


Run = Callable[[Context], list[Tensor]]
# What a call has to give where it combines only kept positions: from the full operands and flags of 1 and 0 for each dimension.
Reference = Callable[[Context, list[list[Tensor]]], Sequence[Tensor]]


@dataclass(frozen=True)
class Sample:
    """A call of one or several operators.

    Attributes:
        ops: the operators' names, apart by blanks; without a dot the overload is ``default``.
        operands: the tensor arguments.
        run: what makes the call; on full operands the ordinary one, on reduced ones the same with sizes adapted.
        reference: the full-size call over kept positions, for mixing points that no filling makes right.
        random: whether the values differ from call to call, so that only shapes can be compared.
        unchecked: whether the operator does not check its shapes, so that wrong ones would crash.
        note: what is special about the sample.
    """

    ops: str
    operands: tuple[Operand, ...]
    run: Run
    reference: Reference | None = None
    random: bool = False
    unchecked: bool = False
    note: str = ""

    def __str__(self) -> str:
        shapes = ", ".join(str(list(operand.shape)) for operand in self.operands)
        return f"sample on {shapes}" + (f" ({self.note})" if self.note else "")


def bound(op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call by name."""
    given = {argument.name: value for argument, value in zip(op._schema.arguments, args, strict=False)}
    defaults = {argument.name: argument.default_value for argument in op._schema.arguments}
    return {**defaults, **kwargs, **given}
