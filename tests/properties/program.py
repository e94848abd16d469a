"""Random programs: networks as Python text, built statement by statement while their values are watched."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.models import randomise

BATCH = 3
_LARGEST, _LEAST_SPREAD = 1e3, 1e-3
_GAIN = 2.0  # the default initialisation of torch lets signals fade
_MEMBER = re.compile(r"self\.([mb]\d+)")
_NAMES: dict[str, Any] = {"torch": torch, "nn": nn, "F": F}


class UnsuitableError(Exception):
    """A step does not apply to the values there are, or gives values that no error could be seen in."""


@dataclass(frozen=True)
class Statement:
    """One step of a program.

    Attributes:
        kind: the name of the step that made it.
        lines: lines of ``forward``.
        inputs: the values that it reads.
        results: the values that it makes, with their shapes.
    """

    kind: str
    lines: tuple[str, ...]
    inputs: tuple[str, ...]
    results: dict[str, tuple[int, ...]]

    def renamed(self, old: str, new: str) -> Statement:
        """Return the statement as it reads ``new`` in place of ``old``."""
        lines = tuple(re.sub(rf"\b{old}\b", new, line) for line in self.lines)
        return replace(self, lines=lines, inputs=tuple(new if name == old else name for name in self.inputs))


@dataclass(frozen=True)
class Program:
    """A network as text.

    Attributes:
        inputs: what makes each input of ``forward``, given ``batch``.
        statements: the steps.
        returned: the values that ``forward`` returns.
        setup: lines of ``__init__``; those that nothing uses are left out.
        seed: what the weights and inputs are drawn with.
    """

    inputs: dict[str, str]
    statements: tuple[Statement, ...]
    returned: tuple[str, ...]
    setup: tuple[str, ...]
    seed: int = 0

    @property
    def text(self) -> str:
        """The class as Python source."""
        lines = ["class Net(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        lines += [f"        {line}" for line in self._used_setup()]
        lines += ["", f"    def forward(self, {', '.join(self.inputs)}):"]
        lines += [f"        {line}" for statement in self.statements for line in statement.lines]
        lines += [f"        return {', '.join(self.returned)}"]
        lines += ["", *(f"# {name} = {text}" for name, text in self.inputs.items())]
        return "\n".join(lines)

    def _used_setup(self) -> list[str]:
        used = set(_MEMBER.findall("\n".join(line for statement in self.statements for line in statement.lines)))
        lines = []
        for line in reversed(self.setup):
            members = _MEMBER.findall(line) or re.findall(r'"(b\d+)"', line)
            if members[0] in used:
                used.update(members)
                lines.append(line)
        return lines[::-1]

    def build(self) -> nn.Module:
        """Return the network in float64, equal on every call, with weights that hide no mistake."""
        names = dict(_NAMES)
        exec(self.text, names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model: nn.Module = names["Net"]().double()
        liven(model, self.seed)
        return model.eval()

    def arguments(self, batch: int = BATCH) -> tuple[Tensor, ...]:
        """Return inputs for a call, equal on every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + batch)
            return tuple(eval(text, {**_NAMES, "batch": batch}) for text in self.inputs.values())

    def without_dead_code(self) -> Program:
        """Return the program without the statements that nothing returned depends on."""
        needed, kept = set(self.returned), []
        for statement in reversed(self.statements):
            if needed & set(statement.results):
                needed |= set(statement.inputs)
                kept.append(statement)
        inputs = {name: text for name, text in self.inputs.items() if name in needed} or self.inputs
        return replace(self, inputs=inputs, statements=tuple(reversed(kept)))

    def values(self) -> dict[str, Tensor]:
        """Return all values of a call in eval mode."""
        names: dict[str, Any] = {**_NAMES, "self": self.build(), **dict(zip(self.inputs, self.arguments(), strict=True))}
        with torch.no_grad():
            for statement in self.statements:
                exec("\n".join(statement.lines), names)
        # A statement may have written into the value of another one.
        return {name: names[name] for statement in self.statements for name in statement.results}


def liven(model: nn.Module, seed: int = 0) -> None:
    """Randomise what a network starts from, norm statistics included, and raise its gains, in place."""
    generator = torch.Generator().manual_seed(seed)
    randomise(model, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(_GAIN)
            elif bool((parameter == 0).any()):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


@dataclass(eq=False)
class Value:
    """A value of the program that is being built; as text it is its name."""

    name: str
    shape: tuple[int, ...]
    uses: int = 0

    @property
    def channel(self) -> int:
        """The dimension of the channels: 1 in images and vectors, the last one in sequences."""
        return 2 if len(self.shape) == 3 else 1

    @property
    def width(self) -> int:
        """The number of channels."""
        return self.shape[self.channel]

    def __str__(self) -> str:
        return self.name


@dataclass
class Builder:
    """Adds statements to a program and runs each at once, so that the shapes of all values are known."""

    random: random.Random
    kind: str = "input"
    inputs: dict[str, str] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    calls: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)
    net: nn.Module = field(default_factory=nn.Module)
    setup: list[str] = field(default_factory=list)
    _names: dict[str, Any] = field(default_factory=lambda: dict(_NAMES))
    _made: int = 0  # names; those of a step that did not suit are not used again

    def __post_init__(self) -> None:
        self._names["self"] = self.net

    def input(self, text: str) -> Value:
        """Add an input of the network, made by the expression ``text`` from ``batch``."""
        name = self._fresh("x")
        self.inputs[name] = text
        self._names[name] = eval(text, {**_NAMES, "batch": BATCH})
        value = Value(name, tuple(self._names[name].shape))
        self.values.append(value)
        return value

    def module(self, text: str, reads: Value | None = None) -> str:
        """Add a module, parameter or buffer made by an expression; return how ``forward`` calls it.

        With ``reads``, it may be called again on another value of the same shape.
        """
        name = self._fresh("m")
        self._define(f"self.{name} = {text}")
        made = getattr(self.net, name)
        if isinstance(made, nn.Module):
            made.double()
            liven(made)
        if reads is not None:
            self.calls.append((f"self.{name}", self.kind, reads.shape))
        return f"self.{name}"

    def tie(self, one: str, other: str) -> None:
        """Give a module the weight of another."""
        self._define(f"{one}.weight = {other}.weight")

    def _define(self, line: str) -> None:
        exec(line, self._names)
        self.setup.append(line)

    def parameter(self, *shape: int) -> str:
        """Add a parameter of the network itself."""
        return self.module(f"nn.Parameter(1 + 0.3 * torch.randn({', '.join(map(str, shape))}, dtype=torch.double))")

    def buffer(self, text: str) -> str:
        """Add a buffer of the network itself."""
        name = self._fresh("b")
        self._define(f'self.register_buffer("{name}", {text})')
        return f"self.{name}"

    def emit(self, text: str, *reads: Value) -> Value:
        """Add ``result = text``; return the result."""
        return self.emit_lines(["{0} = " + text.replace("{", "{{").replace("}", "}}")], 1, *reads)[0]

    def emit_last(self, lines: Sequence[str], count: int, *reads: Value) -> Value:
        """Add lines as `emit_lines` does; later steps see the last of the results only."""
        *hidden, last = self.emit_lines(lines, count, *reads)
        self.values = [value for value in self.values if value not in hidden]
        return last

    def emit_lines(self, lines: Sequence[str], count: int, *reads: Value) -> list[Value]:
        """Add lines that make so many results, which they call ``{0}``, ``{1}`` and so on; return the results."""
        results = [self._fresh("x") for _ in range(count)]
        text = tuple(line.format(*results) for line in lines)
        with torch.no_grad():
            try:
                exec("\n".join(text), self._names)
            except RuntimeError as error:
                if "view size" in str(error):  # strides are not followed here
                    raise UnsuitableError("not contiguous") from error
                raise
        for name in results:
            self._check(self._names[name])
        values = [Value(name, tuple(self._names[name].shape)) for name in results]
        shapes = {value.name: value.shape for value in values}
        names = tuple(read.name for read in reads)
        self.statements.append(Statement(self.kind, text, names, shapes))
        for read in reads:
            read.uses += 1
        self.values += values
        return values

    def _fresh(self, letter: str) -> str:
        name, self._made = f"{letter}{self._made}", self._made + 1
        return name

    def _check(self, value: Tensor) -> None:
        tensor = value.detach()
        if tensor.numel() > 6000:
            raise UnsuitableError("too large")
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()) or float(tensor.abs().max()) > _LARGEST:
            raise UnsuitableError("no finite numbers")
        if tensor.numel() > BATCH and float(tensor.std()) < _LEAST_SPREAD:
            raise UnsuitableError("all the same")

    def attempt(self, kind: str, step: Callable[[Builder], object]) -> bool:
        """Apply a step; return whether it suited. One that does not leaves the program as it was."""
        before = {name: copy.copy(value) for name, value in vars(self).items() if name not in ("random", "net", "_made")}
        uses, self.kind = [value.uses for value in self.values], kind
        try:
            step(self)
        except UnsuitableError:
            vars(self).update(before)
            for value, count in zip(self.values, uses, strict=True):
                value.uses = count
            return False
        return True

    # What steps choose with.

    def pick(self, *ranks: int, where: Callable[[Value], bool] = lambda _: True) -> Value:
        """Return a value of one of the ranks, a new and unused one more often than others."""
        found = [value for value in self.values if len(value.shape) in ranks and value.width > 1 and where(value)]
        if not found:
            raise UnsuitableError(f"no value of rank {ranks}")
        weights = [(1.0 + 3.0 * (value.uses == 0)) * 1.3**place for place, value in enumerate(found)]
        return self.random.choices(found, weights)[0]

    def pick_like(self, value: Value) -> Value:
        """Return another value of the same shape."""
        return self.pick(len(value.shape), where=lambda v: v.shape == value.shape and v is not value)

    def choice(self, options: Iterable[Any]) -> Any:
        """Return one of the options."""
        found = list(options)
        if not found:
            raise UnsuitableError("no options")
        return self.random.choice(found)

    def maybe(self, probability: float = 0.5) -> bool:
        """Return True so often."""
        return self.random.random() < probability

    def width(self) -> int:
        """Return a number of channels; most can be divided."""
        return int(self.choice((4, 4, 5, 6, 6, 8, 8, 12)))

    def divisor(self, size: int) -> int:
        """Return a divisor that leaves more than one part, and parts of more than one."""
        return int(self.choice(k for k in range(2, size) if size % k == 0))
