"""Calls of recurrent networks and cells."""

from __future__ import annotations

from torch import Tensor

from tests.rules.sample import Context, Operand, Sample, real

_INPUT, _HIDDEN, _BATCH, _TIME = 3, 5, 2, 4


def _network(
    op: str,
    gates: int,
    *,
    layers: int = 1,
    both: bool = False,
    bias: bool = True,
    batch_first: bool = False,
    projection: int = 0,
) -> Sample:
    """Return a call of a network."""
    directions = 2 if both else 1
    out = projection or _HIDDEN
    states = 2 if op == "lstm" else 1
    operands: list[Operand] = [real(*((_BATCH, _TIME) if batch_first else (_TIME, _BATCH)), _INPUT)]
    operands += [real(layers * directions, _BATCH, size) for size in (out, _HIDDEN)[:states]]
    for layer in range(layers):
        for _ in range(directions):
            wide = _INPUT if layer == 0 else directions * out
            operands += [real(gates * _HIDDEN, wide), real(gates * _HIDDEN, out)]
            operands += [real(gates * _HIDDEN), real(gates * _HIDDEN)] if bias else []
            operands += [real(out, _HIDDEN)] if projection else []

    def run(c: Context) -> list[Tensor]:
        state = [c[1], c[2]] if states == 2 else c[1]
        return c.call(c[0], state, list(c.tensors[1 + states :]), bias, layers, 0.0, False, both, batch_first)

    note = f"{layers} layers, {directions} directions" + (f", projection to {projection}" if projection else "")
    return Sample(f"{op}.input", tuple(operands), run, unchecked=True, note=note)


def _cell(op: str, gates: int, *, bias: bool = True) -> Sample:
    states = 2 if op == "lstm" else 1
    operands = [real(_BATCH, _INPUT), *[real(_BATCH, _HIDDEN)] * states]
    operands += [real(gates * _HIDDEN, _INPUT), real(gates * _HIDDEN, _HIDDEN)]
    operands += [real(gates * _HIDDEN), real(gates * _HIDDEN)] if bias else []

    def run(c: Context) -> list[Tensor]:
        state = [c[1], c[2]] if states == 2 else c[1]
        return c.call(c[0], state, *c.tensors[1 + states :])

    return Sample(f"{op}_cell", tuple(operands), run, unchecked=True)


SAMPLES = [
    sample
    for op, gates in (("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1))
    for sample in (
        _network(op, gates),
        _network(op, gates, bias=False, batch_first=True),
        _network(op, gates, layers=2, both=True),
        _network(op, gates, layers=2, batch_first=True),
        _cell(op, gates),
        _cell(op, gates, bias=False),
    )
] + [
    _network("lstm", 4, projection=2),
    _network("lstm", 4, layers=2, both=True, projection=2, batch_first=True),
    _network("lstm", 4, layers=2, bias=False, projection=2),
]
