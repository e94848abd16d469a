"""The class of criteria, and how scores of a group's members become scores of its units."""

from __future__ import annotations

import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Sequence
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


def short(value: Any) -> str:
    """Return a value in a few words, for errors."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}, {value.dtype} on {value.device}"
    return textwrap.shorten(repr(value), 100)


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


class GroupCriterion(Criterion):
    """A criterion that reduces the scores of units on several axes of their group, and makes groups comparable."""

    reduction: Reduction = "mean"
    normalizer: Normalizer = "none"

    def __post_init__(self) -> None:
        options = ("reduction", self.reduction, Reduction), ("normalizer", self.normalizer, Normalizer)
        for name, value, known in options:
            if value not in get_args(known):
                raise PlanError(f"{name} must be one of {', '.join(map(repr, get_args(known)))}, not {value!r}")

    def over_members(self, score: Callable[[Member], Tensor], among: Container[str] | None = None) -> Scorer:
        """Return a scorer from the scores of units, shape (units,), on each parameter axis of their group.

        Args:
            score: gives the scores on one axis.
            among: the names of the parameters that have scores; all unless given.
        """
        most = 1 if self.reduction == "first" else None

        def scorer(group: Group) -> Tensor:
            members = [m for m in group.on_parameters if among is None or m.parameter in among]
            if not members:
                raise PlanError(f"{type(self).__name__} has no scores for {group}, as no parameter there has a gradient")
            return self.combined([score(member) for member in members[:most]])

        return scorer

    def combined(self, scores: Sequence[Tensor]) -> Tensor:
        """Return the scores of units from their scores on several axes, all of shape (units,)."""
        found = scores[0]
        if len(scores) > 1 and self.reduction != "first":
            found = _COMBINE[self.reduction](torch.stack([each.to(found) for each in scores]), 0)
        if self.normalizer == "none":
            return found
        scale = _COMBINE[self.normalizer](found)
        return found / (scale + (scale == 0))
