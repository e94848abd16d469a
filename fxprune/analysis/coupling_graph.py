"""The networkx graph of an analysis, and its files."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable

import networkx as nx
import numpy as np

from fxprune.algebra.axes import NONE, Axis
from fxprune.algebra.contents import Content
from fxprune.algebra.units import Units
from fxprune.analysis.groups import Group
from fxprune.analysis.steps import Step
from fxprune.errors import AnalysisValueError
from fxprune.rules.labels import Label

GroupsOn = Callable[[Axis], tuple[str, ...]]


def coupling_graph(units: Units, groups: Iterable[Group], steps: Iterable[Step]) -> nx.MultiGraph[str]:
    """Return the graph of parameter axes and of the operations that positions with units pass.

    A parameter or buffer axis is a node like ``"conv1.weight[0]"``. A call is a node like ``"conv1:aten.conv2d.default"``, with
    a number behind it where a graph node calls the operator several times. An edge leads from a parameter axis or call to the
    call that reads an axis with units from there.
    """
    group_of = np.full(units.count, NONE, np.intp)
    for group in groups:
        group_of[group.units] = group.index

    @functools.cache
    def groups_of(content: Content) -> tuple[str, ...]:
        return tuple(str(n) for n in np.unique(group_of[content.owned.units]) if n != NONE)

    def groups_on(axis: Axis) -> tuple[str, ...]:
        return groups_of(units.content(axis))

    graph: nx.MultiGraph[str] = nx.MultiGraph()
    places: dict[int, str] = {}  # by number of the step
    for number, step in enumerate(steps):
        if step.tracked is not None:
            for dim, axis in enumerate(step.tracked.label.axes):
                if on_axis := groups_on(axis):
                    graph.add_node(f"{step.tracked.name}[{dim}]", kind="axis", size=axis.size, groups=" ".join(on_axis))
            places[number] = step.tracked.name
            continue
        edges = list(_edges(step.operands, places, groups_on))
        if not edges and not any(groups_on(axis) for label in step.results for axis in label.axes):
            continue
        places[number] = name = _free_name(graph, f"{step.node}:{step.op}")
        graph.add_node(name, kind="op", node=step.node, op=step.op)
        for source, passing in edges:
            graph.add_edge(source, name, groups=" ".join(passing))
    return graph


def _edges(operands: Iterable[Label], places: dict[int, str], groups_on: GroupsOn) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Yield the parameter axis or call that each operand with groups comes from, and the groups."""
    for label in operands:
        if (source := places.get(label.producer)) is None:
            continue
        passing: dict[str, None] = {}
        for dim, groups in enumerate(map(groups_on, label.axes)):
            if groups and ":" not in source:
                yield f"{source}[{dim}]", groups
            passing |= dict.fromkeys(groups)
        if passing and ":" in source:
            yield source, tuple(passing)


def _free_name(graph: nx.MultiGraph[str], name: str) -> str:
    numbered = (f"{name}#{k}" for k in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if free not in graph)


def write_graph(graph: nx.MultiGraph[str], path: str | os.PathLike[str]) -> None:
    """Write a coupling graph as GraphML or DOT, by the ending of the file's name."""
    path = os.fspath(path)
    if path.endswith(".graphml"):
        nx.write_graphml(graph, path)
    elif path.endswith(".dot"):
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(_dot(graph))
    else:
        raise AnalysisValueError(f"a graph is saved as .graphml or .dot, not as {path!r}")


def _dot(graph: nx.MultiGraph[str]) -> Iterable[str]:
    """Yield the lines of a DOT file, which networkx writes only with pydot or Graphviz."""
    yield "graph couplings {\n"
    for name, data in graph.nodes(data=True):
        shape = "box" if data["kind"] == "axis" else "ellipse"
        yield f"  {_quoted(name)} [shape={shape}];\n"
    for one, other, data in graph.edges(data=True):
        yield f"  {_quoted(one)} -- {_quoted(other)} [label={_quoted(data['groups'])}];\n"
    yield "}\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
