"""Activation: how large the values are that a unit computes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from fxprune.algebra.axes import Index
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group
from fxprune.errors import PlanError
from fxprune.graph.interpreter import NodeRunner
from fxprune.importance.criterion import Criterion, Normalizer, Scorer, checked, normalized
from fxprune.importance.gradients import undisturbed
from fxprune.importance.weights import accurate
from fxprune.rules.labels import Label
from fxprune.torch_internals.tensors import pytree


@dataclass(frozen=True, eq=False)
class Activation(Criterion):
    """Score a unit by the mean absolute value at its positions, over all values in the graph that it lives on.

    The graph is run in eval mode, without gradients, and is as before afterwards. Every value counts alike that is computed
    from an input and has an axis with positions of the unit; each is averaged over all other axes and over the batches.

    Args:
        batches: the inputs of one call each: a tensor, a tuple or list of positional arguments, or a dict of keyword
            arguments. Gone through once a plan.
        normalizer: what the scores of a group are divided by: their "mean", "max" or "sum", or by nothing, "none".

    Raises:
        PlanError: the normalizer is none of these; when planning, there is no batch, or no value has units of a group. A value
            whose size along the units differs from that at analysis is left out.

    Source: Hu et al. 2016, "Network Trimming", arXiv:1607.03250, and Molchanov et al. 2017, arXiv:1611.06440, which compare
    criteria of activations.

    Example:
        >>> fxprune.plan(deps, 0.5, importance=Activation(images for images, _ in loader))
    """

    batches: Iterable[Any]
    normalizer: Normalizer = "mean"

    def __post_init__(self) -> None:
        checked("mean", self.normalizer)

    def prepare(self, deps: Dependencies) -> Scorer:
        """Return what scores the groups of a graph, after it ran on all batches."""
        with undisturbed(deps.gm), torch.no_grad():
            deps.gm.eval()
            sums = _Sums(deps)
            runner = NodeRunner(deps.gm, after=sums.add)
            runner.extra_traceback = True  # as nothing else names the node that fails on a batch
            for batch in self.batches:
                runner.run(*deps.gm.graph.process_inputs(*_arguments(deps.gm, batch)))
                sums.batches += 1
        if not sums.batches:
            raise PlanError("batches is empty: there is no input to compute activations from")
        means = sums.means()

        def scorer(group: Group) -> Tensor:
            if not sums.seen[group.units].all():
                raise PlanError(f"no value that the graph computes has all units of {group}: give another importance")
            return normalized(torch.from_numpy(means[group.units]), self.normalizer)

        return scorer


class _Sums:
    """The sums of the absolute values at the positions of units, over all runs of a graph."""

    def __init__(self, deps: Dependencies) -> None:
        self.batches = 0
        self.seen = np.zeros(deps.units.count, bool)  # the units that some value had
        self._places = {name: _live_axes(deps, value) for name, value in deps.values.items()}
        self._from_input: set[fx.Node] = set()
        for node in deps.gm.graph.nodes:
            if node.op == "placeholder" or not self._from_input.isdisjoint(node.all_input_nodes):
                self._from_input.add(node)
        # By node, tensor and dimension: the units and positions there, the sum of means, how many.
        self._sums: dict[tuple[str, int, int], tuple[Index, Index, Tensor, int]] = {}

    def add(self, node: fx.Node, value: Any) -> None:
        """Add the value of a node."""
        if node.op != "output" and node in self._from_input and self._places.get(node.name):
            leaves = pytree.tree_leaves(value)
            for leaf, dim, units, positions, size in self._places[node.name]:
                if leaf < len(leaves) and _fits(leaves[leaf], dim, size):
                    self._add((node.name, leaf, dim), leaves[leaf], units, positions)

    def _add(self, key: tuple[str, int, int], value: Tensor, units: Index, positions: Index) -> None:
        dim = key[2]
        mean = accurate(value).abs().mean([d for d in range(value.dim()) if d != dim]) if value.dim() > 1 else value.abs()
        known = self._sums.get(key)
        total, times = (known[2] + mean, known[3] + 1) if known else (mean, 1)
        self._sums[key] = (units, positions, total, times)

    def means(self) -> NDArray[np.float64]:
        """Return for every unit the mean over all values that it lives on."""
        count = len(self.seen)
        total, values = np.zeros(count), np.zeros(count)
        for units, positions, summed, times in self._sums.values():
            mean = (summed.double() / times).cpu().numpy()
            owned = np.bincount(units, minlength=count)
            here = np.bincount(units, mean[positions], minlength=count)
            total += here / np.where(owned, owned, 1)
            values += owned > 0
        self.seen |= values > 0
        return total / np.maximum(values, 1)


def _fits(value: Any, dim: int, size: int) -> bool:
    return isinstance(value, Tensor) and dim < value.dim() and value.shape[dim] == size and value.numel() > 0


def _live_axes(deps: Dependencies, value: Any) -> list[tuple[int, int, Index, Index, int]]:
    """Return for each axis of a node's value that has units: which tensor, which dimension, units and positions, its size."""
    found = []
    for leaf, label in enumerate(pytree.tree_leaves(value)):
        for dim, axis in enumerate(label.axes if isinstance(label, Label) else ()):
            if axis.size > 1 and (content := deps.units.content(axis)).is_live:
                units, counts, positions, _ = content.owned
                found.append((leaf, dim, np.repeat(units, counts), positions, axis.size))
    return found


def _arguments(gm: fx.GraphModule, batch: Any) -> list[Any]:
    """Return the positional arguments of a call on a batch."""
    if not isinstance(batch, Mapping):
        return list(batch) if isinstance(batch, tuple | list) else [batch]
    bound = inspect.signature(gm.forward).bind(**batch)
    bound.apply_defaults()
    return list(bound.arguments.values())
