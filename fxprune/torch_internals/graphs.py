"""torch.fx and torch.export: what graphs hold besides their nodes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.fx._pytree import tree_flatten_spec
from torch.fx.graph import _PyTreeCodeGen

TRACER_FILE = inspect.getfile(fx.Tracer)
"""The file of torch.fx's tracer. The lines of the model's code end at its function ``trace``: under another name they go on."""

graph_assert = torch._assert
"""The function that torch.fx calls in a graph for ``assert``; it has no public name."""

assert_async = torch._assert_async
"""Raises RuntimeError with a message unless a tensor is true; compilers and exporters keep it as an operator."""

OF_CODE = ("_graph", "_code", "_in_spec", "_out_spec")
"""The attributes of a GraphModule that ``recompile`` makes of its graph. If torch adds more, they are pickled needlessly."""

COMPILED_CALL = "_compiled_call_impl"
"""The attribute in which ``nn.Module.compile`` keeps the compiled call of this very module; no copy has it."""


def has_code(gm: fx.GraphModule) -> bool:
    """Tell whether a graph has generated code."""
    return "_code" in vars(gm)


def forget_code(gm: fx.GraphModule) -> None:
    """Remove the generated code of a graph."""
    vars(gm).pop("_code", None)


def codegen_of(graph: fx.Graph) -> fx.graph.CodeGen:
    """Return the generator of a graph's code, which knows the structure of the inputs; torch has a public setter, no getter."""
    return graph._codegen


def is_flattened(gm: fx.GraphModule) -> bool:
    """Tell whether the graph's inputs are the leaves of the inputs of its forward, as in a graph of ``torch.export``."""
    return isinstance(codegen_of(gm.graph), _PyTreeCodeGen)


class ExactInputs(_PyTreeCodeGen):
    """Generates code that refuses dicts and lists among the inputs with other keys or more items than the graph has inputs for.

    The code that torch.export generates ignores them.
    """

    def gen_fn_def(self, *args: Any, **kwargs: Any) -> str:
        """Return the head of ``forward``, in which the method ``flattened`` of the graph takes the inputs apart."""
        return super().gen_fn_def(*args, **kwargs).replace("fx_pytree.tree_flatten_spec(", "self.flattened(")


def refuse_other_items(graph: fx.Graph) -> None:
    """Let the code of a graph of torch.export refuse containers with other items, if it has containers among its inputs."""
    codegen = graph._codegen
    if isinstance(codegen, _PyTreeCodeGen) and any(
        not leaf.is_leaf() for spec in _children(codegen.pytree_info.in_spec) for leaf in _children(spec)
    ):
        graph.set_codegen(ExactInputs(codegen.pytree_info))


def flattened(inputs: Any, spec: Any) -> list[Any]:
    """Return the leaves of ``inputs``, which must have the structure ``spec``; raise AssertionError otherwise."""
    _check_items(inputs, spec)
    return tree_flatten_spec(inputs, spec)


def _check_items(value: Any, spec: Any) -> None:
    children = _children(spec)
    if spec.type is dict and isinstance(value, dict):
        if value.keys() != set(spec.context):
            raise AssertionError(
                f"an input has the keys {sorted(map(str, value))}, and had {spec.context} at the capture; {_AGAIN}"
            )
        parts = [value[key] for key in spec.context]
    elif spec.type in (list, tuple) and isinstance(value, list | tuple):
        if len(value) != len(children):
            raise AssertionError(f"an input has {len(value)} items, and had {len(children)} at the capture; {_AGAIN}")
        parts = list(value)
    else:
        return
    for part, child in zip(parts, children, strict=True):
        _check_items(part, child)


def _children(spec: Any) -> list[Any]:
    children: list[Any] = spec.children() if hasattr(spec, "children") else spec.children_specs  # the latter in older torch
    return children


_AGAIN = "capture the model again for other items"


def is_erased(node: fx.Node) -> bool:
    """Tell whether a node was erased from its graph."""
    return node._erased


def free_names(graph: fx.Graph) -> None:
    """Free the names of erased nodes for new nodes. If torch changes how it keeps names, new nodes get other names."""
    names = graph._graph_namespace = type(graph._graph_namespace)()
    for node in graph.nodes:
        names.associate_name_with_obj(node.name, node)
        names._used_names.add(node.name)


def rename_self(graph: fx.Graph) -> None:
    """Rename a node called ``self``, as one that calls a submodule of this name is, which would hide the module in the code."""
    for node in graph.nodes:
        if node.name == "self":
            node._rename("self_value")


def guards_of(program: ExportedProgram) -> list[str]:
    """Return the conditions of an exported program on its inputs, as Python code over ``L``: ``L['x'].size()[0] >= 2``."""
    guards: Any = program._guards_code
    return list(guards)


def transforms(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes that open or close a level of ``torch.func`` or lay tensors into it, as ``torch.export`` records them.

    A graph that fails between two of them leaves the level open for the process.
    """
    calls = [node for node in graph.nodes if node.op == "call_function"]
    return [node for node in calls if str(getattr(node.target, "__module__", "")).startswith("torch._functorch")]
