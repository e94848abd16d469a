"""Brute force: everything that a rule claims of a call, tried out by taking positions away."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload

from fxprune.algebra.axes import Axis, Reason, Rows
from fxprune.algebra.units import Units
from fxprune.rules import Call, Label, Mixing, Pattern, Rule, Zero
from fxprune.rules.call import tensors_in
from fxprune.rules.notation import parse
from tests.rules.sample import Context, Keep, Keeps, Sample

_FILLS = {
    "contract": 0.0,
    "sum": 0.0,
    "norm": 0.0,
    "mean": 0.0,
    "softmax": -torch.inf,
    "logsumexp": -torch.inf,
    "max": -torch.inf,
    "min": torch.inf,
    "prod": 1.0,
}
_MOST_PARTNERS = 32  # sets of axes to take positions of at the same time, the smallest first
_ALWAYS_FILLED = ("contract", "sum", "norm", "mean")


@dataclass(eq=False)
class Trial:
    """A rule, applied to the full call of a sample.

    Attributes:
        op: the operator.
        sample: the sample.
        tensors: the full operands.
        call: the call as the rule saw it.
        labels: those of the sample's operands.
        results: those that the rule gave.
        sources: for each tensor argument of the call, which operand of the sample it is.
        unread: the results that the rule says are of no interest.
    """

    op: OpOverload
    sample: Sample
    tensors: list[Tensor]
    call: Call
    labels: list[Label]
    results: list[Label]
    sources: list[int | None]
    unread: set[int]

    def __post_init__(self) -> None:
        # Nothing is learnt of the units once the rule has run.
        resolve = self.call.units.resolve
        self.rows = [[resolve(axis) for axis in label.axes] for label in self.labels]
        self.result_rows = [[resolve(axis) for axis in label.axes] for label in self.results]
        self.named_rows = {name: resolve(axis) for name, axis in self.call.axes.items()}

    def removable(self) -> list[int]:
        """Return all units on operands and results."""
        arrays = [axis.reshape(-1) for axes in (*self.rows, *self.result_rows) for axis in axes]
        return sorted({int(u) for array in arrays for u in array} - {-1})

    def without(self, gone: Iterable[int]) -> Cut:
        """Return which positions stay when units go."""
        units = np.array(list(gone))

        def stays(rows: Rows) -> Keep:
            return ~(rows[..., None] == units).any((1, 2))

        keeps, results = ([tuple(map(stays, axes)) for axes in side] for side in (self.rows, self.result_rows))
        names = {name: int(stays(rows).sum()) for name, rows in self.named_rows.items()}
        return Cut(keeps, results, names, frozenset(units.tolist()))


@dataclass(frozen=True, eq=False)
class Cut:
    """Which positions of operands and results stay, how many of the axes of the rule's pattern, and which units go."""

    keeps: Keeps
    results: Keeps
    names: dict[str, int]
    units: frozenset[int] = frozenset()

    @property
    def leaves_nothing(self) -> bool:
        """Whether an axis would be empty; the analysis never takes all of an axis."""
        return any(len(keep) and not keep.any() for axes in (*self.keeps, *self.results) for keep in axes)

    def __str__(self) -> str:
        return f"without {_removed(self.keeps)} and results without {_removed(self.results)}"


def draw(sample: Sample, seed: int) -> list[Tensor]:
    """Return random operands."""
    generator = torch.Generator().manual_seed(seed)
    return [operand.draw(generator) for operand in sample.operands]


def apply_rule(
    op: OpOverload, rule: Rule, sample: Sample, tensors: list[Tensor], *, known: bool = False, states: Sequence[Zero] = ()
) -> Trial:
    """Apply a rule to the full call of a sample, and check the shapes of what it gives.

    Args:
        op: the operator.
        rule: its rule.
        sample: the call.
        tensors: the operands.
        known: whether the values of integers and flags are known.
        states: what each operand holds at removed positions; zeros by default.
    """
    units = Units()
    labels = []
    for i, (operand, tensor) in enumerate(zip(sample.operands, tensors, strict=True)):
        axes = tuple(units.fresh(n) if n > 1 else Axis.whole(n, Reason("has a single position")) for n in tensor.shape)
        state = states[i] if states else Zero.ZERO
        labels.append(Label(axes, (state,) * len(axes), tensor if known and operand.exact else None))
    full = _full(op, tensors)
    returned = sample.run(full)
    by_identity = {id(tensor): i for i, tensor in enumerate(full.tensors)}
    sources: list[int | None] = []
    for argument in op._schema.arguments:
        value = full.arguments[argument.name]
        if value is None and "Tensor" in str(argument.type):
            sources.append(None)
        sources += [None if t is None else by_identity[id(t)] for t in tensors_in(value)]
    operands = [None if i is None else labels[i] for i in sources]
    shapes = [tuple(r.shape) for r in returned]
    call = Call(op, full.arguments, operands, shapes, units, Reason("", op=str(op), node="brute_force"))
    results = rule.apply(call)
    assert [label.shape for label in results] == shapes, f"{op}, {sample}: labels of {[r.shape for r in results]} for {shapes}"
    return Trial(op, sample, tensors, call, labels, results, sources, _unread(rule, call))


def _full(op: OpOverload, tensors: Sequence[Tensor]) -> Context:
    return Context(op, [t.clone() for t in tensors], [tuple(t.shape) for t in tensors])


def _unread(rule: Rule, call: Call) -> set[int]:
    """Return the results that a pattern marks as of no interest."""
    if not isinstance(rule, Pattern):
        return set()
    text = rule.pattern if isinstance(rule.pattern, str) else rule.pattern(call)
    return {i for i, shape in enumerate(parse(text)[1]) if shape is None}


def take(tensor: Tensor, keep: Sequence[Keep]) -> Tensor:
    """Return the kept positions of a tensor."""
    for d, flags in enumerate(keep):
        if not flags.all():
            tensor = tensor.index_select(d, torch.from_numpy(np.flatnonzero(flags)))
    return tensor.clone()


def reduced(trial: Trial, tensors: Sequence[Tensor], cut: Cut) -> list[Tensor]:
    """Return what the call gives on the kept positions."""
    small = [take(tensor, keep) for tensor, keep in zip(tensors, cut.keeps, strict=True)]
    shapes = [tuple(t.shape) for t in tensors]
    return trial.sample.run(Context(trial.op, small, shapes, cut.keeps, cut.results, cut.names))


def _along(values: Tensor, rank: int, dim: int) -> Tensor:
    return values.reshape([-1 if d == dim else 1 for d in range(rank)])


def compensated(trial: Trial, tensors: Sequence[Tensor], keeps: Keeps, choice: int = 0) -> list[Tensor]:
    """Return what the full call gives when its mixing points pass over removed positions.

    Args:
        trial: the call.
        tensors: its operands.
        keeps: which positions are there to stay.
        choice: which of the operands that meet at a mixing point is corrected; one is to be enough.
    """
    context = _full(trial.op, tensors)
    by_axis: dict[int, list[Mixing]] = {}
    for mixing in trial.call.mixings:
        by_axis.setdefault(id(mixing.axis), []).append(mixing)
    factor, special = 1.0, False
    for mixings in by_axis.values():
        kind = mixings[0].kind
        if trial.sample.reference and kind not in _ALWAYS_FILLED:
            special = True
            continue
        # One factor of a product is enough; any other operand needs its own correction.
        for mixing in [mixings[choice % len(mixings)]] if kind == "contract" else mixings:
            _fill(context, trial, mixing, keeps)
        if kind == "mean":
            size, kept = mixings[0].axis.size, _kept(trial, mixings[0], keeps)
            factor *= size / kept
    if special and trial.sample.reference:
        flags = [[torch.from_numpy(keep).double() for keep in axes] for axes in keeps]
        with torch.no_grad():
            return list(trial.sample.reference(context, flags))
    results = trial.sample.run(context)
    return results if factor == 1.0 else [result * factor for result in results]


def _kept(trial: Trial, mixing: Mixing, keeps: Keeps) -> int:
    source = trial.sources[mixing.operand]
    assert source is not None
    return int(keeps[source][mixing.dim].sum())


def _fill(context: Context, trial: Trial, mixing: Mixing, keeps: Keeps) -> None:
    """Fill the removed positions of a mixing point with what changes nothing there."""
    source = trial.sources[mixing.operand]
    assert source is not None
    gone = ~_along(torch.from_numpy(keeps[source][mixing.dim]), context[source].dim(), mixing.dim)
    context[source].masked_fill_(gone, _FILLS[mixing.kind])


def removals(trial: Trial, seed: int, most: int = 1000) -> list[Cut]:
    """Return what some units leave: every one alone, or a random choice of that many, and two random sets of them."""
    units = trial.removable()
    rng = random.Random(seed)
    sets = [[u] for u in (units if len(units) <= most else rng.sample(units, most))]
    sets += [rng.sample(units, rng.randint(2, max(2, len(units) // 2))) for _ in range(2) if len(units) > 2]
    return [cut for cut in map(trial.without, sets) if not cut.leaves_nothing]


def check_sound(trial: Trial, seed: int) -> None:
    """Check that the call without some units gives what the masked call gives, without these units."""
    choices = max((sum(m.axis is n.axis for n in trial.call.mixings) for m in trial.call.mixings), default=1)
    for cut in removals(trial, seed):
        where = f"{trial.op}, {trial.sample}, {cut}"
        try:
            small = reduced(trial, trial.tensors, cut)
        except (RuntimeError, IndexError, ValueError) as error:
            raise AssertionError(f"{where}: {error}") from error
        for choice in range(choices):
            full = compensated(trial, trial.tensors, cut.keeps, choice)
            for r, (one, other) in enumerate(zip(small, full, strict=True)):
                if r in trial.unread:
                    continue
                dropped = take(other, cut.results[r])
                assert one.shape == dropped.shape, f"{where}: result {r} is {list(one.shape)}, not {list(dropped.shape)}"
                assert trial.sample.random or same(one, dropped), f"{where}: result {r} differs by {_distance(one, dropped)}"


def same(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are equal to rounding."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return bool((one == other).all())
    return bool(torch.isclose(one, other, rtol=1e-10, atol=1e-10, equal_nan=True).all())


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one.to(torch.complex128) - other.to(torch.complex128)).abs().max()) if one.numel() else 0.0


def _removed(keeps: Keeps) -> str:
    gone = [(i, d, np.flatnonzero(~k).tolist()) for i, axes in enumerate(keeps) for d, k in enumerate(axes) if not k.all()]
    return ", ".join(f"{i}[{d}]{positions}" for i, d, positions in gone) or "nothing"


# Zeros.


def state_combinations(sample: Sample, most: int = 8) -> list[tuple[Zero, ...]]:
    """Return what operands may hold at removed positions: all combinations, or some; no mask is laid over whole numbers."""
    choices = [(Zero.FINITE,) if operand.counts else (Zero.ZERO, Zero.FINITE) for operand in sample.operands]
    every = list(itertools.islice(itertools.product(*choices), 4096))
    if len(every) <= most:
        return every
    return [every[0], every[-1], *random.Random(len(every)).sample(every[1:-1], most - 2)]


@dataclass(frozen=True)
class Claim:
    """What a rule says that stands at the removed positions of a result's dimension, and what was seen there."""

    states: tuple[Zero, ...]
    result: int
    dim: int
    claimed: Zero
    seen: Zero


def zero_claims(trial: Trial, states: Sequence[Zero], seed: int) -> list[Claim]:
    """Return what the rule claims and what is there, for every dimension of the results that may lose positions."""
    claims: dict[tuple[int, int], Zero] = {}
    for cut in removals(trial, seed, 4):
        tensors = [
            _zeroed(tensor, keep) if state is Zero.ZERO else tensor
            for tensor, keep, state in zip(trial.tensors, cut.keeps, states, strict=True)
        ]
        for r, result in enumerate(compensated(trial, tensors, cut.keeps)):
            for d, keep in enumerate(cut.results[r]):
                if r not in trial.unread and not keep.all():
                    # Where several dimensions lose positions at once, each of them answers for those that the others keep.
                    at = tuple(~k if k is keep else k for k in cut.results[r])
                    seen = _seen(take(result, at))
                    claims[r, d] = min(claims.get((r, d), seen), seen)
    found = [Claim(tuple(states), r, d, trial.results[r].zeros[d], seen) for (r, d), seen in claims.items()]
    return sorted(found, key=lambda claim: (claim.result, claim.dim))


def _zeroed(tensor: Tensor, keep: Sequence[Keep]) -> Tensor:
    tensor = tensor.clone()
    for d, flags in enumerate(keep):
        tensor.masked_fill_(~_along(torch.from_numpy(flags), tensor.dim(), d), 0)
    return tensor


def _seen(values: Tensor) -> Zero:
    if not torch.isfinite(values).all():
        return Zero.UNKNOWN
    return Zero.FINITE if values.any() else Zero.ZERO


# Strictness.


def needlessly_whole(op: OpOverload, rule: Rule, sample: Sample, *, known: bool, seeds: Sequence[int]) -> list[tuple[int, int]]:
    """Return the (operand, dimension) of axes of which the rule keeps positions that could go."""
    trials = [apply_rule(op, rule, sample, draw(sample, seed), known=known) for seed in seeds]
    found = []
    for i, axes in enumerate(trials[0].rows):
        for d, units in enumerate(axes):
            held = np.flatnonzero((units == -1).all(1))
            if len(units) > 1 and len(held) and _can_go(trials, i, d, held.tolist()):
                found.append((i, d))
    return found


def _can_go(trials: Sequence[Trial], operand: int, dim: int, positions: Sequence[int]) -> bool:
    """Tell whether every position can go, together with the same position of some axes of the same size."""
    trial = trials[0]
    size = trial.labels[operand].shape[dim]
    places = [
        (side, i, d)
        for side, labels in ((0, trial.labels), (1, trial.results))
        for i, la in enumerate(labels)
        for d in range(len(la))
    ]
    alike = [p for p in places if (trial.labels, trial.results)[p[0]][p[1]].shape[p[2]] == size and p != (0, operand, dim)]
    subsets = (set(some) for count in range(len(alike) + 1) for some in itertools.combinations(alike[:8], count))
    for partners in itertools.islice(subsets, _MOST_PARTNERS):
        chosen = {(0, operand, dim), *partners}
        if all(_drops(t, chosen, p) for t in trials for p in positions):
            return True
    return False


def _drops(trial: Trial, chosen: set[tuple[int, int, int]], position: int) -> bool:
    """Tell whether one position of the chosen axes can go."""

    def keeps(side: int, labels: Sequence[Label]) -> Keeps:
        return [
            tuple(np.arange(n) != position if (side, i, d) in chosen else np.full(n, True) for d, n in enumerate(label.shape))
            for i, label in enumerate(labels)
        ]

    kept, kept_results = keeps(0, trial.labels), keeps(1, trial.results)
    try:
        small = reduced(trial, trial.tensors, Cut(kept, kept_results, {}))
    except (RuntimeError, IndexError, ValueError):
        return False
    filled = [_zeroed(tensor, keep) for tensor, keep in zip(trial.tensors, kept, strict=True)]
    for tensors in (trial.tensors, filled):
        try:
            full = trial.sample.run(_full(trial.op, tensors))
        except (RuntimeError, IndexError, ValueError):
            continue
        if all(same(s, take(f, k)) for s, f, k in zip(small, full, kept_results, strict=True)):
            return True
    return False
