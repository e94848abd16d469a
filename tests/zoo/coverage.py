"""coverage: capture and analyse models of the catalogue, one row of results each; nothing here raises for a model."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from tabulate import tabulate
from torch import fx

import fxprune
from tests.zoo.apart import NoAnswerError, call_apart
from tests.zoo.catalogue import catalogue
from tests.zoo.exchange import exchange_error
from tests.zoo.recipe import Recipe

# What is known not to work, and why: neither an error nor an operator without a rule in one of these is a failure.
EXPECTED: dict[str, str] = {
    "transformers/vilt": "its code chooses patches by their values, so that no graph of it exists",
}

_HEADERS = (
    "model",
    "front end",
    "nodes",
    "parameters (M)",
    "capture s",
    "analyse s",
    "groups",
    "in a group %",
    "exchange error",
    "note",
)
_LONGEST_ERROR = 300
# Wrong positions change results by more than a thousandth; rounding in code that insists on float32 by far less.
_EXCHANGEABLE = 1e-4
_OPS_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of one model; fields past the first that failed keep their defaults.

    Attributes:
        name: The name in the catalogue.
        frontend: ``"trace"`` or ``"export"``.
        nodes: How many nodes the graph has.
        parameters: Elements of all parameters, tied ones once.
        capture_seconds: The time that `fxprune.capture` took.
        analyse_seconds: The time that `fxprune.analyze` took.
        groups: How many groups were found.
        share: The share of the parameters' elements that are in a group, in [0, 1].
        without_rule: The operators without a rule that met an axis of a parameter, each with its node.
        exchange: The relative error of the results after the units of each group were exchanged; see `tests.zoo.exchange`.
        error: What failed, in one line, or ``""``.
    """

    name: str
    frontend: str = ""
    nodes: int = 0
    parameters: int = 0
    capture_seconds: float = 0.0
    analyse_seconds: float = 0.0
    groups: int = 0
    share: float = 0.0
    without_rule: tuple[str, ...] = ()
    exchange: float | None = None
    error: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether the model was analysed, every operator had a rule, and the units of every group are interchangeable."""
        return not self.error and not self.without_rule and (self.exchange or 0.0) < _EXCHANGEABLE

    @property
    def is_failure(self) -> bool:
        """Whether the model was expected to be complete, and is not."""
        return not self.is_complete and self.name not in EXPECTED

    @property
    def note(self) -> str:
        """What kept the model from being complete, or ``""``."""
        what = self.error
        if self.without_rule:
            more = "" if len(self.without_rule) <= _OPS_SHOWN else f" and {len(self.without_rule) - _OPS_SHOWN} more"
            what = f"no rule: {', '.join(self.without_rule[:_OPS_SHOWN])}{more}"
        if not what and not self.is_complete:
            what = "exchanging the units of the groups changes the results"
        if what and self.name in EXPECTED:
            return f"expected ({EXPECTED[self.name]}): {what}"
        return what


def measure(recipe: Recipe) -> Row:
    """Build, capture and analyse one model, in this process."""
    row, stage = Row(recipe.name), "build"
    try:
        # What the libraries and the capture warn of is not what is measured.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, args, kwargs = recipe.build()
            stage, start = "capture", time.perf_counter()
            gm = fxprune.capture(model, args, kwargs)
            row = _captured(row, gm, time.perf_counter() - start)
            stage, start = "analyze", time.perf_counter()
            deps = fxprune.analyze(gm)
            seconds = time.perf_counter() - start
            without_rule = tuple(map(str, deps.without_rule))
            row = dataclasses.replace(
                row, analyse_seconds=seconds, groups=len(deps.groups), share=float(deps.share), without_rule=without_rule
            )
            stage = "exchange"
            return dataclasses.replace(row, exchange=exchange_error(gm, deps, args, kwargs))
    except Exception as error:  # whatever it is, it is the result of this model and must not stop the others
        return dataclasses.replace(row, error=_in_one_line(f"{stage}: {type(error).__name__}: {error}"))


def measure_apart(recipe: Recipe, seconds: float) -> Row:
    """Measure one model in a process of its own, which is ended if it takes longer than so many seconds."""
    try:
        return call_apart(_measure_named, recipe.name, seconds)
    except NoAnswerError as error:
        return Row(recipe.name, error=str(error))


def measure_all(recipes: Sequence[Recipe], jobs: int, seconds: float) -> Iterator[Row]:
    """Yield the row of each recipe, in order.

    Args:
        recipes: what to measure.
        jobs: how many at a time, each in its own process; 0 for all in this process, one after the other.
        seconds: the time limit of each model; none with 0 jobs.
    """
    if jobs == 0:
        yield from map(measure, recipes)
        return
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda recipe: measure_apart(recipe, seconds), recipes)


def table(rows: Iterable[Row]) -> str:
    """Return the rows as text."""
    return tabulate(
        [_cells(row) for row in rows], headers=_HEADERS, floatfmt=("", "", "", ".2f", ".1f", ".2f", "", ".1f", ".0e", "")
    )


def totals(rows: Sequence[Row]) -> str:
    """Return what all rows together come to, as one line; the mean is over the models that were analysed."""
    analysed = [row for row in rows if not row.error]
    lacking = sum(bool(row.without_rule) for row in analysed)
    mean = sum(row.share for row in analysed) / len(analysed) if analysed else 0.0
    return (
        f"{len(analysed)} of {len(rows)} analysed; {lacking} with operators without a rule; "
        f"on average {100 * mean:.1f} % of the parameters in a group; {sum(row.is_failure for row in rows)} failed"
    )


def _cells(row: Row) -> tuple[object, ...]:
    captured, analysed = bool(row.frontend), not row.error
    return (
        row.name,
        row.frontend,
        row.nodes if captured else None,
        row.parameters / 1e6 if captured else None,
        row.capture_seconds if captured else None,
        row.analyse_seconds if analysed else None,
        row.groups if analysed else None,
        100 * row.share if analysed else None,
        row.exchange,
        row.note,
    )


def _captured(row: Row, gm: fx.GraphModule, seconds: float) -> Row:
    # The export front end gives operators only.
    traced = any(node.op == "call_module" for node in gm.graph.nodes)
    return dataclasses.replace(
        row,
        frontend="trace" if traced else "export",
        nodes=len(gm.graph.nodes),
        parameters=sum(parameter.numel() for parameter in gm.parameters()),
        capture_seconds=seconds,
    )


def _in_one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_ERROR else f"{line[:_LONGEST_ERROR]} ..."


def _measure_named(name: str) -> Row:
    return measure(catalogue()[name])
