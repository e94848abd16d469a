"""Runs a graph node by node, with hooks.

:class:`NodeRunner` is the one interpreter of this package. A hook is a function that the runner calls at each node:

==========  ==================================  =====================================================================
``before``  ``before(node)``                    the node runs next; its operands are computed
``call``    ``call(function, args, kwargs)``    in place of ``function(*args, **kwargs)``, for functions and modules
``after``   ``after(node, value)``              the node returned ``value``, which later nodes may change in place
``rescue``  ``rescue(node, operands, error)``   the operation raised ``error`` on the operands: returns a value, or raises
==========  ==================================  =====================================================================

Each hook is optional; a runner without hooks computes the same as the graph's ``forward``. Placeholders and the output are
nodes too: ``after`` sees the inputs and the result. The shapes of all values, and the number of calls of each function:

>>> gm, shapes, calls = fx.symbolic_trace(nn.Sequential(nn.Linear(3, 2), nn.ReLU())), {}, collections.Counter()
>>> def after(node, value):
...     shapes[node.name] = tuple(value.shape)
>>> def call(function, args, kwargs):
...     calls[str(function)] += 1
...     return function(*args, **kwargs)
>>> result = NodeRunner(gm, call=call, after=after).run(*in_order(gm, ((torch.ones(4, 3),), {})))
>>> shapes
{'input_1': (4, 3), '_0': (4, 2), '_1': (4, 2), 'output': (4, 2)}
>>> calls["ReLU()"]
1

After a failed run ``runner.at`` is the node whose operation raised the error. It is None if a hook raised it: then the error
is a bug of this package, not a property of the graph. A caller that converts errors of a graph reads ``at`` first.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from fxprune.torch_internals.graphs import is_flattened
from fxprune.torch_internals.interrupts import let_interrupts_in
from fxprune.torch_internals.tensors import pytree

Call = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
Rescue = Callable[[fx.Node, Any, Exception], Any]


def in_order(gm: fx.GraphModule, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Any]:
    """Return one value for each input node of the graph; ``inputs`` are positional and keyword inputs of its forward."""
    args, kwargs = inputs
    if is_flattened(gm):
        bound = inspect.signature(gm.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        return pytree.tree_leaves([*bound.args, *bound.kwargs.values()])
    bound = _signature(gm.graph).bind(*args, **kwargs)
    bound.apply_defaults()
    return [*bound.args]


def _signature(graph: fx.Graph) -> inspect.Signature:
    """Return the signature of a graph's forward, which may not have been compiled."""
    parameters = []
    for node in graph.find_nodes(op="placeholder"):
        name = str(node.target)
        kind = inspect.Parameter.VAR_POSITIONAL if name.startswith("*") else inspect.Parameter.POSITIONAL_OR_KEYWORD
        default = node.args[0] if node.args else inspect.Parameter.empty
        parameters.append(inspect.Parameter(name.lstrip("*"), kind, default=default))
    return inspect.Signature(parameters)


class NodeRunner(fx.Interpreter):
    """Runs a graph node by node and calls hooks, without the records that torch's interpreter keeps for tracers.

    With ``keep_values`` it holds every value until the end of the run, else until the last node that reads the value has run.
    ``at`` is the node whose operation runs, or failed; None while hooks run.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        *,
        before: Callable[[fx.Node], None] | None = None,
        call: Call | None = None,
        after: Callable[[fx.Node, Any], None] | None = None,
        rescue: Rescue | None = None,
        keep_values: bool = False,
    ) -> None:
        super().__init__(gm, garbage_collect_values=not keep_values)
        self.extra_traceback = False  # the caller names the node
        self.at: fx.Node | None = None
        self._before, self._call, self._after, self._rescue = before, call, after, rescue

    def run(self, *values: Any, initial_env: dict[fx.Node, Any] | None = None, enable_io_processing: bool = False) -> Any:
        """Run the graph on one value for each of its input nodes, as :func:`in_order` gives them; return the output's value."""
        self.at = None
        try:
            return super().run(*values, initial_env=initial_env, enable_io_processing=enable_io_processing)
        finally:
            self.env, self.args_iter = {}, iter(())  # keeps no value alive

    def run_node(self, n: fx.Node) -> Any:
        """Run one node between its hooks."""
        let_interrupts_in()
        if self._before is not None:
            self._before(n)
        self.at = n
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        try:
            value = getattr(self, n.op)(n.target, args, kwargs)
        except Exception as error:
            if self._rescue is None:
                raise
            value = self._rescue(n, (args, kwargs), error)
        self.at = None
        if self._after is not None:
            self._after(n, value)
        return value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function."""
        return target(*args, **kwargs) if self._call is None else self._call(target, args, kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module."""
        return self.call_function(self.submodules.get(target) or self.fetch_attr(target), args, kwargs)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an attribute of the graph's module; torch.fx looks for each part of the name twice."""
        try:
            return operator.attrgetter(target)(self.module)
        except AttributeError:
            return super().get_attr(target, args, kwargs)  # its error names the missing part


class NodeByNode(nn.Module):
    """A runner as a module, under which the graph is ``gm``, so that ``torch.func.functional_call`` can replace its tensors."""

    def __init__(self, runner: NodeRunner) -> None:
        super().__init__()
        self.gm, self.runner = runner.module, runner

    def forward(self, *values: Any) -> Any:
        """Run the graph on one value for each of its input nodes; return the output's value."""
        return self.runner.run(*values)
