"""The class of criteria, and how scores of a group's members become scores of its units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group, Member
from fxprune.errors import PlanError
from fxprune.importance.weights import Sums

Reduction = Literal["mean", "sum", "max", "first"]
Normalizer = Literal["mean", "max", "sum", "none"]
Scorer: TypeAlias = Callable[[Group], Tensor]

Importance: TypeAlias = Callable[[Dependencies, Group], Any]
"""A callable that gives each unit of a group a finite number, as a tensor or array of shape (``group.size``,): units of larger
numbers stay longer."""


class Criterion(ABC):
    """A criterion that prepares a graph once for all of its groups.

    It is an importance itself: ``criterion(deps, group)`` gives the scores of a single group.
    """

    @abstractmethod
    def prepare(self, deps: Dependencies) -> Scorer:
        """Return the scorer of the groups of ``deps``: from a group to a tensor of shape (``group.size``,)."""

    def __call__(self, deps: Dependencies, group: Group) -> Tensor:
        """Return the scores of a group, shape (``group.size``,)."""
        return self.prepare(deps)(group)


def over_members(score: Callable[[Member], Tensor], reduction: Reduction, normalizer: Normalizer) -> Scorer:
    """Return a scorer that combines the scores, shape (units,), of each parameter axis of a group."""

    def scorer(group: Group) -> Tensor:
        scores = [score(member) for member in _members(group, reduction)]
        return normalized(reduced(torch.stack([s.to(scores[0]) for s in scores]), reduction), normalizer)

    return scorer


def over_sums(sums: Sums, finish: Callable[[Tensor], Tensor], reduction: Reduction, normalizer: Normalizer) -> Scorer:
    """Return a scorer that combines ``finish(sums)``, element by element, of each parameter axis of a group."""

    def scorer(group: Group) -> Tensor:
        return normalized(reduced(sums.of(_members(group, reduction), finish), reduction), normalizer)

    return scorer


def _members(group: Group, reduction: Reduction) -> list[Member]:
    members = [m for m in group.members if not m.is_buffer]
    return members[:1] if reduction == "first" else members


def reduced(scores: Tensor, reduction: Reduction) -> Tensor:
    """Return the scores of units, shape (units,), from the scores of several members, shape (members, units)."""
    if len(scores) == 1 or reduction == "first":
        return scores[0]
    if reduction == "max":
        return scores.amax(0)
    return scores.sum(0) if reduction == "sum" else scores.mean(0)


def normalized(scores: Tensor, normalizer: Normalizer) -> Tensor:
    """Return the scores of a group relative to their own scale, which makes groups comparable."""
    if normalizer == "none":
        return scores
    scale = scores.mean() if normalizer == "mean" else scores.amax() if normalizer == "max" else scores.sum()
    return scores / (scale + (scale == 0))


def check_options(reduction: str, normalizer: str) -> None:
    """Raise PlanError unless both options have a known value."""
    for name, value, options in (("reduction", reduction, Reduction), ("normalizer", normalizer, Normalizer)):
        if value not in get_args(options):
            raise PlanError(f"{name} must be one of {', '.join(map(repr, get_args(options)))}, not {value!r}")
