"""The card of an operator: all that is known of it, written once, in the file of its family."""

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


class Rule(Protocol):
    """How an operator carries axes from its operands to its results."""

    @property
    def notation(self) -> str:
        """The rule as text."""

    def apply(self, call: Call) -> list[Label]:
        """Couple what meets in the call, and return the label of each tensor that it returned."""


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
    """A number of operations, and the axes over which they repeat: half of an axis takes half of the work.

    Attributes:
        flops: the operations, two for each multiplication with its addition.
        axes: the axes, each once.
    """

    flops: int
    axes: tuple[Axis, ...]

    @staticmethod
    def of_products(axes: Iterable[Axis], times: int = 1) -> Work:
        """Return the work of one multiplication and addition at each place of a grid of axes, ``times`` over."""
        axes = tuple(axes)
        return Work(2 * times * math.prod(axis.size for axis in axes), axes)


class OverKept(NamedTuple):
    """The form of an operator that combines kept positions only, called in its place in a masked graph.

    Attributes:
        function: the function; besides the arguments below it takes ``keeps``, a list of vectors of flags, and ``keep_dims``,
            the dimensions of the first of ``given`` along which they say which positions stay.
        given: the operator's arguments that the function takes as they are.
        plain: the plain arguments that the function takes as analysed; or what makes them from the call, by name.
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
    """Which tensor arguments of an operator are input, weight and bias, the bias added to sums of input times weight.

    Attributes:
        input: the number of the input.
        weight: the number of the weight.
        bias: the number of the bias.
        inputs_first: whether the weight has its inputs along its first dimension, and not along its second.
        function: torch's function of the same arguments in the same order, if it is not the operator itself.
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
        rule: how it carries axes from its operands to its results; None if that is not known.
        size_arguments: what makes, from a call as analysed, the labels of its results and the positions that are left, the
            plain arguments that name sizes or places - shapes, bounds, counts, shifts - as a call on what is left needs
            them, by name, those that stay the same included; raises :class:`~fxprune.RuleError` where no arguments say
            it. None if no argument names what can shrink.
        over_kept: its form over kept positions; None if filling the removed ones makes up for them.
        work: what makes the work of a call, in parts whose axes multiply; None for what torch counts.
        keeps_numbers: whether a plane of operand 0 that is one number throughout gives a plane of the same number; or what
            tells that of a call.
        as_a_whole: whether how zeros travel is true only where all that a unit owns is zero, not operand by operand.
        places: which operands are input, weight and bias of a layer; None if it is no such layer.
        batch_norm_scale: which operand scales the channels that a batch norm has normalised; None if it is no batch norm.
        is_uninitialised: whether its results are whatever is in memory.
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

    def arguments_left(self, call: Call, results: tuple[Label, ...], left: PositionsLeft) -> dict[str, Any]:
        """Return the plain arguments that name sizes or places as a call on what is left needs them, by name."""
        return {} if self.size_arguments is None else self.size_arguments(call, results, left)
