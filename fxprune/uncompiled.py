"""Stands in for the forward of a graph whose code nobody has asked for yet."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

from torch import fx
from torch.fx.graph import _PyTreeCodeGen


def uncompiled_forward(graph: fx.Graph) -> Callable[..., Any]:
    """Return a ``forward`` with the signature of a graph's, which at the first call makes the code and calls that."""

    def forward(self: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        fx.GraphModule.recompile(self)
        return self.forward(*args, **kwargs)

    parameters = [Parameter("self", Parameter.POSITIONAL_ONLY), *_parameters(graph)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return forward


def _parameters(graph: fx.Graph) -> list[Parameter]:
    codegen, kind = graph._codegen, inspect._ParameterKind.POSITIONAL_OR_KEYWORD
    if isinstance(codegen, _PyTreeCodeGen):
        return [Parameter(name, kind) for name in codegen.pytree_info.orig_args if name != "self"]
    found = []
    for node in graph.find_nodes(op="placeholder"):
        name = str(node.target)
        if name.startswith("**"):
            found.append(Parameter(name[2:], Parameter.VAR_KEYWORD))
        elif name.startswith("*"):
            found.append(Parameter(name[1:], Parameter.VAR_POSITIONAL))
            kind = Parameter.KEYWORD_ONLY
        else:
            found.append(Parameter(name, kind, default=node.args[0] if node.args else Parameter.empty))
    return found
