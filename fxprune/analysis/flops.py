"""Floating-point operations of one call, as ``torch.utils.flop_counter`` counts them."""

from __future__ import annotations

from typing import Any

from torch.utils import flop_counter

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
