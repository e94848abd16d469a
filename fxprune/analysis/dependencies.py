"""The result of an analysis: groups of units, reasons of whole axes, mixing points, and the graph of couplings."""

from __future__ import annotations

import copy
import difflib
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np
from tabulate import tabulate
from torch import fx

from fxprune.algebra.axes import NONE, Axis, Reason
from fxprune.algebra.contents import Content
from fxprune.algebra.units import Units
from fxprune.analysis.corrections import Correction, Impossible, corrections
from fxprune.analysis.costs import Costs
from fxprune.analysis.coupling_graph import coupling_graph, write_graph
from fxprune.analysis.explanation import Explanation
from fxprune.analysis.grouping import form_groups
from fxprune.analysis.groups import Group, digest
from fxprune.analysis.sources import Tracked
from fxprune.analysis.steps import MixingPoint, Step
from fxprune.errors import PruningIndexError, PruningTypeError, UnknownParameterError
from fxprune.rules.card import Work
from fxprune.rules.labels import Label
from fxprune.torch_internals.tensors import pytree


@dataclass(eq=False)
class Dependencies:
    """The result of :func:`fxprune.analyze`; ``str()`` gives a table of the groups.

    Attributes:
        gm: the graph.
        units: all units, and the equations between them.
        tracked: the parameters and buffers of the graph.
        values: every node's value by node name, a label in place of each tensor.
        points: all mixing points, those of whole axes included.
        work: the floating-point operations of every call.
        steps: parameters and calls in the order of the run.
        without_rule: operators without a rule that met an axis with units, each with its node.
        not_analysed: the nodes that could not run without values, whose axes stay whole.
        groups: the groups that own positions of at least one parameter, in the order of the parameters.
    """

    gm: fx.GraphModule
    units: Units
    tracked: Sequence[Tracked]
    values: dict[str, Any]
    points: Sequence[MixingPoint]
    work: Sequence[Work]
    steps: Sequence[Step]
    without_rule: tuple[str, ...] = ()
    not_analysed: tuple[str, ...] = ()
    groups: tuple[Group, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._hold_what_cannot_go()
        self._hold_what_no_mask_corrects()
        self._hold_what_is_never_combined()
        self.groups = form_groups(self.units, self.tracked, self.work)

    def shapes(self) -> dict[str, list[tuple[int, ...]]]:
        """Return the shapes of the tensors in each node's value, by node name."""
        found = {}
        for name, value in self.values.items():
            leaves = [value] if isinstance(value, Label) else pytree.tree_leaves(value)
            found[name] = [leaf.shape for leaf in leaves if isinstance(leaf, Label)]
        return found

    def _hold_what_cannot_go(self) -> None:
        """Keep unused parameters whole, and units whose removal would leave an axis without positions."""
        made: dict[Content, tuple[Axis, Step]] = {}  # the axis that first has the content, parameters first, and its step
        for step in sorted(self.steps, key=lambda step: step.tracked is None):
            for label in step.results if step.tracked is None else (step.tracked.label,):
                for axis in label.axes:
                    if not axis.is_whole:
                        made.setdefault(self.units.content(axis), (axis, step))
        # Keeping an axis only takes units away, so the test of each content made in front of the loop stays right.
        for content, (axis, step) in made.items():
            if step.tracked is not None and not step.tracked.used:
                self.units.keep_whole(axis, Reason(f"{step.tracked.name!r} is not used by the graph", by_model=True))
            elif content.may_go_at_once:
                name, node = (axis.size, step.node) if step.tracked is None else (repr(step.tracked.name), "")
                self.units.keep_covering_whole(axis, Reason(f"all of an axis of {name} would go together", step.op, node))

    def _hold_what_no_mask_corrects(self) -> None:
        """Keep axes whole for which a masked graph has no correction."""
        any_held = True
        while any_held:  # without an axis that is kept whole from now on another call may need another correction
            any_held = False
            for correction in self.corrections():
                if isinstance(correction, Impossible):
                    why = Reason(correction.text, correction.step.op, correction.step.node)
                    self.units.keep_whole(correction.axis, why)
                    any_held = True

    def corrections(self, is_live: Callable[[Axis], bool] | None = None) -> Iterator[Correction]:
        """Yield what a masked graph has to do at its mixing points, call by call.

        Args:
            is_live: tells whether an axis loses positions; by default every axis with units does.
        """
        live = is_live or (lambda axis: self.units.content(axis).is_live)
        return corrections(self.gm, self.values, self.steps, self.points, self.units, live)

    def _hold_what_is_never_combined(self) -> None:
        """Keep units that reach no mixing point, such as the rows of a position table behind the length of the example."""
        combined = np.zeros(self.units.count + 1, bool)
        combined[NONE] = True
        for content in {self.units.content(point.axis) for point in self.points}:
            combined[content.rows] = True
        axes = {self.units.content(axis): axis for tracked in self.tracked for axis in tracked.label.axes}
        for rows in map(self.units.resolve, axes.values()):
            if not combined[rows].all():
                self.units.keep_units_whole(
                    rows[~combined[rows]], Reason("is not used with inputs like the examples", by_model=True)
                )

    def about(self, gm: fx.GraphModule | None) -> Dependencies:
        """Return the same result about another graph with the same nodes, such as a masked one."""
        found = copy.copy(self)
        vars(found)["gm"] = gm
        return found

    @cached_property
    def costs(self) -> Costs:
        """Counts the positions, parameters and operations that are left when units go."""
        return Costs(self.units, self.steps, self.tracked, self.work)

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 digest, in hex, of all that a plan depends on: names and shapes of the parameters, and the groups on them.

        Neither masks nor the order in which parameters are registered change it.
        """
        names = sorted(f"{t.name} {list(t.label.shape)}" for t in self.tracked if t.is_parameter)
        groups = sorted(digest(group) for group in self.groups)
        return hashlib.sha256("\n".join([*names, *groups]).encode()).hexdigest()

    @property
    def share(self) -> float:
        """The share of the parameters' elements that belong to at least one group, in [0, 1]."""
        total = sum(math.prod(t.label.shape) for t in self.tracked if t.is_parameter)
        return (total - sum(self.outside(self.groups).values())) / total if total else 0.0

    def outside(self, groups: Iterable[Group]) -> dict[str, int]:
        """Return for each parameter how many of its elements belong to none of ``groups``."""
        removed = np.zeros(self.units.count, bool)
        for group in groups:
            removed[group.units] = True
        names = [t.name for t in self.tracked if t.is_parameter]
        return dict(zip(names, self.costs.elements(removed), strict=True))

    @cached_property
    def mixing_points(self) -> tuple[MixingPoint, ...]:
        """The places where positions that can go are combined."""
        return tuple(point for point in self.points if self.units.content(point.axis).is_live)

    def explain(self, name: str, dim: int = 0) -> Explanation:
        """Tell which groups live on an axis, or why it has to stay whole.

        Args:
            name: the dotted name of a parameter or buffer.
            dim: one of its dimensions.

        Returns:
            The explanation; ``print`` it.

        Raises:
            UnknownParameterError: the graph has no such parameter or buffer; the message proposes similar names.
            PruningIndexError: the parameter has no such dimension.

        Example:
            >>> print(deps.explain("fc.weight", dim=0))
            fc.weight[0], 1000 positions: whole: graph output (node 'output')
        """
        tracked = self._find(name)
        rank = len(tracked.label)
        if not isinstance(dim, int) or isinstance(dim, bool):
            raise PruningTypeError(f"dim must be the number of a dimension of {name!r}, not {dim!r}")
        if not -rank <= dim < rank:
            raise PruningIndexError(f"{name!r} of shape {list(tracked.label.shape)} has no dimension {dim}")
        dim %= rank
        axis = tracked.label.axes[dim]
        groups = tuple(g for g in self.groups if any(m.parameter == tracked.name and m.dim == dim for m in g.members))
        rows = self.units.resolve(axis)
        free = int((rows != NONE).any(1).sum())
        return Explanation(name, dim, axis.size, groups, free, tuple(self.units.reasons_of(axis)))

    def _find(self, name: str) -> Tracked:
        if not isinstance(name, str):
            raise PruningTypeError(f"name must be the dotted name of a parameter or buffer, not {name!r}")
        by_name = {n: tracked for tracked in self.tracked for n in tracked.names}
        if name in by_name:
            return by_name[name]
        close = difflib.get_close_matches(name, by_name, 3)
        hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
        raise UnknownParameterError(f"the graph has no parameter or buffer {name!r}{hint}")

    @cached_property
    def graph(self) -> nx.MultiGraph[str]:
        """The couplings: parameter axes and the operations between them, an edge wherever positions that can go pass.

        Nodes have ``kind`` ("axis" or "op"). Edges have ``groups``, the indices of the groups that pass, separated by blanks.
        All attributes are numbers and strings, which ``networkx.write_graphml`` and :meth:`save` take.
        """
        return coupling_graph(self.units, self.groups, self.steps)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :attr:`graph` to a file.

        Args:
            path: the file; ``.graphml`` or ``.dot`` says in which format.

        Raises:
            ValueError: the file's name ends in neither ``.graphml`` nor ``.dot``.
        """
        write_graph(self.graph, path)

    def __str__(self) -> str:
        rows = [
            [g.index, g.size, g.parameters, round(g.flops), len(g.members), _shortened([str(m) for m in g.members])]
            for g in self.groups
        ]
        table = tabulate(rows, ["group", "units", "parameters / unit", "FLOPs / unit", "axes", "members"], intfmt=",")
        total = f"{len(self.groups)} groups, {self.share:.1%} of the parameters in at least one"
        return f"{table}\n{total}"


def _shortened(members: list[str], most: int = 4) -> str:
    rest = len(members) - most
    return ", ".join(members[:most]) + (f" and {rest} more" if rest > 0 else "")
