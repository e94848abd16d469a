"""Rules as text: ``"...b [i], o [i], o -> ...b o"`` is all there is to say about a linear layer.

Operands stand before the arrow, results behind it, each a list of dimensions:

=============  ==================================================================================================
``a``          a dimension; wherever the same name stands, the axes are coupled
``(g i)``      one dimension of g * i positions, split into (or merged from) its parts
``[i]``        a mixing point: the call combines the positions along i
``!v``         stays whole
``1``          a dimension of size one
``...b``       any number of dimensions, each as if named
``*s``         any number of dimensions, all of which stay whole
``_``          (for an operand or result) of no interest: every dimension stays whole
=============  ==================================================================================================

A name that only results have is a new axis that goes as it likes: all of its positions are alike.

How zeros travel is text, too: ``"0*1+2"`` says that the result at a removed position is zero there if operand 0 or 1 is zero
and operand 2 is. ``n`` stands for some number, ``z`` for zero, ``u`` for what may be infinite or no number. Operands that were
left out are left out here. Where results differ, commas part them as they part the results: ``"0, n"``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fxprune.errors import RuleError
from fxprune.rules.call import Call, Mixing
from fxprune.rules.labels import Label
from fxprune.rules.laying import DoesNotFitError, Laid, lay
from fxprune.rules.parsing import KINDS, Dim, check_zeros, parse

__all__ = ["KINDS", "Dim", "Layout", "Pattern", "check_zeros", "parse"]

Text = str | Callable[[Call], str]


@dataclass(frozen=True)
class Layout:
    """The names of the dimensions of one call's tensors.

    Attributes:
        operands: the dimensions of each operand that a pattern says something about, by its number.
        results: the dimensions of each result, None for one of no interest.
        sizes: the size of every name.
        zeros: how zeros travel.
    """

    operands: dict[int, list[Dim]]
    results: list[list[Dim] | None]
    sizes: Mapping[str, int]
    zeros: str


@dataclass(frozen=True, eq=False)
class Pattern:
    """A rule that a pattern says in full.

    Attributes:
        pattern: the pattern, or what makes one from a call.
        doc: the pattern as text, where ``pattern`` is a function.
        zeros: how zeros travel, or what works that out from a call.
        mixed_zeros: the same along mixing points that the result keeps; None for the same.
        mixes: how mixing points combine, or how each does by name.
        sizes: what gives the sizes of names that shapes alone do not tell.
    """

    pattern: Text
    doc: str = ""
    zeros: Text = "n"
    mixed_zeros: str | None = None
    mixes: str | dict[str, str] = "contract"
    sizes: Callable[[Call], dict[str, int]] | None = None

    @property
    def notation(self) -> str:
        """The rule as text."""
        return self.pattern if isinstance(self.pattern, str) else self.doc

    def apply(self, call: Call) -> list[Label]:
        """Couple what meets in the call, and return the label of each tensor that it returned."""
        laid = self._lay(call)
        axes = laid.bind(call)
        zeros = laid.zeros(self, self.zeros if isinstance(self.zeros, str) else self.zeros(call), call)
        for kind, operand, dim, name, state, neutral in zeros.mixings:
            call.mixings.append(Mixing(kind, operand, dim, axes[name], state, neutral, name))
        call.axes = axes
        return [laid.result(i, call, axes, states) for i, states in enumerate(zeros.results)]

    def layout(self, call: Call) -> Layout:
        """Return what the pattern calls the dimensions of a call's tensors; couples nothing.

        Raises:
            RuleError: the pattern does not fit the call's shapes.
        """
        laid = self._lay(call)
        operands = {i: [dim for dim, _ in dims] for i, dims in laid.operands}
        results = [None if dims is None else [dim for dim, _ in dims] for dims in laid.results]
        return Layout(operands, results, laid.sizes, self.zeros if isinstance(self.zeros, str) else self.zeros(call))

    def _lay(self, call: Call) -> Laid:
        """Lay the pattern over the call's shapes."""
        text = self.pattern if isinstance(self.pattern, str) else self.pattern(call)
        given = tuple([None if label is None else label.shape for label in call.operands])
        sizes = tuple(self.sizes(call).items()) if self.sizes else ()
        try:
            return lay(text, given, tuple(call.shapes), sizes)
        except DoesNotFitError as error:
            shapes = ", ".join("none" if shape is None else str(list(shape)) for shape in given)
            results = ", ".join(str(list(shape)) for shape in call.shapes)
            raise RuleError(
                f"the rule {text!r} of {call.op} at node {call.at.node!r} {error}; "
                f"operands {shapes or 'none'}, results {results or 'none'}. Register a rule that fits the operator's shapes."
            ) from None
