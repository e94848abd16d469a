"""The card of an operator: all facts of it, written once, in the file of its family."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fxprune.algebra.axes import Axis
from fxprune.rules.call import Call
from fxprune.rules.labels import Label
from fxprune.rules.notation import Pattern


@dataclass(frozen=True)
class Coded:
    """A rule that no pattern says.

    Attributes:
        notation: the rule as text, as far as text says it.
        apply: couples the axes that meet in a call, and returns the label of each of its results.
    """

    notation: str
    apply: Callable[[Call], list[Label]]


Rule = Pattern | Coded
"""How an operator carries axes from its operands to its results."""


class PositionsLeft(Protocol):
    """Says of any axis which of its positions are left."""

    def __call__(self, axis: Axis, /) -> NDArray[np.bool_]:
        """Return one flag for each position, whether it is left."""

    def size(self, axis: Axis, /) -> int:
        """Return how many positions are left."""

    def shape(self, label: Label, /) -> tuple[int, ...]:
        """Return the shape that is left of a tensor."""


@dataclass(frozen=True, eq=False)
class Work:
    """A number of operations and the axes over which they repeat: an axis that loses half of its positions halves it.

    Attributes:
        flops: the operations, two for each multiplication with its addition.
        axes: the axes, each once.
    """

    flops: int
    axes: tuple[Axis, ...]

    @staticmethod
    def of_products(axes: Iterable[Axis], times: int = 1) -> Work:
        """Return the work of ``times`` multiplications and additions at each place of a grid of axes."""
        axes = tuple(axes)
        return Work(2 * times * math.prod(axis.size for axis in axes), axes)


class OverKept(NamedTuple):
    """The function that combines kept positions only, which a masked graph calls in place of an operator.

    Attributes:
        function: the function. Besides the arguments below it takes ``keeps``, a list of keep vectors, and ``keep_dims``, the
            dimension of the first of ``given`` that each of them is for.
        given: the operator's arguments that the function takes as they stand in the graph.
        plain: the plain arguments that the function takes as analysed; or a function that gives them, by name, for a call.
    """

    function: Callable[..., Any]
    given: tuple[str, ...]
    plain: tuple[str, ...] | Callable[[Call], dict[str, Any]]

    @property
    def names(self) -> tuple[str, ...]:
        """The operator's arguments that the function takes."""
        return (*self.given, *self.plain) if isinstance(self.plain, tuple) else self.given

    def plain_arguments(self, call: Call) -> dict[str, Any]:
        """Return the function's plain arguments by name."""
        return {name: call[name] for name in self.plain} if isinstance(self.plain, tuple) else self.plain(call)


class Places(NamedTuple):
    """Which tensor arguments are input, weight and bias of an operator that adds its bias to sums of input times weight.

    Attributes:
        input: the number of the input.
        weight: the number of the weight.
        bias: the number of the bias.
        inputs_first: whether the inputs are the first dimension of the weight, and not the second.
        function: torch's function with the same arguments in the same order, unless the operator is the function itself.
    """

    input: int
    weight: int
    bias: int
    inputs_first: bool = False
    function: Callable[..., Any] | None = None


SizeArguments = Callable[[Call, tuple[Label, ...], PositionsLeft], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class OpCard:
    """All that is known of an operator.

    Whether it draws random numbers torch itself says, by the tag ``torch.Tag.nondeterministic_seeded``.

    Attributes:
        rule: how it carries axes from its operands to its results; None for an operator without a rule.
        size_arguments: gives the plain arguments that name sizes or places (shapes, bounds, counts, shifts) for the smaller
            call, by name, those that stay the same included. It takes the analysed call, the labels of its results and the
            positions that are left, and raises :class:`~fxprune.RuleError` where no arguments make the smaller call. None
            if no argument names a size that can shrink.
        over_kept: its function over kept positions; None if a masked graph fills removed positions instead.
        work: gives the work of a call, in parts; None for the number that torch counts.
        keeps_numbers: whether a plane of operand 0 that is one number throughout gives a plane of the same number; or a
            function that tells this of a call.
        as_a_whole: whether the zeros text holds only where all tensors of a unit are zero, and not for a single operand.
        places: which operands are input, weight and bias of a layer; None if it is no such layer.
        batch_norm_scale: the number of the operand that scales the channels of a batch norm; None if it is no batch norm.
        is_uninitialised: whether its results are uninitialised memory.
        multiples: gives the axes of a call of whose size only multiples of a number run, and these numbers.
    """

    rule: Rule | None = None
    size_arguments: SizeArguments | None = None
    over_kept: OverKept | None = None
    work: Callable[[Call], list[Work]] | None = None
    keeps_numbers: bool | Callable[[Call], bool] = False
    as_a_whole: bool = False
    places: Places | None = None
    batch_norm_scale: int | None = None
    is_uninitialised: bool = False
    multiples: Callable[[Call], list[tuple[Axis, int]]] | None = None

    def arguments_left(self, call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
        """Return the plain arguments that name sizes or places for the call on the positions left, by name."""
        return {} if self.size_arguments is None else self.size_arguments(call, results, left)
