"""Random networks: all steps, and how a program is made of them.

``network(seed)`` is the program of a seed; ``network(seed).build()`` is the network, ``print(network(seed).text)`` shows it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from types import ModuleType

import torch

from tests.properties import steps_any, steps_image, steps_sequence
from tests.properties.program import Builder, Program, Value

Step = Callable[[Builder], None]


def _steps(module: ModuleType) -> dict[str, Step]:
    found = vars(module).items()
    return {name: step for name, step in found if getattr(step, "__module__", "") == module.__name__ and name[0] != "_"}


STEPS: dict[str, Step] = {**_steps(steps_any), **_steps(steps_image), **_steps(steps_sequence)}

# Steps that use the units of a group in different ways, so that the units cannot take each other's place.
_ASYMMETRIC = """
    write cut narrow add_part reorder reorder_and_add shift select_constant chunk split_sizes split_transform_merge
    concatenate_twice split_and_swap interleave shuffle fixed_scale where_mask pad_channels spatial_gate reduce_parts
    by_heads unbind again repeat_channels local_response_norm channel_attention grouped_convolution group_norm merge_places
"""
ASYMMETRIC = frozenset(_ASYMMETRIC.split())

_MOST_STEPS, _MOST_OUTPUTS = 14, 3
_INPUTS = {
    "image": "torch.randn(batch, 3, 4, 4, dtype=torch.double)",
    "wide image": "torch.randn(batch, 2, 6, 5, dtype=torch.double)",
    "sequence": "torch.randn(batch, 4, 5, dtype=torch.double)",
    "vector": "torch.randn(batch, 6, dtype=torch.double)",
    "tokens": "torch.randint(0, 11, (batch, 4))",
}


def network(seed: int, without: Collection[str] = ()) -> Program:
    """Return the program of a seed, made without some kinds of steps."""
    source = random.Random(seed)
    while True:
        program = _program(random.Random(source.random()), seed, without)
        outputs = program.values() if program is not None else {}
        if program is not None and all(bool(outputs[name].isfinite().all()) for name in program.returned):
            return program


def _program(source: random.Random, seed: int, without: Collection[str]) -> Program | None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        builder = Builder(source)
        kinds = source.choice((["image"], ["image"], ["wide image"], ["sequence"], ["vector"], ["tokens"], ["image", "vector"]))
        for kind in kinds:
            _start(builder, kind)
        names = [name for name in STEPS if name not in without]
        for _ in range(source.randint(1, _MOST_STEPS)):
            # Most steps suit few values.
            for name in source.sample(names, len(names)):
                if builder.attempt(name, STEPS[name]):
                    break
        returned = _finish(builder)
    program = Program(builder.inputs, tuple(builder.statements), tuple(returned), tuple(builder.setup), seed)
    return program.without_dead_code() if returned else None


def _start(builder: Builder, kind: str) -> None:
    """Add an input, and what makes channels of it that can go."""
    x = builder.input(_INPUTS[kind])

    def stem(b: Builder) -> None:
        width = b.width()
        if kind == "tokens":
            b.emit(f"{b.module(f'nn.Embedding(11, {width})')}({x})", x)
        elif len(x.shape) == 4:
            b.emit(f"{b.module(f'nn.Conv2d({x.width}, {width}, 3, padding=1)')}({x})", x)
        else:
            b.emit(f"{b.module(f'nn.Linear({x.width}, {width})')}({x})", x)

    if kind == "tokens" or builder.maybe(0.9):
        builder.attempt("stem", stem)
        builder.values.remove(x)


def _finish(builder: Builder) -> list[str]:
    """Add a head to the newest values that nothing uses; return what the network returns."""
    unused = [value for value in builder.values if value.uses == 0 and value.name not in builder.inputs][-_MOST_OUTPUTS:]
    returned = []
    for value in unused:

        def head(b: Builder, x: Value = value) -> None:
            pooled = {4: f"{x}.mean((2, 3))", 3: f"{x}.mean(1)", 2: f"{x}"}[len(x.shape)]
            b.emit(f"{b.module(f'nn.Linear({x.width}, 3)')}({pooled})", x)

        if builder.maybe(0.97) and len(value.shape) in (2, 3, 4) and builder.attempt("head", head):
            returned.append(builder.values[-1].name)
        else:
            returned.append(value.name)
    return returned
