"""Rules as text: ``"...b [i], o [i], o -> ...b o"`` says everything about a linear layer.

Operands stand before the arrow, results behind it, each a list of dimensions:

=============  ==================================================================================================
``a``          a dimension; wherever the same name stands, the axes are coupled
``(g i)``      one dimension of g * i positions, split into (or merged from) its parts
``[i]``        a mixing point: the call combines the positions along i
``!v``         stays whole
``1``          a dimension of size one
``...b``       any number of dimensions, each as if named
``*s``         any number of dimensions, all of which stay whole
``_``          (for an operand or result) any shape: every dimension stays whole
=============  ==================================================================================================

A name that only results have is a new axis, whose positions are all alike, so that any of them may go.

How zeros travel is text, too: ``"0*1+2"`` says that the result is zero at a removed position if operand 0 or operand 1 is zero
there, and operand 2 is. ``n`` stands for some number, ``z`` for zero, ``u`` for a value that may be infinite or no number. An
operand that a call leaves out is left out of the text. Commas separate the texts of several results: ``"0, n"``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fxprune.errors import RuleError
from fxprune.rules.call import Call
from fxprune.rules.labels import Label
from fxprune.rules.laying import DoesNotFitError, Laid, lay
from fxprune.rules.parsing import KINDS, Dim, check_zeros, parse

__all__ = ["KINDS", "Dim", "Pattern", "check_zeros", "parse"]

Text = str | Callable[[Call], str]


@dataclass(frozen=True, eq=False)
class Pattern:
    """A rule that is a pattern and nothing else.

    Attributes:
        pattern: the pattern, or the function that gives it for a call.
        doc: the pattern as text, where ``pattern`` is a function.
        zeros: how zeros travel, or the function that gives this text for a call.
        mixed_zeros: the text for mixing points that the result keeps; None for that of ``zeros``.
        mixes: how mixing points combine, or how each of them does, by name.
        sizes: gives, from a call, the sizes of names that shapes alone do not tell.
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
        """Couple the axes that meet in the call, and return the label of each of its results."""
        laid = self.lay(call)
        laid.bind(call)
        call.mixings += laid.mixings(call, self.mixes)
        zeros = self.zeros_of(call)
        return [laid.result(i, call, zeros, self.mixed_zeros) for i in range(len(laid.results))]

    def zeros_of(self, call: Call) -> str:
        """Return the text of how zeros travel through a call."""
        return self.zeros if isinstance(self.zeros, str) else self.zeros(call)

    def lay(self, call: Call) -> Laid:
        """Lay the pattern over the call's shapes; couples nothing.

        Raises:
            RuleError: the pattern does not fit the call's shapes.
        """
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
