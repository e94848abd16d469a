"""plan: which units of which groups go, so that an amount of units goes or a budget is met."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.algebra.axes import Flags, Index
from fxprune.analysis.costs import Costs
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group
from fxprune.errors import PlanError, PruningTypeError
from fxprune.graph.masks import all_masked, find_parameter
from fxprune.importance import Criterion, Importance, Magnitude
from fxprune.importance.criterion import short
from fxprune.planning.group_choice import Choose, uncrossed
from fxprune.planning.names import Names, selectors
from fxprune.planning.plan import Plan
from fxprune.planning.ranking import Ranking, Scores, local_counts, rank

Scope = Literal["local", "global"]


def plan(
    deps: Dependencies,
    amount: float | None = None,
    *,
    importance: Importance | None = None,
    scope: Scope = "local",
    round_to: int = 1,
    ignore: str | nn.Module | Iterable[str | nn.Module] = (),
    overrides: Mapping[str, float] | None = None,
    max_params: float | None = None,
    max_flops: float | None = None,
    choose: Choose | None = None,
) -> Plan:
    """Choose the units to remove from a graph.

    The least important units go. The most important unit of every group stays in any case, and no axis of any value in the
    graph loses all of its positions.

    Args:
        deps: the analysis of the graph.
        amount: how much to remove, as in ``torch.nn.utils.prune``: a float in [0, 1) is a share, rounded to a whole number of
            units, an int a number of units. Give this or a budget.
        importance: a criterion of :mod:`fxprune.importance`, or any callable ``(deps, group) -> tensor or array of shape
            (group.size,)`` of scores. ``Magnitude()`` unless given.
        scope: "local" removes ``amount`` of every group; "global" ranks the units of all groups together.
        round_to: the number of units left in a group is rounded up to a multiple of this, never beyond the group's size.
        ignore: names of parameters, names of modules, glob patterns of either, modules. A group stays as it is if any of its
            parameters is meant. A name or pattern may end in an axis: ``"*gate_proj.weight[0]"`` means the groups on the rows.
        overrides: amounts for the groups on certain parameters or axes, by name or pattern as in ``ignore``; the last entry
            that means a group counts. With ``scope="global"`` these groups are left out of the ranking.
        max_params: how many elements the parameters may have left: an int, or a float in (0, 1) as a share of the present.
            Gives the smallest pruning that meets it.
        max_flops: how many floating-point operations may be left, likewise; with ``max_params`` both are met.
        choose: which of several groups is pruned that cross on an axis, such as heads and head dimensions. By default the
            outermost group with at least eight units, else the group with the most units; "outer" takes the outermost, whose
            units lie furthest apart, "inner" the innermost, "all" prunes all of them.

    Returns:
        The plan; ``print`` it. Its notes say what ``ignore`` and ``overrides`` hold for besides what they name.

    Raises:
        PruningTypeError: an argument is of the wrong type.
        PlanError: an argument is out of range or matches nothing, scores are not finite or of the wrong shape, or no pruning
            meets the budget; then the message says what the largest pruning reaches.

    Example:
        >>> deps = fxprune.analyze(fxprune.capture(model, example_inputs))
        >>> plan = fxprune.plan(deps, 0.5, ignore=["fc"], round_to=8)
        >>> plan = fxprune.plan(deps, max_flops=0.5, scope="global")
    """
    if not isinstance(deps, Dependencies):
        raise PruningTypeError(f"deps must be what fxprune.analyze returns, not {type(deps).__name__}")
    if scope not in ("local", "global"):
        raise PlanError(f'scope must be "local" or "global", not {scope!r}')
    multiple = _number(round_to, "round_to")
    if not isinstance(multiple, int) or multiple < 1:
        raise PlanError(f"round_to must be a number of units of at least 1, not {round_to!r}")
    budgets = _budgets(amount, overrides, max_params, max_flops)
    _check_present(deps)
    names, costs = Names(deps), deps.costs
    by_pattern = {selector: _amount(value, f"overrides[{selector!r}]") for selector, value in (overrides or {}).items()}
    special = {i: value for selector, value in by_pattern.items() for i in names.groups(selector, "overrides")}
    alone = selectors(ignore)
    ignored = {index for selector in alone for index in names.groups(selector, "ignore")}
    groups = uncrossed(deps, costs.census, ignored, choose)
    scores = _scores(deps, groups, Magnitude() if importance is None else importance)
    ranking = rank(deps, costs.census, groups, scores)
    # A multiple beyond all sizes keeps every group, as the largest size does.
    prunings = _Prunings(ranking, scope, min(multiple, max(map(len, scores), default=1)), special)
    if budgets:
        kept = _smallest(prunings, costs, budgets)
    else:
        kept = prunings.of_amount(_amount(amount, "amount"))
    return Plan.of(deps, costs, ranking, kept, names.notes(alone, by_pattern, groups))


def _check_present(deps: Dependencies) -> None:
    """Raise PlanError if the parameters of the graph have other shapes than at its analysis."""
    present = dict(deps.gm.named_parameters(remove_duplicate=False))
    present |= {name: masked.orig for masked in all_masked(deps.gm) for name in masked.names}
    for tracked in deps.tracked:
        then, now = tracked.label.shape, present.get(tracked.name)
        if tracked.is_parameter and (now is None or tuple(now.shape) != then):
            raise PlanError(
                f"the graph changed since it was analysed: parameter {tracked.name!r} had shape {list(then)} then and "
                f"{'is not there' if now is None else f'has shape {list(now.shape)}'} now; analyze it again"
            )


def _budgets(amount: Any, overrides: Any, max_params: Any, max_flops: Any) -> dict[str, float]:
    """Return the budgets by the names of their arguments; empty if an amount is given."""
    given = {name: value for name, value in (("max_params", max_params), ("max_flops", max_flops)) if value is not None}
    if (amount is None) == (not given):
        raise PlanError("give either amount, or max_params, max_flops or both")
    if overrides is not None and not isinstance(overrides, Mapping):
        raise PruningTypeError(f"overrides must map names and patterns to amounts, not be {overrides!r}")
    if overrides and given:
        raise PlanError("overrides are amounts, which go with amount and not with a budget")
    budgets = {name: _number(value, name) for name, value in given.items()}
    for name, value in budgets.items():
        if not (value >= 1 if isinstance(value, int) else 0 < value < 1):
            raise PlanError(f"{name} must be a positive int, or a float in (0, 1) as a share of the present, not {value!r}")
    return budgets


def _number(value: Any, argument: str) -> float:
    """Return a number of any kind as an int or a float; raise an error that names the argument if it is no number."""
    # A span of time of numpy is an integer to Python.
    if isinstance(value, bool | np.timedelta64) or not isinstance(value, Real):
        raise PruningTypeError(f"{argument} must be an int or a float, not {value!r}")
    try:
        return int(value) if isinstance(value, Integral) else float(value)
    except OverflowError:  # a fraction
        raise PlanError(f"{argument} is out of range: {short(value)}") from None


def _amount(value: Any, argument: str) -> float:
    """Return an amount as an int or a float; raise an error that names the argument if it is out of range."""
    amount = _number(value, argument)
    if isinstance(amount, int) and amount < 0:
        raise PlanError(f"{argument} must not be negative, but it is {amount}")
    if isinstance(amount, float) and not 0 <= amount < 1:
        raise PlanError(f"{argument} must be in [0, 1) if it is a float, but it is {amount}")
    return amount


def _instance(importance: Any) -> Importance:
    """Return a criterion for its class, and anything else as it is."""
    if not (isinstance(importance, type) and issubclass(importance, Criterion)):
        return importance  # type: ignore[no-any-return]
    try:
        return importance()
    except TypeError as error:
        raise PruningTypeError(f"importance must be a criterion, not its class: {error}") from error


def _scores(deps: Dependencies, groups: Sequence[Group], importance: Importance) -> list[Scores]:
    """Return the importance of the units of each group."""
    importance = _instance(importance)
    if not callable(importance):
        raise PruningTypeError(f"importance must be a criterion or a callable (deps, group), not {importance!r}")
    by = f"importance {getattr(importance, '__qualname__', type(importance).__name__)}"
    scorer = importance.prepare(deps) if isinstance(importance, Criterion) else partial(importance, deps)
    found: list[Scores] = []
    for group in groups:
        score = _numbers(scorer(group), f"{by} gave", f"for {group}")
        if score.shape != (group.size,):
            raise PlanError(f"{by} gave scores of shape {list(score.shape)} for {group}; they must be [{group.size}]")
        if not np.isfinite(score).all():
            number = score[~np.isfinite(score)][0]
            raise PlanError(f"{by} gave scores that are not finite for {group}: {number}{_why_not_finite(deps, group)}")
        found.append(score)
    return found


def _numbers(given: Any, by: str, where: str) -> Scores:
    """Return scores as an array; raise PlanError if they are no real numbers."""
    try:
        if given.is_complex() or given.is_meta if isinstance(given, Tensor) else np.iscomplexobj(given):
            raise TypeError("no real numbers")
        return np.array(given.detach().to("cpu", torch.float64).numpy() if isinstance(given, Tensor) else given, np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise PlanError(f"{by} no numbers {where}, but {short(given)}") from error


def _why_not_finite(deps: Dependencies, group: Group) -> str:
    """Return which parameters of a group have values that are not finite, as the end of a sentence."""
    names = dict.fromkeys(member.parameter for member in group.on_parameters)
    bad = [name for name in names if not find_parameter(deps.gm, name).detach().isfinite().all()]
    return f"; not all values of {', '.join(map(repr, bad))} are finite" if bad else ""


class _Prunings:
    """All prunings of one ranking, from the smallest to the largest, each as the number of units that stay of each group."""

    def __init__(self, ranking: Ranking, scope: Scope, round_to: int, special: Mapping[int, float]) -> None:
        self.ranking = ranking
        self.scope = scope
        self._round_to = round_to
        self._special = [special.get(group.index) for group in ranking.groups]
        self._ranked = np.array([value is None for value in self._special], bool)

    def of_amount(self, amount: float) -> Index:
        """Return the pruning for an amount."""
        sizes = self.ranking.sizes
        usual = 0 if self.scope == "global" else amount
        wanted = local_counts(sizes, [usual if value is None else value for value in self._special])
        if self.scope == "local":
            if isinstance(amount, int) and amount > sizes.max(initial=0):
                raise PlanError(f"amount is {amount} units, but no group to be pruned has more than {sizes.max(initial=0)}")
            return self.ranking.to_keep(wanted, self._round_to)
        total = int(sizes[self._ranked].sum())
        if isinstance(amount, int) and amount > total:
            raise PlanError(f"amount is {amount} units, but the groups to be pruned have {total} together")
        return self._of_first(local_counts(np.array([total]), [amount]).item(), total, wanted)

    def _of_first(self, left: int, total: int, wanted: Index) -> Index:
        """Return the pruning that leaves ``left`` of ``total`` units: the units go that come first in the order."""
        gone = np.bincount(self.order[: total - left], minlength=len(wanted))
        return self.ranking.to_keep(wanted - gone, self._round_to)

    @cached_property
    def order(self) -> Index:
        """The groups of the units that may go, in the order in which the units go over all groups."""
        return self.ranking.in_order(self._ranked)

    def all(self) -> tuple[int, Callable[[int], Index]]:
        """Return the number of prunings and a function from index to pruning; each removes all units of the one before."""
        sizes = self.ranking.sizes
        if self.scope == "global":
            total = int(sizes.sum())
            return len(self.order) + 1, lambda index: self._of_first(total - index, total, sizes)
        # All shares between two neighbouring turns round to the same numbers of units.
        turns = [(np.arange(size) + 0.5) / size for size in np.unique(sizes)]
        ends = np.unique(np.concatenate([np.zeros(1), *turns, np.ones(1)]))
        shares = ((ends[:-1] + ends[1:]) / 2).tolist()
        keep = partial(self.ranking.to_keep, round_to=self._round_to)
        return len(shares), lambda index: keep(local_counts(sizes, [shares[index]] * len(sizes)))


def _smallest(prunings: _Prunings, costs: Costs, budgets: Mapping[str, float]) -> Index:
    """Return the smallest pruning within the budgets; raise PlanError if the largest is not."""
    count, pruning = prunings.all()
    counts: dict[str, tuple[Callable[[Flags], float], str]] = {
        "max_params": (costs.parameters, "parameters"),
        "max_flops": (costs.flops, "FLOPs"),
    }
    most = prunings.ranking.removed(pruning(count - 1))
    limits = []
    for name, budget in budgets.items():
        left, counted = counts[name]
        present, reached = left(np.zeros_like(most)), left(most)
        limit = budget if isinstance(budget, int) else budget * present
        if reached > limit:
            asked = f"{budget:,}" if isinstance(budget, int) else f"{budget} ({limit:,.0f})"
            raise PlanError(
                f"{name}={asked} cannot be met: with all removed that can go {reached:,.0f} {counted} are left "
                f"of {present:,.0f}, {reached / present:.1%}"
            )
        limits.append((left, limit))

    def is_within(index: int) -> bool:
        removed = prunings.ranking.removed(pruning(index))
        return all(left(removed) <= limit for left, limit in limits)

    return pruning(bisect_left(range(count - 1), True, key=is_within))
