"""laws: what has to hold of every network and every plan."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import random
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

import fxprune
from fxprune.analysis.dependencies import Dependencies
from fxprune.graph.interpreter import NodeRunner
from fxprune.planning.group_choice import Choose
from fxprune.planning.plan import Plan
from fxprune.planning.planner import Scope
from tests.compare import relative_error, tensors_of
from tests.properties.program import BATCH, Program
from tests.properties.surviving import buffer_error, gradient_error, run_backward
from tests.zoo.exchange import exchange_error

TOLERANCE = 1e-9
OTHER_BATCH = BATCH + 1
_LONGEST = 400  # characters of an error
_SPECIAL = 0.2  # so many groups have an amount of their own


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of checking a law on one program.

    Attributes:
        units: how many units the analysis found.
        removed: the share of the parameters that went.
        error: what does not hold, or ``""``.
        free: of each kind of step, how often it occurs, and how often its results have channels that can go.
    """

    units: int = 0
    removed: float = 0.0
    error: str = ""
    free: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)


_CHOICES: tuple[Choose | None, ...] = (None, None, "outer", "inner", "all")
_SCOPES: tuple[Scope, ...] = ("local", "local", "global")
LAWS: dict[str, Callable[[Program], Outcome]] = {}


def _law(check: Callable[[Program], Outcome]) -> Callable[[Program], Outcome]:
    LAWS[check.__name__.removeprefix("check_")] = check
    return check


def outcome_of(law: str, program: Program) -> Outcome:
    """Check a law; an error of the framework is an outcome, too."""
    try:
        # A graph that fails prints its code there, before it raises.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return LAWS[law](program)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]
        return Outcome(error=f"raised {text} ({place.filename.rpartition('/')[2]}:{place.lineno})")


def captured(program: Program) -> tuple[fx.GraphModule, Dependencies]:
    """Return the graph of a program and its analysis."""
    gm = fxprune.capture(program.build(), program.arguments())
    return gm, fxprune.analyze(gm)


@_law
def check_exchange(program: Program) -> Outcome:
    """Check that units of one group can take each other's place."""
    gm, deps = captured(program)
    free = free_steps(program, gm, deps)
    error = exchange_error(gm, deps, program.arguments(), {}) or 0.0
    wrong = f"exchanging the units changes the results by {error:.1e}" if error > TOLERANCE else ""
    return Outcome(sum(group.size for group in deps.groups), 0.0, wrong, free)


@_law
def check_shrink(program: Program) -> Outcome:
    """Check that the masked and the shrunk graph of a random plan compute the same."""
    gm, deps = captured(program)
    outcome = Outcome(sum(group.size for group in deps.groups), free=free_steps(program, gm, deps))
    text, before = str(gm.code), _size(gm)
    plan = random_plan(program, deps)
    masked = fxprune.mask(gm, plan)
    small = fxprune.shrink(copy.deepcopy(masked), verify=False)
    # A program may have no parameters at all.
    outcome = dataclasses.replace(outcome, removed=(before - _size(small)) / max(before, 1))
    if not removes(plan) and (small.code != text or _size(small) != before):
        return dataclasses.replace(outcome, error="a plan that removes nothing changes the graph")
    if removes(plan) and not outcome.removed > 0:
        return dataclasses.replace(outcome, error="the parameters are not fewer")
    return dataclasses.replace(outcome, error=difference(masked, small, plan, program))


def random_plan(program: Program, deps: Dependencies) -> Plan:
    """Return the plan that goes with a program: random units, of each group some share."""
    source = random.Random(program.seed)
    generator = np.random.default_rng(program.seed)
    choose: Choose | None = source.choice(_CHOICES)
    scope: Scope = source.choice(_SCOPES)
    names = [group.members[0].parameter for group in deps.groups if source.random() < _SPECIAL]
    return fxprune.plan(
        deps,
        source.choice((0.0, 0.25, 0.5, 0.5, 0.75, 0.9)),
        importance=lambda _, group: generator.random(group.size),
        scope=scope,
        choose=choose,
        overrides={name: round(source.random(), 2) * 0.99 for name in names},
    )


def removes(plan: Plan) -> bool:
    """Tell whether anything of a parameter goes."""
    return plan.params_after < plan.params_before


def difference(masked: fx.GraphModule, small: fx.GraphModule, plan: Plan, program: Program) -> str:
    """Return how the shrunk graph differs from the masked one, or ``""``: in results, statistics or gradients."""
    for training in (False, True):
        for batch in (BATCH, OTHER_BATCH):
            ours, theirs = copy.deepcopy(small).train(training), copy.deepcopy(masked).train(training)
            arguments = program.arguments(batch)
            output, expected = run_backward(ours, arguments), run_backward(theirs, arguments)
            if any(bool(t.isnan().any()) for t in tensors_of((output, expected))):
                return f"the results are no numbers (training={training}, batch={batch})"
            results = relative_error(output, expected)
            errors = {
                "the results": (results, ""),
                "the gradients": gradient_error(theirs, ours, plan),
                "the buffers": buffer_error(theirs, ours, plan),
            }
            for what, (error, where) in errors.items():
                if not error <= TOLERANCE:
                    return f"{what} differ by {error:.1e} {where and f'at {where} '}(training={training}, batch={batch})"
    return ""


def _size(gm: nn.Module) -> int:
    return sum(parameter.numel() for parameter in gm.parameters())


def free_steps(program: Program, gm: fx.GraphModule, deps: Dependencies) -> dict[str, tuple[int, int]]:
    """Return of each kind of step how often it occurs and how often its results can shrink.

    The nodes that make the values of the program are found by their numbers.
    """
    values, found, seen = program.values(), dict[str, tuple[int, int]](), _nodes_by_numbers(gm, program)
    for statement in program.statements:
        nodes = [seen.get(_key(values[name])) for name in statement.results]
        labels = [deps.values[node] for node in nodes if node is not None]
        if not labels or statement.kind == "head":
            continue
        free = any(deps.units.resolve(axis).size for label in labels for axis in label.axes)
        occurs, frees = found.get(statement.kind, (0, 0))
        found[statement.kind] = (occurs + 1, frees + free)
    return found


def _nodes_by_numbers(gm: fx.GraphModule, program: Program) -> dict[tuple[tuple[int, ...], bytes], str]:
    """Return the first node by what its value is in the end, after all that was written into it."""
    made: list[tuple[str, Tensor]] = []

    def after(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor) and node.op not in ("placeholder", "get_attr"):
            made.append((node.name, value))

    NodeRunner(copy.deepcopy(gm).eval(), after=after).run(*program.arguments())
    return {_key(value): name for name, value in reversed(made)}


def _key(tensor: Tensor) -> tuple[tuple[int, ...], bytes]:
    return tuple(tensor.shape), tensor.detach().contiguous().numpy().tobytes()
