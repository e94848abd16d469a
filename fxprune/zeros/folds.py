"""Folding: a layer turns an input channel that is one number throughout into numbers, which its bias can take in.

Example: input 2 of a linear layer is 0.5 for every sample, so ``weight[:, 2] * 0.5`` is added to the bias and input 2 goes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import fx

from fxprune.algebra.axes import Axis, Flags
from fxprune.algebra.units import Units
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.remaining import Remaining
from fxprune.analysis.sources import Tracked
from fxprune.analysis.steps import Step
from fxprune.functional.leaf_cards import card_of
from fxprune.rules.call import Call
from fxprune.rules.card import Places
from fxprune.rules.labels import Label
from fxprune.rules.registry import op_card
from fxprune.torch_internals.operators import OpOverload, arguments_of
from fxprune.zeros.slice_states import Slices, is_constant


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """Numbers that the bias of one layer has to take in.

    Attributes:
        node: the graph node of the layer.
        weight: the name of its weight.
        bias: the name of its bias, None if it has none yet.
        outputs: the axis of its outputs.
        inputs_first: whether inputs are the first dimension of the weight.
        numbers: for each input position the number that stands there, 0 where the position stays.
    """

    node: str
    weight: str
    bias: str | None
    outputs: Axis
    inputs_first: bool
    numbers: NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Folding:
    """A call whose bias can take numbers in, made at ``node``; ``names`` are those of its weight and its bias."""

    node: str
    call: Call
    places: Places
    names: tuple[str, str | None]

    @staticmethod
    def at(
        gm: fx.GraphModule, step: Step, steps_at_node: int, readers: Mapping[int, int], deps: Dependencies
    ) -> Folding | None:
        """Return the folding at a call, if its bias can take numbers in exactly; ``readers`` counts operands by producer."""
        call = step.call
        assert call is not None
        places = op_card(call.op).places
        if places is None or not _is_plain(call):
            return None
        weight_name = _parameter(call, places.weight, deps)
        if weight_name is None or len(call.operand(places.weight)) < 2:
            return None
        label = call.operands[places.bias] if places.bias < len(call.operands) else None
        if label is None:
            can_have_one = steps_at_node == 1 and _takes_bias(gm, step.node, call.op, places)
            return Folding(step.node, call, places, (weight_name, None)) if can_have_one else None
        bias_name = _parameter(call, places.bias, deps)
        # A bias that a second call reads would change for that call as well.
        if bias_name is None or readers[label.producer] > 1 or len(label) != 1:
            return None
        return Folding(step.node, call, places, (weight_name, bias_name))

    def fold(self, known: Slices, dim: int, units: Units, removed: Flags, gone: Flags) -> Fold | None:
        """Return the numbers of the input along ``dim`` that the bias takes in when ``removed`` units go.

        The positions of ``gone`` units count as zero.
        """
        axis = self.call.operand(self.places.input).axes[dim]
        goes = ~Remaining(units, removed)(axis) & Remaining(units, gone)(axis)
        numbers = np.where(goes & is_constant(known), known["value"], 0.0)
        if not numbers.any():
            return None
        outputs = self.call.operand(self.places.weight).axes[1 if self.places.inputs_first else 0]
        return Fold(self.node, *self.names, outputs, self.places.inputs_first, numbers)


def _is_plain(call: Call) -> bool:
    """Tell whether the call adds its bias as it is to sums over all its weights, at the border as elsewhere."""
    given = call.arguments
    if given.get("beta", 1) != 1 or given.get("alpha", 1) != 1 or given.get("transposed"):
        return False
    padding = given.get("padding", 0)
    if isinstance(padding, str):
        return padding == "valid" or all(size == 1 for size in call.operand(1).shape[2:])
    return not any(np.atleast_1d(padding))


def tracked_of(label: Label, deps: Dependencies) -> Tracked | None:
    """Return the parameter or buffer that a tensor is; None if it is neither."""
    return deps.steps[label.producer].tracked if label.producer >= 0 else None


def _parameter(call: Call, operand: int, deps: Dependencies) -> str | None:
    """Return the name of the parameter that an operand is; None if it is no parameter."""
    tracked = tracked_of(call.operand(operand), deps)
    return tracked.name if tracked is not None and tracked.is_parameter else None


def _takes_bias(gm: fx.GraphModule, name: str, op: OpOverload, places: Places) -> bool:
    """Tell whether the node of a call without a bias can be given one."""
    node = next((node for node in gm.graph.nodes if node.name == name), None)
    if node is not None and node.op == "call_function":
        has_it_third = [argument.name for argument in arguments_of(op)][2:3] == ["bias"]
        return has_it_third and node.target in (op, op.overloadpacket, places.function)
    if node is None or node.op != "call_module":
        return False
    module = gm.get_submodule(str(node.target))
    called = [n for n in gm.graph.find_nodes(op="call_module") if gm.get_submodule(str(n.target)) is module]
    return card_of(type(module)).takes_bias and len(called) == 1
