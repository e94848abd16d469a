"""Random: no information at all, the baseline of every criterion."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxprune.analysis.dependencies import Dependencies
from fxprune.errors import PruningTypeError
from fxprune.importance.criterion import Criterion, Scorer


@dataclass(frozen=True)
class Random(Criterion):
    """Score units by numbers drawn uniformly from [0, 1).

    Args:
        seed: an int gives the same numbers in every plan of the same graph; a CPU generator is drawn from and moves on; None
            draws from torch's own.

    Raises:
        PruningTypeError: the seed is something else.

    Example:
        >>> fxprune.plan(deps, 0.5, importance=Random(seed=0))
    """

    seed: int | torch.Generator | None = None

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | torch.Generator | None):
            raise PruningTypeError(f"seed must be an int, a torch.Generator or None, not {self.seed!r}")

    def prepare(self, deps: Dependencies) -> Scorer:
        """Return a scorer that draws; the same order of groups gives the same numbers."""
        generator = torch.Generator().manual_seed(self.seed) if isinstance(self.seed, int) else self.seed
        return lambda group: torch.rand(group.size, generator=generator)
