"""LSTM, GRU and RNN: the whole network, or a cell that makes a single step."""

from __future__ import annotations

import math
from collections.abc import Callable

from fxprune.rules.call import Call
from fxprune.rules.card import OpCard, Work
from fxprune.rules.notation import Pattern
from fxprune.rules.registry import register_aten


def _network(states: int) -> Callable[[Call], str]:
    """Return the function that gives the pattern of a recurrent network of several layers and directions.

    All layers share one initial state tensor, hence one hidden size: unit j of every layer and direction goes together.
    """

    def pattern(call: Call) -> str:
        directions = 2 if call["bidirectional"] else 1
        wide, mixed = ("(!d {0})", "(!d [{0}])") if directions == 2 else ("{0}", "[{0}]")
        params: list[str] = []
        projected = states == 2 and call.operand(1).shape[-1] != call.operand(2).shape[-1]
        out = "r" if projected else "h"
        for layer in range(call["num_layers"]):
            for _ in range(directions):
                params += ["(!g h) [i]" if layer == 0 else f"(!g h) {mixed.format(out)}", f"(!g h) [{out}]"]
                params += ["(!g h)", "(!g h)"] if call["has_biases"] else []
                params += ["r [h]"] if projected else []
        assert len(call.operands) == 1 + states + len(params)
        state = [f"!l b {out}", "!l b h"][:states]
        inputs = "b !t [i]" if call["batch_first"] else "!t b [i]"
        result = f"b !t {wide.format(out)}" if call["batch_first"] else f"!t b {wide.format(out)}"
        return f"{', '.join([inputs, *state, *params])} -> {', '.join([result, *state])}"

    return pattern


def _sizes(gates: int) -> Callable[[Call], dict[str, int]]:
    return lambda call: {"g": gates, "d": 2 if call.arguments.get("bidirectional") else 1}


def _all_but_input(call: Call) -> str:
    """Return how zeros travel: where a unit's weights, biases and state are zero its gates keep the state at zero."""
    return "+".join(str(i) for i in range(1, len(call.operands)))


def _work(call: Call) -> list[Work]:
    """Return the work: each weight takes part in one matrix product per time step."""
    steps = math.prod(call.shapes[0][:-1])
    weights = [label for label in call.operands[2:] if label is not None and len(label) == 2]
    return [Work.of_products(weight.axes, steps) for weight in weights]


for _name, _gates, _states in (("lstm", 4, 2), ("gru", 3, 1), ("rnn_tanh", 1, 1), ("rnn_relu", 1, 1)):
    _rule = Pattern(
        _network(_states),
        "b !t [i], !l b h, (!g h) [i], (!g h) [h], (!g h), (!g h) -> b !t h, !l b h",
        zeros=_all_but_input,
        mixes="sum",  # every direction and layer has weights of its own to be corrected
        sizes=_sizes(_gates),
    )
    register_aten(f"{_name}.input", OpCard(_rule, work=_work, as_a_whole=True))
    _cell = "b h, " if _states == 2 else ""  # the second state
    _rule = Pattern(
        f"b [i], b [h], {_cell}(!g h) [i], (!g h) [h], (!g h), (!g h) -> {_cell}b h",
        zeros=_all_but_input,
        sizes=_sizes(_gates),
    )
    register_aten(f"{_name}_cell", OpCard(_rule, as_a_whole=True))
