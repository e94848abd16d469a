"""minimise: makes a failing program as short as it can be while it fails in the same way."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

from tests.properties.program import Program


def minimised(program: Program, error_of: Callable[[Program], str]) -> Program:
    """Return a shorter program whose error is of the same kind.

    Args:
        program: a program that has an error.
        error_of: what is wrong with a program, or ``""``.
    """
    kind = _kind(error_of(program))
    shorter: Program | None = program
    while shorter is not None:
        program = shorter
        candidates = (c for c in _shorter(program) if _length(c) < _length(program))
        shorter = next((candidate for candidate in candidates if _kind(error_of(candidate)) == kind), None)
    return program


def _length(program: Program) -> tuple[int, int, int]:
    read = {name for statement in program.statements for name in statement.inputs}
    return len(program.statements), len(program.returned), len(read)


def _kind(error: str) -> str:
    return re.sub(r"x\d+|m\d+|[\d.e+-]+", "", error)[:60]


def _shorter(program: Program) -> Iterator[Program]:
    """Yield the program with less returned, and with values in place of others of the same shape that are made later."""
    if len(program.returned) > 1:
        for name in program.returned:
            yield dataclasses.replace(program, returned=(name,)).without_dead_code()
    values = program.values()
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    for place in reversed(range(len(program.statements))):
        statement = program.statements[place]
        known = [name for earlier in program.statements[:place] for name in earlier.results]
        for result in statement.results:
            for name in dict.fromkeys([*(n for n in statement.inputs if n in shapes), *known]):
                if shapes[name] == shapes[result]:
                    yield _without(program, result, name)


def _without(program: Program, old: str, new: str) -> Program:
    statements = tuple(
        statement if old in statement.results else statement.renamed(old, new) for statement in program.statements
    )
    returned = tuple(dict.fromkeys(new if name == old else name for name in program.returned))
    return dataclasses.replace(program, statements=statements, returned=returned).without_dead_code()
