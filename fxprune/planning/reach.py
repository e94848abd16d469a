"""How many of the parameters an amount reaches, and what keeps most of the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from typing import Any

from fxprune.algebra.axes import Reason
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.sources import Tracked
from fxprune.planning.names import Names, selectors
from fxprune.planning.plan import Plan

_LEAST = 0.5  # of the parameters that an amount should reach
_CAUSES = 3  # in a text

_CROSSED = Reason("its groups cross others, which are pruned in their place: see choose")
_ALONE = Reason("could go, but no two positions alike, so that there is no group to choose from")


def shortfall(deps: Dependencies, made: Plan, ignore: Any, overrides: Mapping[str, float] | None) -> str:
    """Return what keeps parameters whole, if less than half of them are in groups that a plan prunes; else an empty text.

    Elements do not count that nobody could take out: those between the inputs and the outputs of the model, those that nothing
    reads. Dimensions that the operator needs whole that reads a parameter, as the window of a convolution, change nothing in
    that. Nor do parameters count that are ignored or have an amount of 0 of their own.

    Args:
        deps: the analysis.
        made: the plan.
        ignore: as for :func:`fxprune.planning.planner.plan`.
        overrides: likewise.
    """
    names = Names(deps)
    chosen = [(each, "ignore") for each in selectors(ignore)]
    chosen += [(pattern, "overrides") for pattern, amount in (overrides or {}).items() if amount == 0]
    spared = {name for each in chosen for name, _ in names.places(*each)}
    covered = {choice.group for choice in made.choices}.union(*(names.groups(*each) for each in chosen))
    outside = deps.outside([group for group in deps.groups if group.index in covered])
    asked = {t.name: t for t in deps.tracked if t.is_parameter and t.name not in spared}
    reached = sum(math.prod(t.label.shape) - outside[name] for name, t in asked.items())
    if reached >= _LEAST * (reached + sum(outside[name] for name in asked)):
        return ""
    lacking = 0
    found: dict[tuple[str, str], tuple[Reason, dict[str, str]]] = {}  # by text and operator; an axis of each parameter
    crossed = {(m.parameter, m.dim) for g in deps.groups if g.index not in covered for m in g.on_parameters}
    for name, tracked in asked.items():
        causes = dict(_causes(deps, tracked, crossed)) if outside[name] else {}
        lacking += outside[name] if causes else 0
        for dim, cause in causes.items():
            found.setdefault((cause.text, cause.op), (cause, {}))[1].setdefault(name, f"{name}[{dim}]")
    if reached >= _LEAST * (reached + lacking):
        return ""
    kept = [(sum(map(outside.__getitem__, places)), cause, places) for cause, places in found.values()]
    kept.sort(key=lambda each: -each[0])
    lines = [f"reaches {reached:,} of {reached + lacking:,} parameters that could lose units; of the others"]
    for elements, cause, places in kept[:_CAUSES]:
        first = places[max(places, key=outside.__getitem__)]
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        lines.append(f"{elements:,}, on {first}{more}, stay whole: {cause}")
    return "\n  ".join(lines)


def _causes(deps: Dependencies, tracked: Tracked, crossed: Set[tuple[str, int]]) -> Iterator[tuple[int, Reason]]:
    """Yield the dimensions of a parameter that only fxprune keeps whole, or a part of them, each with the first reason."""
    readers = {(s.node, s.op) for s in deps.steps for label in s.operands if label.producer == tracked.label.producer}
    readers = {(node, op) for node, op in readers if f"{op} at node {node!r}" not in deps.without_rule}
    for dim, axis in enumerate(tracked.label.axes):
        roots = [reason.because or reason for reason in deps.units.reasons_of(axis)]
        own = (r for r in roots if not r.by_model and (r.node, r.op) not in readers)
        if cause := next(own, _CROSSED if (tracked.name, dim) in crossed else None):
            yield dim, cause
        elif not roots and deps.units.content(axis).is_live:
            yield dim, _ALONE
