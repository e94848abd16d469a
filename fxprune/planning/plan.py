"""A plan: the positions kept of every axis, as plain values that can be stored and applied to the same graph again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tabulate import tabulate

from fxprune.algebra.axes import Axis, Flags, Index
from fxprune.analysis.costs import Costs
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group
from fxprune.analysis.remaining import Remaining, removed_units
from fxprune.errors import PlanError
from fxprune.planning.ranking import Ranking, Scores

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

    @staticmethod
    def of(deps: Dependencies, costs: Costs, ranking: Ranking, kept: Index) -> Plan:
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
        if len(kept) and not 0 <= kept.min() <= kept.max() < size:
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
            stored = json.loads(text)
        except (TypeError, ValueError) as error:
            raise PlanError(f"the text is not a plan: {error}") from error
        if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
            raise PlanError(f"the text is not a plan of the format {_FORMAT!r}")
        try:
            return _read(stored)
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise PlanError(f"the plan is damaged: {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        rows = [[c.group, c.member, c.size, len(c.kept), c.parameters] for c in self.choices]
        table = tabulate(rows, headers=["group", "first member", "units", "kept", "params removed"], intfmt=",")
        params = f"params {self.params_before:,} -> {self.params_after:,} ({_share(self.params_after, self.params_before)})"
        flops = f"FLOPs {self.flops_before:,.0f} -> {self.flops_after:,.0f} ({_share(self.flops_after, self.flops_before)})"
        return f"{table}\n{params}, {flops}"


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


def _indices(values: Any) -> Index:
    """Return a list of indices as an array; raise ValueError if they are not ascending integers."""
    if not isinstance(values, list) or not all(type(v) is int for v in values):
        raise ValueError("indices must be a list of integers")
    index = np.array(values, np.intp)
    if (index < 0).any() or (np.diff(index) <= 0).any():
        raise ValueError("indices must ascend from 0")
    return index


def _read(stored: dict[str, Any]) -> Plan:
    indices = [_indices(values) for values in stored["indices"]]
    choices = [
        Choice(int(group), str(member), int(size), _indices(kept), np.array(scores, np.float64), int(parameters))
        for group, member, size, kept, scores, parameters in stored["choices"]
    ]
    params, flops = stored["params"], stored["flops"]
    return Plan(
        fingerprint=str(stored["fingerprint"]),
        kept={(str(name), int(dim)): indices[place] for name, dim, place in stored["kept"]},
        choices=tuple(choices),
        shapes={str(name): tuple(int(n) for n in shape) for name, shape in stored["shapes"].items()},
        aliases={str(name): str(first) for name, first in stored["aliases"].items()},
        params_before=int(params[0]),
        params_after=int(params[1]),
        flops_before=float(flops[0]),
        flops_after=float(flops[1]),
    )
