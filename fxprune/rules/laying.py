"""Patterns laid over the shapes of a call. All calls of the same shapes share a layout."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fxprune.algebra.axes import Axis
from fxprune.rules.call import Call, Mixing
from fxprune.rules.labels import Label, Zero, product
from fxprune.rules.parsing import STATES, Dim, Shape, parse

_Shape = tuple[int, ...]
_States = tuple[Zero, ...] | None
_Dims = list[tuple[Dim, int]]
_WHOLE = "needs every position along this dimension"
_ZERO_IS_NEUTRAL = frozenset({"sum", "norm"})


class DoesNotFitError(Exception):
    """The pattern is for other shapes; the message says how."""


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
        self._zeros: dict[Any, tuple[Zero, ...]] = {}  # of the results
        for i, dims in operands.items():
            for d, (dim, _) in enumerate(dims):
                for name in dim.names:
                    self._places[i, name] = d
                    if name in dim.mixed:
                        self.mixed.setdefault(name, []).append((i, d))

    def bind(self, call: Call) -> None:
        """Couple the axes that have the same name, keep whole axes, and set ``call.axes`` to the axes by name."""
        call.axes = {}
        for i in self.unread:
            for axis in call.operand(i).axes:
                call.keep_whole(axis, "used as a whole")
        for i, dims in self.operands.items():
            for axis, (dim, _) in zip(call.operand(i).axes, dims, strict=True):
                for name in dim.names[:-1]:
                    why = call.why("has to keep the layout that this operation needs")
                    part, axis = call.units.split(axis, self.sizes[name], why)
                    self._bind(call, part, name, dim)
                if dim.names:
                    self._bind(call, axis, dim.names[-1], dim)

    def _bind(self, call: Call, part: Axis, name: str, dim: Dim) -> None:
        if name in dim.whole:
            call.keep_whole(part, _WHOLE)
        elif name in call.axes:
            call.couple(call.axes[name], part)
        call.axes.setdefault(name, part)

    def mixings(self, call: Call, mixes: str | Mapping[str, str]) -> Iterator[Mixing]:
        """Yield the mixing points of a call whose axes are bound; ``mixes`` says how they combine positions."""
        for name, places in self.mixed.items():
            kind = mixes if isinstance(mixes, str) else mixes[name]
            states = [self._state(_states(call), operand, name) for operand, _ in places]
            # A product is zero if a single operand is; with any other kind each operand has to be neutral itself.
            together = kind == "contract" and product(states) is Zero.ZERO
            for (operand, dim), state in zip(places, states, strict=True):
                neutral = together or (kind in _ZERO_IS_NEUTRAL and state is Zero.ZERO)
                yield Mixing(kind, operand, dim, call.axes[name], state, neutral, name)

    def result(self, index: int, call: Call, zeros: str, mixed_zeros: str | None) -> Label:
        """Return the label of a result; a name that no operand has is a new axis, which is added to ``call.axes``."""
        dims = self.results[index]
        if dims is None:
            return Label.whole(call.shapes[index], call.why("carries no removable positions"))
        axes = []
        for dim, width in dims:
            axis: Axis | None = None
            for name in dim.names:
                size = width if len(dim.names) == 1 else self.sizes[name]
                if name in dim.whole:
                    part = call.whole(size, _WHOLE)
                elif name in call.axes:
                    part = call.axes[name]
                else:
                    part = call.axes[name] = call.units.fresh(size)
                axis = part if axis is None else axis.merge(part)
            axes.append(Axis.whole(1) if axis is None else axis)
        given = tuple(_states(call))
        key = index, zeros, mixed_zeros, given
        if key not in self._zeros:
            texts = zeros.split(",")
            text = texts[min(index, len(texts) - 1)].strip()
            self._zeros[key] = tuple(self._result_zeros(dims, text, mixed_zeros, given))
        return Label(tuple(axes), self._zeros[key])

    def _result_zeros(self, dims: _Dims, text: str, mixed_zeros: str | None, given: Sequence[_States]) -> Iterator[Zero]:
        """Yield the state of each dimension of a result at its removed positions, by the states of the operands."""
        for dim, _ in dims:
            state = Zero.ZERO if dim.names else Zero.FINITE
            for name in dim.names:
                if name not in dim.whole or len(dim.names) == 1:  # of ``(!g h)`` only h has removed positions
                    own = text if mixed_zeros is None or name not in self.mixed else mixed_zeros
                    state = min(state, self._zero(given, name, own))
            yield state

    def _zero(self, given: Sequence[_States], name: str, text: str) -> Zero:
        """Return the state that a zeros text gives at removed positions of an axis."""
        terms = []
        for term in text.split("+"):
            factors = [
                STATES[factor] if factor in STATES else self._state(given, int(factor), name)
                for factor in term.split("*")
                if factor in STATES or (int(factor) < len(given) and given[int(factor)] is not None)
            ]
            if factors:
                terms.append(product(factors))
        return min(terms, default=Zero.FINITE)

    def _state(self, given: Sequence[_States], operand: int, name: str) -> Zero:
        zeros, d = given[operand], self._places.get((operand, name))
        return Zero.FINITE if zeros is None or d is None else zeros[d]


def _states(call: Call) -> list[_States]:
    return [None if label is None else label.zeros for label in call.operands]


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
