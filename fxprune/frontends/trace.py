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
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import ParameterProxy, TraceError
from torch.nn.utils.rnn import PackedSequence

from fxprune.errors import CaptureError, InputError, in_short
from fxprune.frontends.decisions import Decisions
from fxprune.frontends.model.hooks import Computing
from fxprune.frontends.model.snapshot import ModelSnapshot
from fxprune.frontends.proxies import OF_VALUES, Place, Proxy, calls_of_values, functions_of_proxies, is_form
from fxprune.frontends.torch_export import check_items, check_value, not_a_container, optional_inputs, swallowed
from fxprune.functional import layers
from fxprune.functional.leaf_cards import is_opaque
from fxprune.graph.metadata import IS_WRAPPED, MODULE, STACK_TRACE
from fxprune.graph.paths import sources, value_at
from fxprune.graph.scripted import Scripted
from fxprune.graph.source_lines import calling_lines
from fxprune.torch_internals.interrupts import let_interrupts_in
from fxprune.torch_internals.operators import TorchDispatchMode
from fxprune.torch_internals.switches import uncompiled
from fxprune.torch_internals.tensors import tensors_in, with_tensors


class Tracer(fx.Tracer):
    """Traces a model over the inputs of one example: tensors become placeholders, other values are fixed and checked.

    Args:
        call: the model's forward signature bound to the example inputs.
        tensors: the model's parameters and buffers by their names, the first name of each first.
        decisions: answers questions about the number behind a symbolic value; ints and floats among the inputs and the shapes
            of parameters are fixed, too. None to raise TraceError at such questions.
    """

    # A buffer read as a constant would go stale when the model's buffer changes.
    proxy_buffer_attributes = True

    def __init__(self, call: inspect.BoundArguments, tensors: dict[str, Tensor], decisions: Decisions | None) -> None:
        super().__init__(autowrap_functions=(*layers.ALL, *OF_VALUES.values()), param_shapes_constant=decisions is not None)
        self._call = call
        self._context = _context()
        self.decisions = decisions
        self._deciding, self._thread = False, threading.get_ident()
        self.written: set[fx.Node] = set()  # inputs, to which the caller sees what the code writes by ``x += y``
        self.refusals: list[tuple[str, Place | None]] = []  # also those that the code catches; questions with their place
        self._lines_around = ""
        self._names = {tensor: name for name, tensor in reversed(tensors.items())}  # the first name of each tensor
        self._optional: dict[str, Any] = {}
        self._trainable: set[str] = set()  # names of parameters, modules and inputs that may require gradients

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the symbolic value of a node."""
        return Proxy(node, self)

    def decide(self, proxy: fx.Proxy, ask: Callable[[Any], Any], place: Place | None = None) -> Any:
        """Return ``ask`` of the number behind a symbolic value; ``place`` is where the code asks."""
        if self.decisions is None:
            raise self.note(TraceError(f"the code needs the value of {proxy.node.format_node()}"), place)
        self._deciding = True
        try:
            return self.decisions.answer(proxy.node, ask)
        except TraceError as error:
            self.note(error, place)
            raise
        finally:
            self._deciding = False

    def note(self, error: Exception, place: Place | None = None) -> Exception:
        """Return an error that only the trace raises, and note it: whoever catches it, the trace is spoilt."""
        self.refusals.append((in_short(error), place))  # the error itself would keep the trace alive
        return error

    def withdraw(self, place: Place) -> None:
        """Forget the questions that torch asked at a place: it wants an index first, and takes a symbolic value as well."""
        while self.refusals and self.refusals[-1][1] == place:
            self.refusals.pop()

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Return the truth of a symbolic value."""
        return bool(self.decide(obj, bool))

    def iter(self, obj: fx.Proxy) -> Iterator[fx.Proxy]:
        """Return the elements of a symbolic value."""
        parts: Any = obj
        return iter([parts[i] for i in range(self.decide(obj, len))])

    def _is_not_traced(self) -> bool:
        """Tell whether a decision or another thread runs the current code; torch.fx hooks module calls of all threads."""
        return self._deciding or threading.get_ident() != self._thread

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Trace a call of a module."""
        if self._is_not_traced():
            return forward(*args, **kwargs)
        around = self.module_stack, self._lines_around
        self.module_stack = self.module_stack.copy()

        def inside_module(*args: Any, **kwargs: Any) -> Any:
            """Call ``forward``; :func:`fxprune.graph.source_lines.calling_lines` knows this frame by its name."""
            self._lines_around = calling_lines(sys._getframe(1), self._lines_around)
            return forward(*args, **kwargs)

        try:
            return super().call_module(m, inside_module, args, kwargs)
        finally:  # also where the code catches an error of the module
            self.module_stack, self._lines_around = around

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return the symbolic value of a parameter or buffer; torch.fx would search all parameters for it."""
        if self._is_not_traced() or not isinstance(attr_val, Tensor):
            return attr_val
        # In torch.fx parameters can have constant shapes, buffers cannot.
        constant = self.param_shapes_constant and isinstance(attr_val, nn.Parameter)
        if (name := self._names.get(attr_val)) is None:  # registered since the trace began, or not at all
            with patch.object(self, "param_shapes_constant", constant):
                return super().getattr(attr, attr_val, parameter_proxy_cache)
        if name not in parameter_proxy_cache:
            make = (lambda node: ParameterProxy(self, node, name, attr_val)) if constant else None  # type: ignore[arg-type]
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {}, proxy_factory_fn=make)
        return parameter_proxy_cache[name]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep torch's own modules as leaves, except modules that hide parameters from passes or have other code."""
        if isinstance(m, Scripted):
            return True
        is_torchs = super().is_leaf_module(m, module_qualified_name) and "forward" not in vars(m)
        return is_torchs and not (nn.utils.parametrize.is_parametrized(m) or is_opaque(m) or isinstance(m, Computing))

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        """Create a node and its symbolic value."""
        try:
            return super().create_proxy(*args, **kwargs)
        except Exception as error:  # torch.fx and create_arg refuse in many ways
            self.note(error)
            raise

    def path_of_module(self, mod: nn.Module) -> str:
        """Return the name of a module."""
        try:
            return super().path_of_module(mod)
        except NameError as error:
            self.note(error)
            raise

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Create a node that names the module whose ``forward`` makes it, and the source line."""
        let_interrupts_in()
        context = _context()
        if context[1:] != self._context[1:] or (context[0] and not self._context[0]):
            raise CaptureError(_SWITCHES)
        node = super().create_node(*args, **kwargs)
        if context != self._context and self._may_have_gradient(node):
            raise CaptureError(_SWITCHES)
        MODULE.set(node, self.scope.module_path)
        STACK_TRACE.set(node, calling_lines(sys._getframe(), self._lines_around).strip())
        return node

    def _may_have_gradient(self, node: fx.Node) -> bool:
        """Tell whether a node is computed from anything that may require gradients, other than by the form of a tensor."""
        leaves = ("call_module", "get_attr", "placeholder")
        return any(source.op in leaves and source.target in self._trainable for source in sources(node, is_form))

    def create_arg(self, a: Any) -> Any:
        """Refuse a tensor that was computed from parameters before the call: in the graph it would be a constant."""
        if type(a) is Proxy:  # as most arguments are, for which torch.fx tests last
            return a.node
        if type(a) in _GRAPH_CONSTANTS:
            return a
        if isinstance(a, dict) and dataclasses.is_dataclass(type(a)):  # of which torch.fx makes a dict
            names = [field.name for field in dataclasses.fields(a)]  # type: ignore[arg-type]
            given = {name: value for name in names if (value := getattr(a, name)) is not None}
            if given.keys() == a.keys():
                return self.create_node("call_function", type(a), (), {k: self.create_arg(v) for k, v in given.items()})
        if isinstance(a, Tensor) and a.grad_fn is not None:
            raise CaptureError(f"the model reads a tensor of shape {tuple(a.shape)} that it computed outside this call")
        try:
            return super().create_arg(a)
        except NotImplementedError as error:
            raise CaptureError(not_a_container(type(a))) from error

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Make one placeholder for each input of the example, and call the model with them as the example does."""
        call = self._call
        parameters = [name for name, _ in self.root.named_parameters(remove_duplicate=False)]
        self._trainable.update(parameters)
        for path in {name.rpartition(".")[0] for name in parameters}:
            self._trainable.update(itertools.accumulate(path.split("."), "{}.{}".format))
        self._optional = optional_inputs(call)
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
        # The code may be another than that of the class, which torch.fx gives.
        return lambda: self.root.forward(*traced.args, **traced.kwargs), []

    def _input(self, name: str, value: Any) -> Any:
        type_expr = type(value) if isinstance(value, bool | int | float | str) else None
        default = (value,) if name in self._optional else ()
        placeholder = self.create_proxy("placeholder", name, default, {}, type_expr=type_expr)
        if any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors_in(value)):
            self._trainable.add(str(placeholder.node.target))
        if self.decisions is not None:
            self.decisions.given[name] = value
        return self._unpack(placeholder, name, value)

    def _unpack(self, proxy: Any, name: str, value: Any) -> Any:
        """Return the input that the model's code gets for ``value``: symbolic tensors inside real containers."""
        kind: Any = type(value)
        # A packed sequence is a tuple that looks at its items; torch's functions take it as a whole.
        if isinstance(value, Tensor | PackedSequence) or (kind in (int, float) and self.decisions is None):
            if isinstance(value, Tensor):
                self.written.add(proxy.node)
                if self.decisions is not None:
                    self.decisions.inputs[proxy.node] = value
            return proxy
        call = functools.partial(self.create_proxy, "call_function", kwargs={})
        if not tensors_in(value):
            check_value(call, proxy, name, value)
            return with_tensors(value, lambda tensor: tensor)  # the code may write into it
        if kind in (list, tuple, dict, collections.OrderedDict):
            check_items(call, proxy, name, value)
        if kind in (list, tuple) or (isinstance(value, tuple) and hasattr(value, "_fields")):
            parts = [self._unpack(proxy[i], f"{name}[{i}]", part) for i, part in enumerate(value)]
            return kind(parts) if kind in (list, tuple) else kind(*parts)
        if kind in (dict, collections.OrderedDict):
            return kind((key, self._unpack(proxy[key], f"{name}[{key!r}]", part)) for key, part in value.items())
        if dataclasses.is_dataclass(value) and not isinstance(value, Mapping):
            fields = [field.name for field in dataclasses.fields(value) if field.init]
            return kind(**{f: self._unpack(getattr(proxy, f), f"{name}.{f}", getattr(value, f)) for f in fields})
        return proxy


def _context() -> tuple[bool, ...]:
    """Return the switches that are set around the current code, which a graph cannot keep."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )


_ADVICE = "pass the positional inputs as a tuple in example_inputs and the keyword inputs as a dict in example_kwargs"
_GRAPH_CONSTANTS = frozenset({int, float, bool, str, type(None), torch.dtype})
_SWITCHES = "the model switches gradients or autocast within forward, which a traced graph cannot keep"


class _NoRandomness(TorchDispatchMode):
    """Refuses random draws on real tensors while tracing: the numbers would become constants of the graph."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            message = f"the model draws random numbers ({func}) that do not depend on its inputs"
            raise self._tracer.note(CaptureError(message))
        return func(*args, **(kwargs or {}))


def as_call(inputs: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a user's example inputs as the positional and the keyword inputs of a call."""
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InputError(f"example_kwargs must be a dict of keyword inputs, not {type(kwargs).__name__}")
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), dict(kwargs or {})


def bind(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], advice: str = _ADVICE) -> inspect.BoundArguments:
    """Return the inputs bound to the signature of the model's ``forward``; raise InputError if they do not fit."""
    signature = inspect.signature(model.forward)
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"the example inputs do not fit {type(model).__name__}.forward{signature}: {error}; {advice}"
        ) from error


class AssignedError(CaptureError):
    """The model's code assigns new tensors to attributes that hold tensors, which a graph cannot do."""


@dataclasses.dataclass(frozen=True)
class Traced:
    """A graph, and the constants that it reads, by the targets of their get_attr nodes."""

    graph: fx.Graph
    constants: dict[str, Any]
    decides: bool  # whether tracing took decisions on the numbers behind symbolic values
    for_several: bool  # whether the code asked if the batch is one sample, and the graph is for more samples
    of_dtype: str  # where the code asks for a dtype that the graph has as a constant; empty if nowhere


def trace(kept: ModelSnapshot, call: inspect.BoundArguments, *, decides: bool = False) -> Traced:
    """Trace a model in its current mode, with and without decisions; ``decides`` says which is tried first.

    Raises:
        CaptureError: both tries fail; the cause is chained.
    """
    try:
        return _traced(kept, call, decides)
    except Exception as first:  # the model's code may raise any error on symbolic values
        try:
            return _traced(kept, call, not decides)
        except Exception as second:
            error = first if decides else second
            raise CaptureError(in_short(error)) from error


def _traced(kept: ModelSnapshot, call: inspect.BoundArguments, decides: bool) -> Traced:
    model = kept.model
    decisions = Decisions(call, model) if decides else None
    tracer = Tracer(call, kept.tensors, decisions)
    with (
        kept.untouched() as changes, _constants_of(model) as constants, _NoRandomness(tracer), functions_of_proxies(),
        uncompiled(), calls_of_values(),
    ):  # fmt: skip
        try:
            graph = tracer.trace(model)
        finally:
            tracer.decisions = None  # torch.fx leaves the tracer in a reference cycle
        if tracer.refusals:
            raise swallowed(tracer.refusals[0][0])
        if decisions is not None and decisions.taken:
            decisions.write_guards(graph)
    _check_names(graph)
    for node in [n for function in OF_VALUES.values() for n in graph.find_nodes(op="call_function", target=function)]:
        IS_WRAPPED.pop(node)  # which is for functions that have a plain name where the code is
    if changes.rebound_tensors:
        raise AssignedError(f"forward assigns a new tensor to {', '.join(changes.rebound_tensors)}")
    if decisions is None:
        return Traced(graph, constants, decides, False, "")
    return Traced(graph, constants, decides, decisions.for_several, decisions.of_dtype)


def _check_names(graph: fx.Graph) -> None:
    """Refuse a function that has the name of a function of torch: the graph's code would call torch's, as it calls by name."""
    functions: set[Any] = {node.target for node in graph.nodes if node.op == "call_function"}
    for function in functions:
        root, *names = f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', '')}".split(".")
        if root != "torch" or type(function) is not types.FunctionType:
            continue
        if value_at(torch, ".".join(names)) is not function:
            where = f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}"
            raise CaptureError(
                f"the function at {where} goes by the name of torch's {'.'.join(names)}, as functools.wraps lets it"
            )


@contextlib.contextmanager
def _constants_of(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Move the attributes that the tracer sets on the model for constants from the model to the dict that is yielded."""
    holders: list[dict[str, Any]] = [vars(model), model._buffers]
    before = {name for holder in holders for name in holder}
    constants: dict[str, Any] = {}
    try:
        yield constants
    finally:
        for holder in holders:
            constants |= {name: holder.pop(name) for name in [n for n in holder if n not in before]}
