"""The class of criteria, and how scores of a group's members become scores of its units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group, Member
from fxprune.errors import PlanError

Reduction = Literal["mean", "sum", "max", "first"]
Normalizer = Literal["mean", "max", "sum", "none"]
Scorer: TypeAlias = Callable[[Group], Tensor]

_COMBINE: dict[str, Callable[..., Tensor]] = {"mean": torch.mean, "max": torch.amax, "sum": torch.sum}

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


class MemberCriterion(Criterion):
    """A criterion that scores each parameter axis of a group, reduces these scores, and normalizes the result."""

    reduction: Reduction
    normalizer: Normalizer = "none"

    def __post_init__(self) -> None:
        check_options(self.reduction, self.normalizer)

    def over_members(self, score: Callable[[Member], Tensor]) -> Scorer:
        """Return a scorer from the scores of units, shape (units,), on each parameter axis of their group."""
        most = 1 if self.reduction == "first" else None
        return lambda group: self.combined([score(member) for member in group.on_parameters[:most]])

    def combined(self, scores: Sequence[Tensor]) -> Tensor:
        """Return the scores of units from their scores on several axes, all of shape (units,)."""
        if len(scores) == 1 or self.reduction == "first":
            return normalized(scores[0], self.normalizer)
        stacked = torch.stack([each.to(scores[0]) for each in scores])
        return normalized(_COMBINE[self.reduction](stacked, 0), self.normalizer)


def normalized(scores: Tensor, normalizer: Normalizer) -> Tensor:
    """Return the scores of a group relative to their own scale, which makes groups comparable."""
    if normalizer == "none":
        return scores
    scale = _COMBINE[normalizer](scores)
    return scores / (scale + (scale == 0))


def check_options(reduction: str, normalizer: str) -> None:
    """Raise PlanError unless both options have a known value."""
    for name, value, options in (("reduction", reduction, Reduction), ("normalizer", normalizer, Normalizer)):
        if value not in get_args(options):
            raise PlanError(f"{name} must be one of {', '.join(map(repr, get_args(options)))}, not {value!r}")
