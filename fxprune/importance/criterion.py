"""What a criterion is, and how the scores of a group's members become those of its units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, cast, get_args

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
"""Whatever gives the units of a group finite numbers, a tensor or array of shape (``group.size``,): larger stays longer."""


class Criterion(ABC):
    """A criterion that does once for a graph what all of its groups need.

    It is an importance itself: ``criterion(deps, group)`` gives the scores of one group.
    """

    @abstractmethod
    def prepare(self, deps: Dependencies) -> Scorer:
        """Return what scores the groups of ``deps``: from a group to a tensor of shape (``group.size``,)."""

    def __call__(self, deps: Dependencies, group: Group) -> Tensor:
        """Return the scores of one group, shape (``group.size``,)."""
        return self.prepare(deps)(group)


def over_members(score: Callable[[Member], Tensor], reduction: Reduction, normalizer: Normalizer) -> Scorer:
    """Return a scorer that combines what ``score`` gives for each parameter axis of a group, a number a unit."""

    def scorer(group: Group) -> Tensor:
        return normalized(combined([score(m) for m in _members(group, reduction)], reduction), normalizer)

    return scorer


def over_sums(sums: Sums, finish: Callable[[Tensor], Tensor], reduction: Reduction, normalizer: Normalizer) -> Scorer:
    """Return a scorer that combines what ``finish`` makes, number by number, of the sums on each parameter axis of a group."""

    def scorer(group: Group) -> Tensor:
        return normalized(reduced(sums.of(_members(group, reduction), finish), reduction), normalizer)

    return scorer


def _members(group: Group, reduction: Reduction) -> list[Member]:
    members = [m for m in group.members if not m.is_buffer]
    return members[:1] if reduction == "first" else members


def combined(scores: Sequence[Tensor], reduction: Reduction) -> Tensor:
    """Return one number a unit from those of several members, each of shape (units,)."""
    if len(scores) == 1 or reduction == "first":
        return scores[0]
    return reduced(torch.stack([score.to(scores[0]) for score in scores]), reduction)


def reduced(scores: Tensor, reduction: Reduction) -> Tensor:
    """Return one number a unit from those of several members, of shape (members, units)."""
    if len(scores) == 1 or reduction == "first":
        return scores[0]
    if reduction == "max":
        return scores.amax(0)
    return scores.sum(0) if reduction == "sum" else scores.mean(0)


def normalized(scores: Tensor, normalizer: Normalizer) -> Tensor:
    """Return the scores of a group relative to their own scale, so that those of several groups can be compared."""
    if normalizer == "none":
        return scores
    scale = scores.mean() if normalizer == "mean" else scores.amax() if normalizer == "max" else scores.sum()
    return scores / (scale + (scale == 0))


def checked(reduction: str, normalizer: str) -> tuple[Reduction, Normalizer]:
    """Return two options, or raise PlanError if one of them is none."""
    for name, value, options in (("reduction", reduction, Reduction), ("normalizer", normalizer, Normalizer)):
        if value not in get_args(options):
            raise PlanError(f"{name} must be one of {', '.join(map(repr, get_args(options)))}, not {value!r}")
    return cast(Reduction, reduction), cast(Normalizer, normalizer)
