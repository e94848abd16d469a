"""Calls of element-wise operators: most of them made from the operator's schema."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from tests.rules.sample import Context, Operand, Sample, between, complex_, exactly, flags, integers, real

# Of several operands the first is the largest, so that in-place forms work; the others broadcast.
_SHAPES = ((3, 4, 5), (4, 5), (3, 1, 5), (5,))
_DRAWS: tuple[Callable[..., Operand], ...] = (
    functools.partial(between, 0.2, 0.8),  # where all functions are defined
    lambda *shape: integers(6, *shape, low=1),
    flags,
    complex_,
)


def _some(c: Context) -> list[Tensor]:
    return c.call(*c.tensors)


_X, _ROW = real(3, 4, 5), real(4, 5)

SAMPLES = [
    Sample("clamp clamp_ clip clip_", (_X,), lambda c: c.call(c[0], 0.1, 0.5)),
    Sample("clamp clip", (_X,), lambda c: c.call(c[0], -0.5)),
    Sample("clamp.Tensor clip.Tensor clamp_.Tensor clip_.Tensor", (_X, _ROW), _some),
    Sample("native_dropout", (_X,), lambda c: c.call(c[0], 0.5, True), random=True),
    Sample("fill_.Tensor fill.Tensor", (_X, exactly(torch.tensor(1.5).double())), _some),
    Sample("masked_fill_.Scalar masked_fill.Scalar", (_X, flags(4, 5)), lambda c: c.call(c[0], c[1], 2.0)),
    Sample("masked_fill_.Scalar masked_fill.Scalar", (_X, flags(3, 1, 5)), lambda c: c.call(c[0], c[1], -torch.inf)),
    Sample("_prelu_kernel", (_X, real(1, 4, 1)), _some),
    Sample("masked_fill_.Tensor masked_fill.Tensor", (_X, flags(4, 5), exactly(torch.tensor(1.5).double())), _some),
    Sample("where.self", (flags(3, 4, 1), _X, _ROW), _some),
    Sample("where.self", (flags(3, 4, 5), real(5), real(3, 1, 1)), _some),
    Sample("where.ScalarSelf", (flags(4, 5), _X), lambda c: c.call(c[0], 2.0, c[1])),
    Sample("where.ScalarOther", (flags(4, 5), _X), lambda c: c.call(c[0], c[1], 2.0)),
    Sample("where.Scalar", (flags(4, 5),), lambda c: c.call(c[0], 1.0, 2.0)),
    Sample("to.device", (_X,), lambda c: c.call(c[0], "cpu", torch.float32)),
    Sample("to.dtype_layout to.dtype _to_copy", (_X,), lambda c: c.call(c[0], dtype=torch.float32)),
    Sample("type_as to.other", (_X, integers(3, 2)), _some),
    Sample("type_as to.other", (_X, _ROW), _some),
    Sample("fake_quantize_per_tensor_affine", (_X,), lambda c: c.call(c[0], 0.1, 0, -8, 7)),
    Sample("copy_", (_X, _ROW), _some),
    Sample("frexp.Tensor", (_X,), _some),
    Sample("add.Tensor mul.Tensor sub.Tensor", (_X, _X), _some),
    Sample("add.Tensor mul.Tensor div.Tensor", (real(3, 1, 5), real(4, 1)), _some),
    Sample("add.Tensor mul.Tensor div.Tensor", (real(1, 1), real(3, 4)), _some),
    Sample("add.Tensor", (_X, real()), _some),
    Sample("div.Tensor_mode div_.Tensor_mode", (_X, _ROW), lambda c: c.call(c[0], c[1], rounding_mode="floor")),
    Sample("div.Scalar_mode div_.Scalar_mode", (_X,), lambda c: c.call(c[0], 0.3, rounding_mode="trunc")),
    Sample("round.decimals round_.decimals", (_X,), lambda c: c.call(c[0], decimals=1)),
    Sample("lt.Scalar le.Scalar gt.Scalar ge.Scalar", (_X,), lambda c: c.call(c[0], 0.0)),
    Sample(
        "threshold hardshrink softshrink", (_X,), lambda c: c.call(c[0], *([0.5, 0.0] if "threshold" in str(c.op) else [0.5]))
    ),
    Sample("clamp_max relu neg", (_X,), lambda c: c.call(c[0], *([0] if "clamp" in str(c.op) else []))),
    Sample("polygamma", (between(0.2, 0.8, 3, 4),), lambda c: c.call(2, c[0])),
]


def pointwise() -> list[OpOverload]:
    """Return all operators that torch tags as element-wise, except those that write to a tensor of the caller's."""
    names = {
        name.removeprefix("aten::").partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if name[:6] == "aten::"
    }
    packets = [getattr(torch.ops.aten, name) for name in sorted(names)]
    found = [getattr(packet, overload) for packet in packets for overload in packet.overloads()]
    return [op for op in found if torch.Tag.pointwise in op.tags and _returns_tensors(op)]


def _returns_tensors(op: OpOverload) -> bool:
    """Tell whether an operator makes tensors: its result is neither a flag nor memory of the caller's."""
    makes = all("Tensor" in str(result.type) for result in op._schema.returns)
    return makes and not any(argument.is_out for argument in op._schema.arguments)


def made_from_schema(op: OpOverload) -> Sample | None:
    """Return a call of an operator with operands that it takes, found by trying; None if there are none."""
    for draw in _DRAWS:
        for number in (0.5, 2):
            sample = _made(op, draw, number)
            try:
                generator = torch.Generator().manual_seed(0)
                tensors = [operand.draw(generator) for operand in sample.operands]
                sample.run(Context(op, tensors, [tuple(t.shape) for t in tensors]))
            except (RuntimeError, IndexError, ValueError, TypeError):
                continue
            return sample
    return None


def _made(op: OpOverload, draw: Callable[..., Operand], number: float) -> Sample:
    shapes = iter(_SHAPES)
    places: list[Any] = []
    operands: list[Operand] = []
    for argument in op._schema.arguments:
        kind = str(argument.real_type)
        if argument.kwarg_only or (argument.has_default_value() and kind != "Tensor"):
            continue
        if kind == "Tensor":
            places.append((len(operands),))
            operands.append(draw(*next(shapes)))
        else:
            places.append(_plain(kind, number))

    def run(c: Context) -> list[Tensor]:
        return c.call(*[c[p[0]] if isinstance(p, tuple) else p for p in places])

    return Sample(str(op), tuple(operands), run)


def _plain(kind: str, number: float) -> Any:
    known = {"int": 2, "float": 0.5, "bool": False, "ScalarType": torch.float64, "Optional[str]": "floor", "str": "none"}
    return known.get(kind, None if kind.startswith("Optional") else number)
