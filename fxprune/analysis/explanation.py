"""The text of ``explain``: which groups live on an axis of a parameter, and why other positions stay."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.algebra.axes import Reason
from fxprune.analysis.groups import Group


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why an axis may shrink, and why it may not.

    Attributes:
        parameter: the dotted name.
        dim: the dimension.
        size: the number of positions.
        groups: the groups on the axis.
        free: how many positions can go.
        reasons: why other positions, or parts of their units, stay.
    """

    parameter: str
    dim: int
    size: int
    groups: tuple[Group, ...]
    free: int
    reasons: tuple[Reason, ...]

    def __str__(self) -> str:
        head = f"{self.parameter}[{self.dim}], {self.size} positions: "
        if not self.groups and self.free:
            return head + f"{self.free} of them could go, but no two alike, so that there is no group to choose from"
        if not self.groups:
            return head + "whole: " + "; ".join(map(str, self.reasons))
        lines = [head + f"{self.free} of them in {len(self.groups)} group{'s' if len(self.groups) > 1 else ''}"]
        lines += [f"  {group}" for group in self.groups]
        lines += [f"  held: {reason}" for reason in self.reasons]
        return "\n".join(lines)
