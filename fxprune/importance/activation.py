"""Activation: the mean magnitude of the values that a unit computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from fxprune.algebra.axes import Flags, Index
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group
from fxprune.errors import FxpruneError, PlanError, PruningTypeError, in_short
from fxprune.graph.interpreter import NodeRunner, in_order
from fxprune.importance.criterion import GroupCriterion, Normalizer, Scorer, short
from fxprune.importance.gradients import undisturbed
from fxprune.importance.weights import Weights, accurate
from fxprune.rules.labels import Label
from fxprune.torch_internals.tensors import pytree


@dataclass(frozen=True, eq=False)
class Activation(GroupCriterion):
    """Score a unit by the mean absolute value at its positions, over all values in the graph that it lives on.

    The graph is run in eval mode, without gradients, and is as before afterwards. Every value counts alike that is computed
    from an input and has an axis with positions of the unit; each is averaged over all other axes and over the batches.
    Elements that are infinite or no numbers, as masks make them of attention scores, are left out of the averages.

    Args:
        batches: the inputs of one call each: a tensor, a tuple or list of positional arguments, or a dict of keyword
            arguments. Gone through once a plan.
        normalizer: the scale that divides the scores of a group: their "mean", "max" or "sum", or "none".

    Raises:
        PruningTypeError: the batches are no iterable, or a dict or a string in place of several inputs.
        PlanError: the normalizer is none of these; when planning, there is no batch, the graph fails on one or gives NaN, or no
            value has units of a group. A value is left out if its size along the units differs from its size at analysis.

    Source: Hu et al. 2016, "Network Trimming", arXiv:1607.03250, and Molchanov et al. 2017, arXiv:1611.06440, which compare
    criteria of activations.

    Example:
        >>> fxprune.plan(deps, 0.5, importance=Activation(images for images, _ in loader))
    """

    batches: Iterable[Any]
    normalizer: Normalizer = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        is_several = hasattr(self.batches, "__iter__") or hasattr(self.batches, "__getitem__")
        if not is_several or isinstance(self.batches, Mapping | str):
            raise PruningTypeError(f"batches must be an iterable of inputs, one for each call, not {short(self.batches)}")

    def prepare(self, deps: Dependencies) -> Scorer:
        """Return the scorer of groups, after a run of the graph on each batch."""
        Weights(deps).check_present()
        with undisturbed(deps.gm), torch.no_grad():
            deps.gm.eval()
            sums = _Sums(deps)
            runner = NodeRunner(deps.gm, after=sums.add)
            for batch in self.batches:
                result = _run(runner, batch, sums.batches)
                if any(isinstance(t, Tensor) and t.isnan().any() for t in pytree.tree_leaves(result)):
                    raise PlanError(f"Activation: the graph gives NaN on batch {sums.batches}, so that its values say nothing")
                sums.batches += 1
        if not sums.batches:
            raise PlanError("batches is empty: there is no input to compute activations from")
        means, seen = sums.means()

        def scorer(group: Group) -> Tensor:
            if not seen[group.units].all():
                raise PlanError(
                    f"no value that the graph computes has all units of {group}: give another importance, or capture the model "
                    'with frontend="export", which writes out what layers compute inside'
                )
            return self.combined([torch.from_numpy(means[group.units])])

        return scorer


def _run(runner: NodeRunner, batch: Any, number: int) -> Any:
    """Return what a graph gives for a batch; raise PlanError if it fails."""
    args = tuple(batch) if isinstance(batch, tuple | list) else () if isinstance(batch, Mapping) else (batch,)
    kwargs = dict(batch) if isinstance(batch, Mapping) else {}
    try:
        return runner.run(*in_order(runner.module, (args, kwargs)))  # type: ignore[arg-type]
    except FxpruneError:
        raise
    except Exception as error:  # operators raise any type on operands that do not fit
        node = f" at node {runner.at.name!r} ({runner.at.op} {runner.at.target})" if runner.at is not None else ""
        given = ", ".join(short(leaf) for leaf in pytree.tree_leaves((args, kwargs)))
        raise PlanError(f"Activation: the graph fails on batch {number}, of {given}{node}: {in_short(error)}") from error


class _Sums:
    """The sums of the absolute values at the positions of units, over all runs of a graph."""

    def __init__(self, deps: Dependencies) -> None:
        self.batches = 0
        self._count = deps.units.count
        self._places: dict[fx.Node, list[tuple[int, int, Index, Index, int]]] = {}  # of the nodes computed from an input
        for node in deps.gm.graph.nodes:
            if node.op == "placeholder" or not self._places.keys().isdisjoint(node.all_input_nodes):
                self._places[node] = [] if node.op == "output" else _live_axes(deps, deps.values.get(node.name))
        # By node, tensor and dimension: units and positions there, the sum of means, the number of means.
        self._sums: dict[tuple[str, int, int], tuple[Index, Index, Any, int]] = {}

    def add(self, node: fx.Node, value: Any) -> None:
        leaves = pytree.tree_leaves(value)
        for leaf, dim, units, positions, size in self._places.get(node, ()):
            tensor = leaves[leaf] if leaf < len(leaves) else None
            if not isinstance(tensor, Tensor) or tensor.shape[dim : dim + 1] != (size,) or tensor.numel() == 0:
                continue
            others = [d for d in range(tensor.dim()) if d != dim]
            magnitudes = accurate(tensor).abs()
            mean = magnitudes.mean(others) if others else magnitudes
            if not mean.isfinite().all():
                # Masked elements of attention scores are -inf, and NaN where all of a row are masked.
                magnitudes = torch.where(magnitudes.isfinite(), magnitudes, torch.nan)
                mean = magnitudes.nanmean(others) if others else magnitudes
            _, _, total, times = self._sums.get((node.name, leaf, dim), (units, positions, 0, 0))
            self._sums[node.name, leaf, dim] = units, positions, total + mean, times + 1

    def means(self) -> tuple[NDArray[np.float64], Flags]:
        """Return for every unit the mean over all values that the unit lives on, and whether there is any."""
        total, values = np.zeros(self._count), np.zeros(self._count)
        for units, positions, summed, times in self._sums.values():
            mean = (summed.double() / times).cpu().numpy()
            owned = np.bincount(units, minlength=self._count)
            here = np.bincount(units, mean[positions], minlength=self._count)
            total += here / np.where(owned, owned, 1)
            values += owned > 0
        return total / np.maximum(values, 1), values > 0


def _live_axes(deps: Dependencies, value: Any) -> list[tuple[int, int, Index, Index, int]]:
    """Return for each axis with units of a node's value: tensor, dimension, units, positions, size of the axis."""
    found = []
    for leaf, label in enumerate(pytree.tree_leaves(value)):
        for dim, axis in enumerate(label.axes if isinstance(label, Label) else ()):
            if axis.size > 1 and (content := deps.units.content(axis)).is_live:
                units, counts, positions, _ = content.owned
                found.append((leaf, dim, np.repeat(units, counts), positions, axis.size))
    return found
