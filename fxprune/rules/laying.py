"""Patterns laid over the shapes of a call. Calls of the same shapes share one layout."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fxprune.algebra.axes import Axis
from fxprune.rules.call import Call
from fxprune.rules.labels import Label, Zero, product
from fxprune.rules.parsing import STATES, Dim, Shape, parse

_Shape = tuple[int, ...]
_Dims = list[tuple[Dim, int]]
_WHOLE = "needs every position along this dimension"
_ZERO_IS_NEUTRAL = frozenset({"sum", "norm"})


class DoesNotFitError(Exception):
    """The pattern is for other shapes; the message says how."""


class MixingPlace(NamedTuple):
    """An operand dimension along which a call combines positions; see :class:`fxprune.rules.call.Mixing`."""

    kind: str
    operand: int
    dim: int
    name: str
    zero: Zero
    neutral: bool


class Zeros(NamedTuple):
    """The states of the results of a call, by result and dimension, and its mixing points."""

    results: list[tuple[Zero, ...]]
    mixings: list[MixingPlace]


class Laid:
    """A pattern laid over shapes.

    ``"...b [i], o [i], o -> ...b o"`` over (2, 7, 16), (64, 16), (64) has the sizes ``b.0`` 2, ``b.1`` 7, ``i`` 16, ``o`` 64.

    Attributes:
        operands: by number, the dimensions with their sizes of each operand that is there and not ``_``.
        results: the same of each result, None for ``_``.
        sizes: the sizes of all names.
        unread: the operands that are ``_``.
        mixed: by name, operand and dimension of every place of a mixing point.
    """

    def __init__(
        self, operands: dict[int, _Dims], results: Sequence[_Dims | None], sizes: Mapping[str, int], unread: Sequence[int]
    ) -> None:
        self.operands, self.results, self.sizes, self.unread = operands, results, sizes, unread
        self.mixed: dict[str, list[tuple[int, int]]] = {}
        self._places: dict[tuple[int, str], int] = {}  # which dimension of an operand has a name
        self._zeros: dict[Any, Zeros] = {}
        for i, dims in operands.items():
            for d, (dim, _) in enumerate(dims):
                for name in dim.names:
                    self._places[i, name] = d
                    if name in dim.mixed:
                        self.mixed.setdefault(name, []).append((i, d))

    def bind(self, call: Call) -> dict[str, Axis]:
        """Couple the axes that have the same name, and keep whole axes; return the axes by name."""
        axes: dict[str, Axis] = {}
        for i in self.unread:
            for axis in call.operand(i).axes:
                call.keep_whole(axis, "used as a whole")
        for i, dims in self.operands.items():
            for axis, (dim, _) in zip(call.operand(i).axes, dims, strict=True):
                for name in dim.names[:-1]:
                    why = call.why("has to keep the layout that this operation needs")
                    part, axis = call.units.split(axis, self.sizes[name], why)
                    self._bind(call, part, name, dim, axes)
                if dim.names:
                    self._bind(call, axis, dim.names[-1], dim, axes)
        return axes

    def _bind(self, call: Call, part: Axis, name: str, dim: Dim, axes: dict[str, Axis]) -> None:
        if name in dim.whole:
            call.keep_whole(part, _WHOLE)
        elif name in axes:
            call.couple(axes[name], part)
        axes.setdefault(name, part)

    def result(self, index: int, call: Call, axes: dict[str, Axis], zeros: tuple[Zero, ...]) -> Label:
        """Return the label of a result; a name that no operand has is a new axis, which is added to ``axes``."""
        dims = self.results[index]
        if dims is None:
            return Label.whole(call.shapes[index], call.why("carries no removable positions"))
        made = []
        for dim, width in dims:
            axis: Axis | None = None
            for name in dim.names:
                size = width if len(dim.names) == 1 else self.sizes[name]
                if name in dim.whole:
                    part = call.whole(size, _WHOLE)
                elif name in axes:
                    part = axes[name]
                else:
                    part = axes[name] = call.units.fresh(size)
                axis = part if axis is None else axis.merge(part)
            made.append(Axis.whole(1) if axis is None else axis)
        return Label(tuple(made), zeros)

    def zeros(self, rule: Any, text: str, call: Call) -> Zeros:
        """Return how zeros travel through a call, by the text and by ``mixed_zeros`` and ``mixes`` of the rule."""
        given = [None if label is None else label.zeros for label in call.operands]
        key = (rule, text, *given)
        if (known := self._zeros.get(key)) is None:
            known = self._zeros[key] = Zeros(
                [self._result_zeros(i, text, rule.mixed_zeros, given) for i in range(len(self.results))],
                [place for name, places in self.mixed.items() for place in self._mixings(name, places, rule.mixes, given)],
            )
        return known

    def _mixings(
        self, name: str, places: list[tuple[int, int]], mixes: str | dict[str, str], given: Sequence[tuple[Zero, ...] | None]
    ) -> Iterator[MixingPlace]:
        kind = mixes if isinstance(mixes, str) else mixes[name]
        states = [self._state(operand, name, given) for operand, _ in places]
        # A product is zero if a single operand is; with any other kind each operand has to be neutral itself.
        together = kind == "contract" and product(states) is Zero.ZERO
        for (operand, dim), state in zip(places, states, strict=True):
            neutral = together or (kind in _ZERO_IS_NEUTRAL and state is Zero.ZERO)
            yield MixingPlace(kind, operand, dim, name, state, neutral)

    def _result_zeros(
        self, index: int, text: str, mixed_text: str | None, given: Sequence[tuple[Zero, ...] | None]
    ) -> tuple[Zero, ...]:
        dims, by_result = self.results[index], text.split(",")
        text = by_result[min(index, len(by_result) - 1)].strip()
        found = []
        for dim, _ in dims or ():
            state = Zero.ZERO if dim.names else Zero.FINITE
            for name in dim.names:
                if name not in dim.whole or len(dim.names) == 1:  # of ``(!g h)`` only h has removed positions
                    expression = mixed_text if mixed_text is not None and name in self.mixed else text
                    state = min(state, self._zero(name, expression, given))
            found.append(state)
        return tuple(found)

    def _zero(self, name: str, expression: str, given: Sequence[tuple[Zero, ...] | None]) -> Zero:
        terms = []
        for term in expression.split("+"):
            factors = [
                STATES[factor] if factor in STATES else self._state(int(factor), name, given)
                for factor in term.split("*")
                if factor in STATES or (int(factor) < len(given) and given[int(factor)] is not None)
            ]
            if factors:
                terms.append(product(factors))
        return min(terms, default=Zero.FINITE)

    def _state(self, operand: int, name: str, given: Sequence[tuple[Zero, ...] | None]) -> Zero:
        states, d = given[operand], self._places.get((operand, name))
        return Zero.FINITE if states is None or d is None else states[d]


@functools.lru_cache(maxsize=1 << 14)  # layers repeat
def lay(text: str, given: tuple[_Shape | None, ...], returned: tuple[_Shape, ...], sizes: tuple[tuple[str, int], ...]) -> Laid:
    """Lay a pattern over the shapes of operands, None for those left out, and of results.

    Raises:
        DoesNotFitError: the pattern is for other shapes.
    """
    operands, results = parse(text)
    if len(operands) < len(given) or len(results) != len(returned):
        raise DoesNotFitError(
            f"is for {len(operands)} operands and {len(results)} results (got {len(given)} and {len(returned)})"
        )
    operands_laid = {
        i: list(_dims(pattern, shape, f"operand {i}"))
        for i, (pattern, shape) in enumerate(zip(operands, given, strict=False))
        if shape is not None and pattern is not None
    }
    results_laid = [
        None if pattern is None else list(_dims(pattern, shape, f"result {i}"))
        for i, (pattern, shape) in enumerate(zip(results, returned, strict=True))
    ]
    tensors = [*operands_laid.values(), *(dims for dims in results_laid if dims is not None)]
    unread = [i for i, shape in enumerate(given) if shape is not None and operands[i] is None]
    return Laid(operands_laid, results_laid, _sizes(dict(sizes), tensors), unread)


def _dims(pattern: Shape, sizes: _Shape, what: str) -> Iterator[tuple[Dim, int]]:
    """Yield each dimension of a tensor with its size; ``...b`` becomes ``b.0``, ``b.1`` and so on."""
    room = len(sizes) - sum(not dim.many for dim in pattern)
    if room < 0 or (room and not any(dim.many for dim in pattern)):
        raise DoesNotFitError(f"does not fit {what} of shape {list(sizes)}")
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


def _sizes(sizes: dict[str, int], tensors: list[_Dims]) -> dict[str, int]:
    """Return the size of every name; a product with a single unknown part gives the size of this part."""
    places = [place for dims in tensors for place in dims]
    for dim, size in sorted(places, key=lambda place: len(place[0].names)):
        unknown = [name for name in dim.names if name not in sizes]
        known = math.prod(sizes[name] for name in dim.names if name in sizes)
        if len(unknown) == 1 and known and size % known == 0:
            sizes[unknown[0]] = size // known
        whole_star = any(name.startswith("*") for name in dim.names)
        if not whole_star and (len(unknown) > 1 or math.prod(sizes.get(n, 0) for n in dim.names) != size):
            raise DoesNotFitError(f"has {' * '.join(dim.names) or '1'} where the size is {size} (sizes {sizes})")
    return sizes
