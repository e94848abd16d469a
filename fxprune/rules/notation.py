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

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from fxprune.axes import Axis
from fxprune.errors import RuleError
from fxprune.rules.call import Call, Mixing
from fxprune.rules.labels import Label, Zero, product

Text = str | Callable[[Call], str]


@dataclass(frozen=True)
class Dim:
    """One dimension in a pattern.

    Attributes:
        names: the names whose product it is; one, unless in parentheses.
        mixed: the names among them that are mixing points.
        whole: whether it stays whole.
        many: whether it stands for any number of dimensions.
    """

    names: tuple[str, ...]
    mixed: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()
    many: bool = False


Shape = tuple[Dim, ...]

KINDS = frozenset(["contract", "sum", "mean", "var", "normalize", "softmax", "max", "min", "prod", "norm", "logsumexp"])

_TOKEN = re.compile(r"\([^)]*\)|\S+")


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> tuple[tuple[Shape | None, ...], tuple[Shape | None, ...]]:
    """Return the operands and the results of a pattern; None for ``_``.

    Raises:
        RuleError: the text is not a pattern.
    """
    if not isinstance(text, str) or text.count("->") != 1:
        raise RuleError(f"a rule reads 'operands -> results', not {text!r}")
    operands, results = ([_shape(part.strip()) for part in side.split(",")] for side in text.split("->"))
    return tuple(operands), tuple(results)


def _shape(text: str) -> Shape | None:
    if text == "_":
        return None
    shape = tuple(_dim(token) for token in _TOKEN.findall(text))
    if sum(dim.many for dim in shape) > 1:
        raise RuleError(f"{text!r} has more than one dimension that stands for any number")
    return shape


def _dim(token: str) -> Dim:
    if token.startswith("(") and token.endswith(")"):
        parts = [_dim(part) for part in token[1:-1].split()]
        return Dim(
            tuple(name for part in parts for name in part.names),
            frozenset[str]().union(*(part.mixed for part in parts)),
            frozenset[str]().union(*(part.whole for part in parts)),
        )
    if token.startswith("..."):
        return Dim((token[3:] or "...",), many=True)
    if token.startswith("*"):
        return Dim((token,), whole=frozenset({token}), many=True)
    name = token.strip("[]!")
    if not re.fullmatch(r"\w+", name):
        raise RuleError(f"{token!r} is not a dimension of a rule")
    mixed = frozenset({name}) if token.startswith("[") else frozenset[str]()
    return Dim(() if name == "1" else (name,), mixed, frozenset({name}) if token.startswith("!") else frozenset())


def check_zeros(zeros: str, operands: int) -> None:
    """Raise RuleError unless ``zeros`` says how zeros travel through an operator of so many operands."""
    for factor in re.split(r"[*+,]", zeros):
        if factor.strip() not in _STATES and not (factor.strip().isdecimal() and int(factor) < operands):
            raise RuleError(
                f"{factor!r} in zeros={zeros!r} is neither the number of one of {operands} operands, counted from 0, "
                "nor one of 'n' (some number), 'z' (zero), 'u' (unknown)"
            )


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


@dataclass(frozen=True)
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
        text = self.pattern if isinstance(self.pattern, str) else self.pattern(call)
        binding = _Binding(call, text, self.sizes(call) if self.sizes else {})
        binding.bind()
        zeros = self.zeros if isinstance(self.zeros, str) else self.zeros(call)
        self._mix(binding)
        call.axes = binding.axes
        return [binding.result(i, zeros, self.mixed_zeros) for i in range(len(call.shapes))]

    def layout(self, call: Call) -> Layout:
        """Return what the pattern calls the dimensions of a call's tensors; couples nothing.

        Raises:
            RuleError: the pattern does not fit the call's shapes.
        """
        text = self.pattern if isinstance(self.pattern, str) else self.pattern(call)
        binding = _Binding(call, text, self.sizes(call) if self.sizes else {})
        operands = {i: [dim for dim, _ in dims] for i, dims in binding.lay()}
        results = [None if dims is None else [dim for dim, _ in dims] for dims in binding.results]
        zeros = self.zeros if isinstance(self.zeros, str) else self.zeros(call)
        return Layout(operands, results, binding.sizes, zeros)

    def _mix(self, binding: _Binding) -> None:
        for name, places in binding.mixed.items():
            kind = self.mixes if isinstance(self.mixes, str) else self.mixes[name]
            states = [binding.states[operand][name] for operand, _ in places]
            # In a product one zero is enough; whatever is summed otherwise has to be zero itself.
            together = kind == "contract" and product(states) is Zero.ZERO
            binding.call.mixings += [
                Mixing(
                    kind, operand, dim, binding.axes[name], state, together or (kind in _ZERO_IS_NEUTRAL and state is Zero.ZERO)
                )
                for (operand, dim), state in zip(places, states, strict=True)
            ]


_ZERO_IS_NEUTRAL = frozenset({"sum", "norm"})


_STATES = {"n": Zero.FINITE, "z": Zero.ZERO, "u": Zero.UNKNOWN}


Laid = list[tuple[Dim, int]]
_Shape = tuple[int, ...]


class _DoesNotFitError(Exception):
    """The pattern is for other shapes; the message says how."""


@dataclass(frozen=True)
class _Fit:
    """A pattern laid over shapes: the dimensions of operands and results, each with its size, and the sizes of names."""

    operands: Sequence[tuple[int, Laid]]
    results: Sequence[Laid | None]
    sizes: Mapping[str, int]


@functools.lru_cache(maxsize=1 << 14)  # layers repeat
def _fit(text: str, given: tuple[_Shape | None, ...], returned: tuple[_Shape, ...], sizes: tuple[tuple[str, int], ...]) -> _Fit:
    operands, results = parse(text)
    if len(operands) < len(given) or len(results) != len(returned):
        raise _DoesNotFitError(
            f"is for {len(operands)} operands and {len(results)} results (got {len(given)} and {len(returned)})"
        )
    laid = [
        (i, list(_lay(pattern, shape, f"operand {i}")))
        for i, (pattern, shape) in enumerate(zip(operands, given, strict=False))
        if shape is not None and pattern is not None
    ]
    results_laid = [
        None if pattern is None else list(_lay(pattern, shape, f"result {i}"))
        for i, (pattern, shape) in enumerate(zip(results, returned, strict=True))
    ]
    tensors = [*(dims for _, dims in laid), *(dims for dims in results_laid if dims is not None)]
    return _Fit(laid, results_laid, _sizes(dict(sizes), tensors))


def _lay(pattern: Shape, sizes: _Shape, what: str) -> Iterator[tuple[Dim, int]]:
    """Yield one (dim, size) for each dimension of a tensor."""
    room = len(sizes) - sum(not dim.many for dim in pattern)
    if room < 0 or (room and not any(dim.many for dim in pattern)):
        raise _DoesNotFitError(f"does not fit {what} of shape {list(sizes)}")
    at = 0
    for dim in pattern:
        if not dim.many:
            yield dim, sizes[at]
            at += 1
            continue
        (name,) = dim.names
        for k in range(room):
            part = f"{name}.{k}"
            yield Dim((part,), whole=frozenset({part}) if dim.whole else frozenset()), sizes[at]
            at += 1
        room = 0


def _sizes(sizes: dict[str, int], tensors: list[Laid]) -> dict[str, int]:
    """Work out the size of every name; a product gives the size of its one unknown part."""
    places = [place for dims in tensors for place in dims]
    for dim, size in sorted(places, key=lambda place: len(place[0].names)):
        unknown = [name for name in dim.names if name not in sizes]
        known = math.prod(sizes[name] for name in dim.names if name in sizes)
        if len(unknown) == 1 and known and size % known == 0:
            sizes[unknown[0]] = size // known
        whole_star = any(name.startswith("*") for name in dim.names)
        if not whole_star and (len(unknown) > 1 or math.prod(sizes.get(n, 0) for n in dim.names) != size):
            raise _DoesNotFitError(f"has {' * '.join(dim.names) or '1'} where the size is {size} (sizes {sizes})")
    return sizes


@dataclass(eq=False)
class _Binding:
    """A pattern laid over a call."""

    call: Call
    text: str
    sizes: Mapping[str, int]
    axes: dict[str, Axis] = field(default_factory=dict)
    states: list[dict[str, Zero]] = field(default_factory=list)
    mixed: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    results: Sequence[Laid | None] = ()

    def lay(self) -> Sequence[tuple[int, Laid]]:
        """Return the dimensions of the operands, each with its size; work out those of the results and all sizes."""
        given = tuple(None if label is None else label.shape for label in self.call.operands)
        try:
            fit = _fit(self.text, given, tuple(self.call.shapes), tuple(self.sizes.items()))
        except _DoesNotFitError as error:
            self._complain(str(error))
        self.results, self.sizes = fit.results, fit.sizes
        return fit.operands

    def bind(self) -> None:
        """Lay the pattern over the call and couple what has the same name."""
        operands, _ = parse(self.text)
        given, laid = self.call.operands, self.lay()
        self.states = [{} for _ in given]
        for i, label in enumerate(given):
            if label is not None and (i >= len(operands) or operands[i] is None):
                for axis in label.axes:
                    self.call.freeze(axis, "used as a whole")
        for i, dims in laid:
            for d, (dim, _) in enumerate(dims):
                self._bind_dim(i, d, dim)

    def _bind_dim(self, operand: int, d: int, dim: Dim) -> None:
        label = self.call.operand(operand)
        axis, rest = label.axes[d], dim.names
        for name in dim.names:
            rest = rest[1:]
            part = axis
            if rest:
                why = self.call.why("has to keep the layout that this operation needs")
                part, axis = self.call.units.split(axis, self.sizes[name], why)
            if name in dim.whole:
                self.call.freeze(part, "needs every position along this dimension")
            elif name in self.axes:
                self.call.couple(self.axes[name], part)
            self.axes.setdefault(name, part)
            self.states[operand][name] = label.zeros[d]
            if name in dim.mixed:
                self.mixed.setdefault(name, []).append((operand, d))

    def result(self, index: int, zeros: str, mixed_zeros: str | None) -> Label:
        """Return the label of a result."""
        dims, shape = self.results[index], self.call.shapes[index]
        if dims is None:
            return Label.whole(shape, self.call.why("carries no removable positions"))
        parts = zeros.split(",")
        zeros = parts[min(index, len(parts) - 1)].strip()
        axes, states = [], []
        for dim, size in dims:
            axis, state = Axis.whole(1), Zero.ZERO if dim.names else Zero.FINITE
            for k, name in enumerate(dim.names):
                part = self._part(name, size if len(dim.names) == 1 else self.sizes[name], name in dim.whole)
                axis = part if k == 0 else axis.merge(part)
                expression = mixed_zeros if mixed_zeros is not None and name in self.mixed else zeros
                if name not in dim.whole or len(dim.names) == 1:  # what stays whole removes nothing
                    state = min(state, self._zero(name, expression))
            axes.append(axis)
            states.append(state)
        return Label(tuple(axes), tuple(states))

    def _part(self, name: str, size: int, whole: bool) -> Axis:
        if whole:
            return self.call.whole(size, "needs every position along this dimension")
        if name not in self.axes:
            self.axes[name] = self.call.units.fresh(size)
        return self.axes[name]

    def _zero(self, name: str, expression: str) -> Zero:
        terms = []
        for term in expression.split("+"):
            factors = [self._state(factor, name) for factor in term.split("*")]
            if present := [f for f in factors if f is not None]:
                terms.append(product(present))
        return min(terms, default=Zero.FINITE)

    def _state(self, factor: str, name: str) -> Zero | None:
        if factor in _STATES:
            return _STATES[factor]
        operand = int(factor)
        if operand >= len(self.call.operands) or self.call.operands[operand] is None:
            return None
        return self.states[operand].get(name, Zero.FINITE)

    def _complain(self, what: str) -> NoReturn:
        shapes = ", ".join("none" if label is None else str(list(label.shape)) for label in self.call.operands)
        results = ", ".join(str(list(shape)) for shape in self.call.shapes)
        raise RuleError(
            f"the rule {self.text!r} of {self.call.op} at node {self.call.at.node!r} {what}; "
            f"operands {shapes or 'none'}, results {results or 'none'}. Register a rule that fits the operator's shapes."
        )
