"""The trace front end: symbolic tracing with ``torch.fx``.

Gives a module-level graph: torch's own modules stay leaves, user modules are traced through, sizes stay symbolic.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import inspect
import itertools
import operator
import sys
import threading
import types
import unittest.mock
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import ParameterProxy, Scope, TraceError

from fxprune.errors import CaptureError, InputError, in_short
from fxprune.frontends.decisions import Decisions
from fxprune.frontends.model.snapshot import ModelSnapshot
from fxprune.frontends.proxies import Proxy
from fxprune.functional import layers
from fxprune.functional.leaf_cards import is_opaque
from fxprune.graph.metadata import MODULE, NN_MODULE_STACK, STACK_TRACE
from fxprune.graph.source_lines import calling_lines
from fxprune.torch_internals.graphs import graph_assert
from fxprune.torch_internals.operators import TorchDispatchMode
from fxprune.torch_internals.tensors import pytree


class Tracer(fx.Tracer):
    """Traces a model over the inputs of one example: tensors become placeholders, other values are fixed and checked.

    Args:
        call: the model's forward signature bound to the example inputs.
        tensors: the model's parameters and buffers by their names.
        fixed_numbers: fix ints and floats among the inputs and the shapes of parameters, for models that branch on them.
        decisions: answers what symbolic values cannot; None to refuse.
    """

    # A buffer read as a constant would go stale when the model's buffer changes.
    proxy_buffer_attributes = True

    def __init__(
        self, call: inspect.BoundArguments, tensors: Mapping[str, Tensor], *, fixed_numbers: bool, decisions: Decisions | None
    ) -> None:
        super().__init__(autowrap_functions=layers.ALL, param_shapes_constant=fixed_numbers)
        self._call = call
        self._context = _context()
        self._fixed_numbers = fixed_numbers
        self._decisions = decisions
        self._deciding, self._thread = False, threading.get_ident()
        self._lines_around = ""
        self._called: collections.OrderedDict[str, tuple[str, Any]] = collections.OrderedDict()  # that are being called
        self._names: dict[int, tuple[str, Any]] = {id(tensor): (name, tensor) for name, tensor in tensors.items()}
        self._trainable: set[str] = set()  # parameters, modules and inputs that may ask for gradients

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what the model's code gets for the value of a node."""
        return Proxy(node, self)

    @property
    def decides(self) -> bool:
        """Whether there are answers to what symbolic values cannot tell."""
        return self._decisions is not None

    def forget_decisions(self) -> None:
        """Let go of what was found out for them, since torch.fx leaves a tracer to the garbage collector."""
        self._decisions = None

    def decide(self, proxy: fx.Proxy, ask: Callable[[Any], Any]) -> Any:
        """Return what the model's code asks of a value."""
        if self._decisions is None:
            raise TraceError(f"the code needs the value of {proxy.node.format_node()}")
        self._deciding = True
        try:
            return self._decisions.answer(proxy.node, ask)
        finally:
            self._deciding = False

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Return the truth of a value."""
        return bool(self.decide(obj, bool))

    def iter(self, obj: fx.Proxy) -> Iterator[fx.Proxy]:
        """Return the parts of a value."""
        parts: Any = obj
        return iter([parts[i] for i in range(self.decide(obj, len))])

    def _is_not_traced(self) -> bool:
        """Tell whether the code that runs now is another one: torch.fx traces what any thread does with modules."""
        return self._deciding or threading.get_ident() != self._thread

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Trace a call of a module, unless it is one of those that find a decision, or of another thread."""
        if self._is_not_traced():
            return forward(*args, **kwargs)
        path, kind = self.path_of_module(m), type(m)
        calls = self.num_calls.get(path, 0)
        self.num_calls[path] = calls + 1
        around = self.scope, self._called, self._lines_around
        self.scope = Scope(path, kind)
        # Nodes share it, where torch.fx would copy it for each.
        self._called = collections.OrderedDict(self._called)
        self._called[f"{path}@{calls}" if calls else path] = path, kind
        try:
            if self.is_leaf_module(m, path):
                return self.create_proxy("call_module", path, args, kwargs)
            self._lines_around = calling_lines(sys._getframe(1), self._lines_around)
            return inside_module(forward, args, kwargs)
        finally:
            self.scope, self._called, self._lines_around = around

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return what the model's code gets for a parameter or buffer; torch.fx would look for its name among all of them."""
        if self._is_not_traced() or not isinstance(attr_val, Tensor):
            return attr_val
        name, tensor = self._names.get(id(attr_val), ("", None))
        # Only of parameters does torch.fx know how to have constant shapes.
        constant = self.param_shapes_constant and isinstance(attr_val, nn.Parameter)
        if tensor is not attr_val:  # registered since the trace began, or not at all
            with unittest.mock.patch.object(self, "param_shapes_constant", constant):
                return super().getattr(attr, attr_val, parameter_proxy_cache)
        if name not in parameter_proxy_cache:
            make = functools.partial(_of_known_shape, self, name, attr_val) if constant else None
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {}, proxy_factory_fn=make)
        return parameter_proxy_cache[name]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep torch's own modules whole, unless they hide parameters that no pass could reach."""
        is_torchs = super().is_leaf_module(m, module_qualified_name)
        return is_torchs and not (nn.utils.parametrize.is_parametrized(m) or is_opaque(m))

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Create a node that remembers which module's ``forward`` made it."""
        context = _context()
        if context[1:] != self._context[1:] or (context[0] and not self._context[0]):
            raise CaptureError(_SWITCHES)
        node = super().create_node(*args, **kwargs)
        if self._called:
            NN_MODULE_STACK.set(node, self._called)
        if context != self._context and self._may_have_gradient(node):
            raise CaptureError(_SWITCHES)
        MODULE.set(node, self.scope.module_path)
        STACK_TRACE.set(node, calling_lines(sys._getframe(), self._lines_around).strip())
        return node

    def _may_have_gradient(self, node: fx.Node) -> bool:
        """Tell whether anything that a node is computed from may ask for gradients; of the form of a tensor nothing does."""
        waiting, seen = [node], set[fx.Node]()
        while waiting:
            one = waiting.pop()
            if one in seen or _is_form(one):
                continue
            seen.add(one)
            if one.op in ("call_module", "get_attr", "placeholder") and one.target in self._trainable:
                return True
            waiting += one.all_input_nodes
        return False

    def create_arg(self, a: Any) -> Any:
        """Refuse a tensor that was computed from parameters before: in the graph it would be a constant."""
        kind = type(a)
        # Most are of a few types, which torch.fx would come to at last.
        if kind is Proxy:
            return a.node
        if kind in _GRAPH_CONSTANTS:
            return a
        if kind is tuple or kind is list:
            return kind([self.create_arg(part) for part in a])
        if kind is dict and all(type(key) is str for key in a):
            return {key: self.create_arg(part) for key, part in a.items()}
        if isinstance(a, Tensor) and a.grad_fn is not None:
            raise CaptureError(f"the model reads a tensor of shape {tuple(a.shape)} that it computed outside this call")
        return super().create_arg(a)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Make one placeholder for each input of the example, and call the model with them as the example does."""
        call = self._call
        parameters = [name for name, _ in self.root.named_parameters(remove_duplicate=False)]
        self._trainable.update(parameters)
        for path in {name.rpartition(".")[0] for name in parameters}:
            self._trainable.update(itertools.accumulate(path.split("."), "{}.{}".format))
        arguments: dict[str, Any] = {}
        for name, value in call.arguments.items():
            kind = call.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                arguments[name] = tuple(self._input(f"{name}_{i}", v) for i, v in enumerate(value))
            elif kind is inspect.Parameter.VAR_KEYWORD:
                arguments[name] = {key: self._input(key, v) for key, v in value.items()}
            else:
                arguments[name] = self._input(name, value)
        traced = inspect.BoundArguments(call.signature, arguments)
        return lambda: root_fn(self.root, *traced.args, **traced.kwargs), []

    def _input(self, name: str, value: Any) -> Any:
        type_expr = type(value) if isinstance(value, bool | int | float | str) else None
        placeholder = self.create_proxy("placeholder", name, (), {}, type_expr=type_expr)
        if any(isinstance(leaf, Tensor) and not _is_integral(leaf) for leaf in _leaves(value)):
            self._trainable.add(str(placeholder.node.target))
        if self._decisions is not None:
            self._decisions.note_input(name, value)
        return self._unpack(placeholder, name, value)

    def _unpack(self, proxy: Any, name: str, value: Any) -> Any:
        """Return what the model's code gets for ``value``: real containers, so that it can ask what they are."""
        if isinstance(value, Tensor) or (type(value) in (int, float) and not self._fixed_numbers):
            if isinstance(value, Tensor) and self._decisions is not None:
                self._decisions.inputs[proxy.node] = value
            return proxy
        if not _has_tensor(value):
            _check_fixed(self, proxy, name, value)
            return value
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._unpack(proxy[i], f"{name}[{i}]", v) for i, v in enumerate(value)))
        if type(value) in (list, tuple):
            return type(value)(self._unpack(proxy[i], f"{name}[{i}]", v) for i, v in enumerate(value))
        if dataclasses.is_dataclass(value) and not isinstance(value, Mapping):
            fields = [field.name for field in dataclasses.fields(value) if field.init]
            make: Any = type(value)
            return make(**{f: self._unpack(getattr(proxy, f), f"{name}.{f}", getattr(value, f)) for f in fields})
        if type(value) in (dict, collections.OrderedDict):
            return type(value)((k, self._unpack(proxy[k], f"{name}[{k!r}]", v)) for k, v in value.items())
        return proxy


def inside_module(forward: Any, args: Any, kwargs: Any) -> Any:
    """Call what is inside a module; the lines around this are known, see :func:`fxprune.graph.source_lines.calling_lines`."""
    return forward(*args, **kwargs)


def _of_known_shape(tracer: fx.Tracer, name: str, parameter: Any, node: fx.Node) -> fx.Proxy:
    return ParameterProxy(tracer, node, name, parameter)


def _context() -> tuple[bool, ...]:
    """Return what surrounds the code that runs now and would be lost in a graph."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )


def _check_fixed(tracer: fx.Tracer, placeholder: fx.Proxy, name: str, value: Any) -> None:
    message = f"input {name!r} was {value!r} when the graph was captured; capture the model again for another value"
    if value is None:
        tracer.create_proxy("call_function", layers.check_none, (placeholder, message), {})
        return
    same = tracer.create_proxy("call_function", operator.eq, (placeholder, value), {})
    tracer.create_proxy("call_function", graph_assert, (same, message), {})


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in _leaves(value))


def _leaves(value: Any) -> list[Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, Mapping):
        return [leaf for field in dataclasses.fields(value) for leaf in _leaves(getattr(value, field.name))]
    return pytree.tree_leaves(value)


def _is_integral(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


_GRAPH_CONSTANTS = frozenset({int, float, bool, str, type(None), torch.dtype})
_SWITCHES = "the model switches gradients or autocast within forward, which a traced graph cannot keep"
# What is asked of the form of a tensor; its values have no part in the answer.
_OF_FORM = ("shape", "size", "dtype", "device", "ndim", "dim", "numel", "layout", "is_cuda")


def _is_form(node: fx.Node) -> bool:
    name = node.args[1] if node.target is getattr else node.target if node.op == "call_method" else None
    return name in _OF_FORM


class _NoRandomness(TorchDispatchMode):
    """Refuses random draws on real tensors while tracing: they would become constants of the graph."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise CaptureError(f"the model draws random numbers ({func}) that do not depend on its inputs")
        return func(*args, **(kwargs or {}))


def bind(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
    """Return the inputs bound to the model's ``forward``.

    Raises:
        InputError: if they do not fit the signature.
    """
    signature = inspect.signature(model.forward)
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"the example inputs do not fit {type(model).__name__}.forward{signature}: {error}; pass the positional "
            "inputs as a tuple in example_inputs and the keyword inputs as a dict in example_kwargs"
        ) from error


@dataclasses.dataclass(frozen=True)
class Traced:
    """A graph, and the constants that tracing made by the names it reads them under.

    ``decides`` says that symbolic values alone did not do, ``for_several`` that the model's code asked whether there is one
    sample only, and the graph is of the other case.
    """

    graph: fx.Graph
    constants: dict[str, Any]
    decides: bool = False
    for_several: bool = False


def trace(kept: ModelSnapshot, call: inspect.BoundArguments, *, decides: bool = False) -> Traced:
    """Trace a model in its current mode.

    Args:
        kept: the model; left as it was.
        call: example inputs bound to its ``forward``.
        decides: start with what the other mode needed.

    Raises:
        CaptureError: if the model's code needs more than symbolic values; the cause is chained.
    """
    if "forward" in vars(kept.model):
        raise CaptureError("forward was replaced on the instance, where symbolic tracing does not look")
    try:
        return _traced(kept, call, decides)
    except Exception as first:  # the model's own code fails in any way it likes on symbolic values
        try:
            return _traced(kept, call, not decides)
        except Exception as second:
            error = first if decides else second
            raise CaptureError(in_short(error)) from error


def _traced(kept: ModelSnapshot, call: inspect.BoundArguments, decides: bool) -> Traced:
    model = kept.model
    with kept.untouched() as changes, _constants_of(model) as constants, _NoRandomness():
        decisions = Decisions(call, model) if decides else None
        tracer = Tracer(call, kept.tensors, fixed_numbers=decides, decisions=decisions)
        try:
            graph = tracer.trace(model)
        finally:
            tracer.forget_decisions()
        _check_names(graph)
        if decisions is not None and decisions.taken:
            decisions.write_guards(graph)
    if changes.rebound_tensors:
        raise CaptureError(f"forward assigns a new tensor to {', '.join(changes.rebound_tensors)}")
    return Traced(graph, constants, decides, decisions is not None and decisions.for_several)


def _check_names(graph: fx.Graph) -> None:
    """Refuse functions that go by the name of one of torch's, which torch.fx writes by name: its code would call torch's."""
    functions: set[Any] = {node.target for node in graph.nodes if node.op == "call_function"}
    for function in functions:
        root, *names = f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', '')}".split(".")
        if root != "torch" or type(function) is not types.FunctionType:
            continue
        named: Any = torch
        for name in names:
            named = getattr(named, name, None)
        if named is not function:
            where = f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}"
            raise CaptureError(
                f"the function at {where} goes by the name of torch's {'.'.join(names)}, as functools.wraps lets it"
            )


@contextlib.contextmanager
def _constants_of(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Take back the attributes that the tracer sets on the model for constants, and hand them out."""
    before = set(vars(model)) | set(model._buffers)
    constants: dict[str, Any] = {}
    try:
        yield constants
    finally:
        for name in [n for n in vars(model) if n not in before]:
            constants[name] = vars(model).pop(name)
        for name in [n for n in model._buffers if n not in before]:
            constants[name] = model._buffers.pop(name)
