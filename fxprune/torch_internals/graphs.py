"""torch.fx and torch.export: what graphs hold besides their nodes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.fx.graph import _PyTreeCodeGen

TRACER_FILE = inspect.getfile(fx.Tracer)
"""Where torch.fx traces. The lines of the model's code end at its function ``trace``: under another name they grow longer."""

graph_assert = torch._assert
"""What torch.fx writes for ``assert`` in a graph; nothing in torch stands for it under a public name."""

OF_CODE = ("_graph", "_code", "_in_spec", "_out_spec")
"""The attributes of a GraphModule that ``recompile`` makes of its graph. If there are more, they are pickled for nothing."""


def has_code(gm: fx.GraphModule) -> bool:
    """Tell whether there is code of a graph."""
    return "_code" in vars(gm)


def forget_code(gm: fx.GraphModule) -> None:
    """Take the code of a graph away."""
    vars(gm).pop("_code", None)


def codegen_of(graph: fx.Graph) -> fx.graph.CodeGen:
    """Return what writes the code of a graph, and knows the structure of its inputs; there is a public way to set it alone."""
    return graph._codegen


def is_flattened(gm: fx.GraphModule) -> bool:
    """Tell whether the inputs of the graph are the leaves of those of its forward, as ``torch.export`` makes it."""
    return isinstance(codegen_of(gm.graph), _PyTreeCodeGen)


def is_erased(node: fx.Node) -> bool:
    """Tell whether a node was erased from its graph."""
    return node._erased


def free_names(graph: fx.Graph) -> None:
    """Let new nodes take the names of those that were erased. If torch changes how names are kept, new nodes get others."""
    names = graph._graph_namespace = type(graph._graph_namespace)()
    for node in graph.nodes:
        names.associate_name_with_obj(node.name, node)
        names._used_names.add(node.name)


def guards_of(program: ExportedProgram) -> list[str]:
    """Return what an exported program asks of its inputs, as Python code over ``L``: ``L['x'].size()[0] >= 2``."""
    guards: Any = program._guards_code
    return list(guards)
