"""Lower: write out the leaf modules that hold given parameters as functional nodes.

``conv1(x)`` becomes ``conv2d(x, conv1.weight, conv1.bias, ...)``: the parameters are read by ``get_attr``, where another
pass can put something between. The module's place in the tree is taken by a :class:`fxprune.graph.parts.Lowered`, which keeps
names and configuration, so that :mod:`fxprune.passes.raise_leaves` can put the module back.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import fx, nn

from fxprune.errors import LoweringError
from fxprune.functional.leaf_cards import card_of
from fxprune.graph.masks import find_parameter
from fxprune.graph.metadata import CALL, LOWERED, PATH
from fxprune.graph.parts import Lowered, Slot
from fxprune.graph.paths import join, replace_modules
from fxprune.passes.graph_pass import GraphPass
from fxprune.torch_internals.tensors import module_hooks


@dataclasses.dataclass(frozen=True)
class Lower(GraphPass):
    """Pass: write out every called leaf module that holds one of the parameters ``names``.

    Requires: the names are parameters of the graph. Ensures: each of them is read by ``get_attr`` alone.

    Example: ``Lower(["conv1.weight"])(gm).graph_module.print_readable()``
    """

    names: tuple[str, ...] | list[str]

    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Write the modules out, in place."""
        return lower(gm, [find_parameter(gm, name) for name in self.names])

    def ensures(self, gm: fx.GraphModule) -> None:
        """Raise AssertionError if a module that the graph calls holds one of the parameters."""
        wanted = {find_parameter(gm, name) for name in self.names}
        for node in gm.graph.find_nodes(op="call_module"):
            held = gm.get_submodule(str(node.target)).parameters()
            assert wanted.isdisjoint(held), f"node {node.name!r} calls a module with one of the parameters"


def lower(gm: fx.GraphModule, parameters: Iterable[nn.Parameter], names: Collection[str] = ()) -> bool:
    """Write out the called leaf modules that hold any of ``parameters``, and the nodes ``names``: all or, on an error, none.

    The graph is not recompiled. Returns whether it changed.

    Raises:
        LoweringError: if a module has no functional form, or has hooks; names node, module and class.
    """
    wanted = set(parameters)
    called = [(node, gm.get_submodule(str(node.target))) for node in gm.graph.find_nodes(op="call_module")]
    leaves = {leaf for node, leaf in called if node.name in names or not wanted.isdisjoint(leaf.parameters())}
    calls = [(node, leaf) for node, leaf in called if leaf in leaves]
    for node, leaf in calls:
        if hooks := [hook for module in leaf.modules() for hook in module_hooks(module)]:
            listed = ", ".join(getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks)
            why = f"its hooks would not be called any more: {listed}"
            raise LoweringError(
                f"node {node.name!r} calls {node.target!r} ({type(leaf).__name__}), which cannot be written out, as {why}. "
                "Remove the hooks first.",
                nodes={node.name: why},
            )
    present, results = set(gm.graph.nodes), dict[fx.Node, fx.Node]()
    try:
        for node, leaf in calls:
            with gm.graph.inserting_before(node):
                results[node] = emit(leaf, str(node.target), gm.graph, node.args, node.kwargs)
    except LoweringError as error:
        for new in [n for n in reversed(gm.graph.nodes) if n not in present]:
            gm.graph.erase_node(new)
        names = [n for n, p in gm.named_parameters(remove_duplicate=False) if p in wanted]
        raise LoweringError(
            f"node {node.name!r} calls {node.target!r} ({type(leaf).__name__}), which holds {', '.join(names)}: {error}. "
            'Capture the model with frontend="export" to mask this parameter.',
            nodes={node.name: str(error)},
        ) from error
    present.update(results.values())
    for new in [n for n in reversed(gm.graph.nodes) if n not in present]:
        if new.users:
            LOWERED.set(new, True)
        else:  # a flag that the form read but did not need
            gm.graph.erase_node(new)
    stand_ins = {leaf: Lowered.of(leaf) for leaf in leaves}
    for node, leaf in calls:
        slots = {read: Slot(f"${k}") for k, read in enumerate(node.all_input_nodes)}
        to_slot: Callable[[fx.Node], Any] = slots.__getitem__
        call, known = (tuple(fx.map_arg(node.args, to_slot)), dict(fx.map_arg(node.kwargs, to_slot))), stand_ins[leaf].calls
        if call not in known:
            known.append(call)
        CALL.set(results[node], known.index(call))
        PATH.set(results[node], str(node.target))
        take_over(node, results[node])
    replace_modules(gm, stand_ins)
    return bool(calls)


def emit(module: nn.Module, path: str, graph: fx.Graph, args: Any, kwargs: Any) -> fx.Node:
    """Write the functional form of ``module`` into ``graph`` at its insertion point; return the node of the result.

    Parameters are read by ``path``, such as "layer1.conv"; ``args`` and ``kwargs`` are those of the call.

    Raises:
        LoweringError: if the class, or this call of it, has no functional form. Nodes written so far stay; the caller removes
            them.
    """
    form = card_of(type(module)).form
    if form is None:
        raise LoweringError(f"modules of class {type(module).__name__} have no functional form")
    view = _LeafView(module, path, graph)
    to_proxy: Callable[[fx.Node], Any] = functools.partial(fx.Proxy, tracer=view._tracer)
    try:
        result = form(view, *fx.map_arg(args, to_proxy), **fx.map_arg(kwargs, to_proxy))
    except Exception as error:  # whatever a module's forward raises on proxies
        raise LoweringError(f"this call of {type(module).__name__} has no functional form: {error}") from error
    assert isinstance(result, fx.Proxy)
    return result.node


class _LeafView:
    """Looks like ``module`` to its own ``forward``, with get_attr proxies for its tensors and its ``training`` flag."""

    def __init__(self, module: nn.Module, path: str, graph: fx.Graph) -> None:
        self.__dict__.update(_module=module, _path=path, _graph=graph, _tracer=fx.proxy.GraphAppendingTracer(graph))

    def __getattr__(self, name: str) -> Any:
        module = self._module
        if name == "training" or module._parameters.get(name, module._buffers.get(name)) is not None:
            return self._read(name)
        if name in module._modules:
            return _LeafView(module._modules[name], join(self._path, name), self._graph)
        member = getattr(type(module), name, None)
        if isinstance(member, types.FunctionType):
            return types.MethodType(member, self)
        return getattr(module, name)

    def _read(self, name: str) -> fx.Proxy:
        node = self._graph.create_node("get_attr", join(self._path, name))
        proxy = self.__dict__[name] = fx.Proxy(node, self._tracer)  # one read for each name
        return proxy

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._tracer.create_proxy("call_function", function, args, kwargs)


def take_over(old: fx.Node, new: fx.Node) -> None:
    """Let ``new`` stand for ``old`` in every respect, its name included, and erase ``old``."""
    new.meta = {**old.meta, **new.meta}
    stand_in(old, new)


def stand_in(old: fx.Node, new: fx.Node) -> None:
    """Let ``new`` have the uses and the name of ``old``, by which an analysis knows its value, and erase ``old``."""
    old.replace_all_uses_with(new)
    name = old.name
    old.graph.erase_node(old)
    new.name = name
