"""A plan: the positions kept of every axis, as plain values that can be stored and applied to the same graph again."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from tabulate import tabulate

from fxprune.algebra.axes import Axis, Flags, Index
from fxprune.analysis.costs import Costs
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group
from fxprune.analysis.remaining import Remaining, removed_units
from fxprune.errors import PlanError
from fxprune.planning.ranking import Ranking, Scores

T = TypeVar("T")
_FORMAT = "fxprune plan 1"


@dataclass(frozen=True, eq=False)
class Choice:
    """The units that a plan keeps of one group.

    Attributes:
        group: the index of the group in ``deps.groups``.
        member: the first axis of the group, as ``name[dim]``.
        size: the number of units.
        kept: the units that stay, as numbers within the group, ascending.
        scores: the importance of every unit, shape (size,).
        parameters: elements of parameters that go if no other group is pruned.
    """

    group: int
    member: str
    size: int
    kept: Index
    scores: Scores
    parameters: int


@dataclass(frozen=True, eq=False)
class Plan:
    """The choice of :func:`fxprune.planning.planner.plan`; ``str()`` gives a table.

    Attributes:
        fingerprint: the fingerprint of the analysis that the plan was made for.
        kept: by name and dimension the positions that stay, ascending, of every parameter or buffer axis with a chosen group.
        choices: the chosen groups.
        shapes: the shapes of all parameters and buffers before.
        aliases: by every further name of a parameter or buffer its name in ``kept`` and ``shapes``.
        params_before: elements of all parameters before.
        params_after: elements of all parameters after.
        flops_before: floating-point operations at the example's sizes before.
        flops_after: floating-point operations at the example's sizes after.
        notes: what names in ``ignore`` and ``overrides`` hold for besides the parameters that they name, as their groups do.
    """

    fingerprint: str
    kept: Mapping[tuple[str, int], Index]
    choices: tuple[Choice, ...]
    shapes: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, str]
    params_before: int
    params_after: int
    flops_before: float
    flops_after: float
    notes: tuple[str, ...] = field(default=(), repr=False)

    @staticmethod
    def of(deps: Dependencies, costs: Costs, ranking: Ranking, kept: Index, notes: tuple[str, ...] = ()) -> Plan:
        """Return the plan to keep ``kept[i]`` units of the i-th group of a ranking."""
        removed = ranking.removed(kept)
        left, axes = Remaining(deps.units, removed), {t.name: t.label.axes for t in deps.tracked}
        nothing, shapes = np.zeros_like(removed), {t.name: t.label.shape for t in deps.tracked}
        return Plan(
            fingerprint=deps.fingerprint,
            kept={(m.parameter, m.dim): left.index(axes[m.parameter][m.dim]) for g in ranking.groups for m in g.members},
            choices=tuple(_choice(g, s, removed[g.units], shapes) for g, s in zip(ranking.groups, ranking.scores, strict=True)),
            shapes=shapes,
            aliases={name: t.name for t in deps.tracked for name in t.names[1:]},
            params_before=costs.parameters(nothing),
            params_after=costs.parameters(removed),
            flops_before=costs.flops(nothing),
            flops_after=costs.flops(removed),
            notes=notes,
        )

    def provenance(self, name: str, dim: int) -> Index:
        """Return the original positions that are left along a dimension; all positions if the plan removes none.

        Args:
            name: the dotted name of a parameter or buffer.
            dim: one of its dimensions.

        Raises:
            PlanError: the graph that the plan was made for has no such parameter, buffer or dimension.

        Example:
            >>> narrow.weight.shape[0] == len(plan.provenance("conv1.weight", 0))
            True
        """
        first = self.aliases.get(name, name)
        shape = self.shapes.get(first)
        if shape is None:
            raise PlanError(f"the plan knows no parameter or buffer {name!r}")
        if not -len(shape) <= dim < len(shape):
            raise PlanError(f"{name!r} of shape {list(shape)} has no dimension {dim}")
        dim %= len(shape)
        found = self.kept.get((first, dim))
        return np.arange(shape[dim]) if found is None else found

    def removed(self, deps: Dependencies) -> Flags:
        """Return which units the plan removes, for an analysis of the graph that it was made for, or of an equal graph.

        Args:
            deps: the analysis.

        Returns:
            A flag for every unit, shape (``deps.units.count``,).

        Raises:
            PlanError: the graph is another, or the positions missing in ``kept`` are not those of whole units.
        """
        if deps.fingerprint != self.fingerprint:
            raise PlanError(
                "the plan was made for another graph, or the graph changed since, as it does when it is shrunk: make a new one "
                "from fxprune.analyze(gm)"
            )
        axes = {(t.name, dim): axis for t in deps.tracked if t.is_parameter for dim, axis in enumerate(t.label.axes)}
        known = {(t.name, dim) for t in deps.tracked for dim in range(len(t.label))}
        if unknown := self.kept.keys() - known:
            name, dim = min(unknown)
            raise PlanError(f"the plan keeps indices of {name}[{dim}], which the graph does not have: make a new one")
        arrays: dict[tuple[int, int], Flags] = {}  # axes of a group share an array of indices
        missing: dict[tuple[str, int], Flags] = {}
        for place, axis in axes.items():
            if place in self.kept:
                key = id(self.kept[place]), axis.size
                missing[place] = arrays[key] if key in arrays else arrays.setdefault(key, self._missing(place, axis.size))
        removed = removed_units(deps, missing)
        left = Remaining(deps.units, removed)
        alike: dict[Any, tuple[tuple[str, int], Axis]] = {}
        for place, axis in axes.items():
            alike.setdefault((deps.units.content(axis), id(missing.get(place))), (place, axis))
        for (name, dim), axis in alike.values():
            flags = missing.get((name, dim), False)
            if (wrong := left(axis) == flags).any():
                raise PlanError(
                    f"the plan keeps indices of {name}[{dim}] that are not those left by whole units, at "
                    f"{np.flatnonzero(wrong)[:5].tolist()}: make a new one"
                )
        return removed

    def _missing(self, place: tuple[str, int], size: int) -> Flags:
        """Return for each position of an axis in ``kept`` whether the plan removes it."""
        missing, kept = np.ones(size, bool), self.kept[place]
        if not len(kept):
            raise PlanError(f"the plan keeps nothing of {place[0]}[{place[1]}]: make a new one")
        if not 0 <= kept.min() <= kept.max() < size:
            raise PlanError(f"the plan keeps indices of {place[0]}[{place[1]}] outside of its {size} positions")
        missing[kept] = False
        return missing

    def to_json(self) -> str:
        """Return the plan as text for :meth:`from_json`.

        Example:
            >>> Path("plan.json").write_text(plan.to_json())
        """
        arrays = {id(index): index for index in self.kept.values()}  # axes of a group share arrays: each is written once
        places = {key: place for place, key in enumerate(arrays)}
        choices = [[c.group, c.member, c.size, c.kept.tolist(), c.scores.tolist(), c.parameters] for c in self.choices]
        return json.dumps(
            {
                "format": _FORMAT,
                "fingerprint": self.fingerprint,
                "params": [self.params_before, self.params_after],
                "flops": [self.flops_before, self.flops_after],
                "shapes": {name: list(shape) for name, shape in self.shapes.items()},
                "aliases": dict(self.aliases),
                "indices": [index.tolist() for index in arrays.values()],
                "kept": [[name, dim, places[id(index)]] for (name, dim), index in self.kept.items()],
                "choices": choices,
                **({"notes": self.notes} if self.notes else {}),
            },
            allow_nan=False,
        )

    @staticmethod
    def from_json(text: str) -> Plan:
        """Return the plan that :meth:`to_json` wrote.

        Raises:
            PlanError: the text is no plan, or of another version.
        """
        try:
            stored = json.loads(text, parse_constant=_refuse)
        except (TypeError, ValueError, RecursionError) as error:
            raise PlanError(f"the text is not a plan: {error}") from error
        if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
            raise PlanError(f"the text is not a plan of the format {_FORMAT!r}")
        try:
            return _read(stored)
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise PlanError(f"the plan is damaged: {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        rows = [[c.group, c.member, c.size, len(c.kept), c.parameters] for c in self.choices]
        table = tabulate(rows, headers=["group", "first member", "units", "kept", "params removed"], intfmt=",")
        params = f"params {self.params_before:,} -> {self.params_after:,} ({_share(self.params_after, self.params_before)})"
        flops = f"FLOPs {self.flops_before:,.0f} -> {self.flops_after:,.0f} ({_share(self.flops_after, self.flops_before)})"
        return "\n".join([table, f"{params}, {flops}", *self.notes])


def _share(after: float, before: float) -> str:
    return f"{after / before:.1%}" if before else "none"


def _choice(group: Group, scores: Scores, gone: Flags, shapes: Mapping[str, tuple[int, ...]]) -> Choice:
    """Return the choice of the units of a group that are not ``gone``."""
    left: dict[str, list[int]] = {}
    count = int(np.count_nonzero(gone))
    for member in group.on_parameters:
        # Units with several positions may share some.
        lost = count if member.positions.shape[1] == 1 else len(np.unique(member.positions[gone]))
        left.setdefault(member.parameter, list(shapes[member.parameter]))[member.dim] -= lost
    parameters = sum(math.prod(shapes[name]) - math.prod(kept) for name, kept in left.items())
    first = group.members[0]
    return Choice(group.index, f"{first.parameter}[{first.dim}]", group.size, np.flatnonzero(~gone), scores, parameters)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number of a plan")


def _given(value: Any, kind: type[T], what: str) -> T:
    """Return a stored value; raise ValueError unless it is of a kind and, if it is a number, finite and not negative."""
    wanted = (int, float) if kind is float else (kind,)
    if type(value) not in wanted or (isinstance(value, int | float) and not 0 <= value < math.inf):
        raise ValueError(f"{what} must be of type {kind.__name__}, not {str(value)[:50]!r}")
    return value  # type: ignore[no-any-return]


def _indices(values: Any, size: int, what: str) -> Index:
    """Return a list of indices as an array; raise ValueError if they do not ascend, or are none, or are not below a size."""
    if not isinstance(values, list) or not all(type(v) is int for v in values):
        raise ValueError(f"indices must be a list of integers: {what}")
    if not values:
        raise ValueError(f"nothing is kept of {what}")
    if values[0] < 0 or values[-1] >= size or any(a >= b for a, b in itertools.pairwise(values)):
        raise ValueError(f"indices must ascend from 0 and be less than {size}: {what}")
    return np.array(values, np.intp)


def _read(stored: dict[str, Any]) -> Plan:
    shapes = {
        name: tuple(_given(n, int, f"a size of {name!r}") for n in _given(shape, list, f"the shape of {name!r}"))
        for name, shape in _given(stored["shapes"], dict, "shapes").items()
    }
    lists = _given(stored["indices"], list, "indices")
    kept: dict[tuple[str, int], Index] = {}
    arrays: dict[tuple[int, int], Index] = {}  # axes of a group share arrays
    for name, dim, place in _given(stored["kept"], list, "kept"):
        place, size = _given(place, int, f"the place of {name!r}"), shapes[name][_given(dim, int, f"a dimension of {name!r}")]
        if (place, size) not in arrays:
            arrays[place, size] = _indices(lists[place], size, f"{name}[{dim}]")
        if kept.setdefault((name, dim), arrays[place, size]) is not arrays[place, size]:
            raise ValueError(f"{name}[{dim}] is there twice")
    aliases = {name: _given(first, str, "a name") for name, first in _given(stored["aliases"], dict, "aliases").items()}
    if unknown := set(aliases.values()) - shapes.keys():
        raise ValueError(f"no shape of {min(unknown)!r}")
    params, flops = (tuple(_given(stored[key], list, key)) for key in ("params", "flops"))
    params_before, params_after = (_given(n, int, "a number of parameters") for n in params)
    flops_before, flops_after = (float(_given(n, float, "a number of FLOPs")) for n in flops)
    choices = tuple(_choice_of(choice) for choice in _given(stored["choices"], list, "choices"))
    fingerprint = _given(stored["fingerprint"], str, "the fingerprint")
    notes = tuple(_given(note, str, "a note") for note in _given(stored.get("notes", []), list, "notes"))
    return Plan(fingerprint, kept, choices, shapes, aliases, params_before, params_after, flops_before, flops_after, notes)


def _choice_of(stored: Any) -> Choice:
    group, member, size, kept, scores, parameters = _given(stored, list, "a choice")
    size, scores = _given(size, int, "the size of a group"), _given(scores, list, "scores")
    if len(scores) != size or not all(type(n) in (int, float) and math.isfinite(n) for n in scores):
        raise ValueError(f"the scores of {member!r} must be {size} numbers")
    return Choice(
        _given(group, int, "a group"),
        _given(member, str, "a member"),
        size,
        _indices(kept, size, f"the units of {member!r}"),
        np.array(scores, np.float64),
        _given(parameters, int, "the parameters of a choice"),
    )
