"""Floating-point operations of calls, as ``torch.utils.flop_counter`` counts them, and of units."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils import flop_counter

from fxprune.algebra.axes import Index
from fxprune.algebra.units import Units
from fxprune.rules.call import Call
from fxprune.rules.card import Work
from fxprune.rules.registry import op_card
from fxprune.torch_internals.operators import arguments_of


def work_of(call: Call, result: Any) -> list[Work]:
    """Return the parts of the work of a call whose rule was applied; none for an operator that torch does not count."""
    if (work := op_card(call.op).work) is not None:
        return work(call)
    count = flop_counter.flop_registry.get(call.op.overloadpacket)
    if count is None or not call.axes:
        return []
    arguments = [call.arguments[a.name] for a in arguments_of(call.op) if not a.kwarg_only]
    return [Work(int(count(*arguments, out_val=result)), tuple(call.axes.values()))]


class UnitFlops:
    """The operations that go with each unit, counted when first asked for."""

    def __init__(self, units: Units, work: Sequence[Work]) -> None:
        self._units, self._work = units, work

    def of(self, units: Index) -> float:
        """Return the operations that go with one of these units, on average."""
        return float(self._of_each[units].mean())

    @cached_property
    def _of_each(self) -> NDArray[np.float64]:
        total, kept = np.zeros(self._units.count), np.ones(self._units.count)
        for part in self._work:
            contents = [content for axis in part.axes if (content := self._units.content(axis)).is_live]
            for content in contents:
                kept[content.owned.units] *= 1 - content.owned.counts / content.size
            for content in contents:
                units = content.owned.units
                total[units] += part.flops * (1 - kept[units])
                kept[units] = 1  # so a unit on several axes counts once
        return total
