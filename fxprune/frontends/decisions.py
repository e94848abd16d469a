"""Answers what a model's code asks of a symbolic value where only a number will do: an ``if``, a loop, ``range(n)``.

The answer is found by running, without values, what the asked one is computed from, at several batch sizes. It is given
where it does not depend on the batch size; all other sizes are those of the example then, and the graph checks that they
stay so. A question about values, such as ``if (x > 0).all()``, has no answer here.
"""

from __future__ import annotations

import functools
import inspect
import operator
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.proxy import TraceError

from fxprune.abstract.form import Form, IncomparableError, frozen
from fxprune.abstract.propagation import PROPAGATION, UNCHANGING, Effect
from fxprune.frontends.torch_export import batched
from fxprune.functional import layers
from fxprune.torch_internals.operators import no_modes
from fxprune.torch_internals.switches import modes_unwatched
from fxprune.torch_internals.tensors import pytree

# Batch sizes besides the example's: a neighbour tells most dependences, a large one thresholds.
_OTHER_BATCHES = (3, 5, 4099)
_LOOK_UPS = (getattr, operator.getitem)  # which take less time than to find out whether they are known
_EQUALITIES = (operator.eq, operator.ne)
_COMPARISONS = (*_EQUALITIES, operator.lt, operator.le, operator.gt, operator.ge)
# What a tensor without values answers as the real one would.
_OF_FORM = ("shape", "size", "dtype", "ndim", "dim", "numel", "nelement", "is_floating_point", "is_complex", "len")


# Stands for operands where the rest of a call is looked at.
_OPERAND = torch.empty(0)


class _Call:
    """A call of one of torch's functions, methods or modules, which a node makes at each of the batch sizes.

    Many layers of a network are alike, and what one trace has found out of a call's result is known to all others.

    Args:
        what: the function, the name of the method, or the module.
        args: its positional arguments; :data:`_OPERAND` stands for what differs from one batch size to another.
        kwargs: its keyword arguments.
    """

    def __init__(self, what: Any, args: Any, kwargs: Any) -> None:
        self._own: list[Tensor] = []  # what it is given that is the same at all batch sizes
        self._what: Any = None
        try:
            if isinstance(what, nn.Module):
                self._what = type(what), *_settings(what, self._own)
            elif isinstance(what, str) or str(what.__module__).partition(".")[0] in ("torch", "_operator"):
                self._what = what
            self._given = frozen((args, kwargs), self._own)
            self._forms = [*map(Form.of, self._own)]
        except (IncomparableError, AttributeError):
            self._what = None

    def result(self, operands: list[Any], run: Callable[[], Any]) -> Any:
        """Return what ``run`` gives, which makes the call with these operands, or what it gave for such operands before."""
        tensors: list[Tensor] = []
        key = None if self._what is None else self._key(operands, tensors)
        if (known := PROPAGATION.known(key)) is not None:
            return known.result(tensors.__getitem__, lambda form, *_: form.on_meta())
        with torch.device("meta"):
            result = run()
        if key is None:
            return result
        try:
            effect = Effect.of(result, tensors)
        except IncomparableError:
            return result
        is_meta = all(output.form is None or output.form.device.type == "meta" for output in effect.outputs)
        if is_meta and key == self._key(operands, []):  # an operand may have another form by now
            PROPAGATION.remember(key, effect)
        return result

    def _key(self, operands: list[Any], tensors: list[Tensor]) -> Any:
        """Return what decides on the form of a result; None if there are no tensors, or if that cannot be said."""
        try:
            given = [frozen(operand, tensors) for operand in operands]
            forms = [*self._forms, *map(Form.of, tensors)]
        except IncomparableError:
            return None
        return PROPAGATION.key(self._what, (self._given, *given), tensors, forms) if tensors else None


_REGISTRIES = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = _REGISTRIES - {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}


def _settings(module: nn.Module, tensors: list[Any]) -> tuple[Any, ...]:
    """Return what decides, besides its arguments, on the form of a result of a module of torch.

    That is its mode, its other plain attributes and the methods of its class, and so for all modules inside.

    Args:
        module: the module.
        tensors: the parameters and buffers are added to it.

    Raises:
        IncomparableError: code that is not torch's takes part: another class, a hook, an attribute that is a function.
    """
    found: list[Any] = [torch.backends.mha.get_fastpath_enabled()]
    for name, part in module.named_modules():
        kind, attributes = type(part), vars(part)
        if not kind.__module__.startswith("torch.nn.modules."):
            raise IncomparableError(f"a module of type {kind.__name__}")
        if any(map(attributes.get, _HOOKS)):
            raise IncomparableError("a module with hooks")
        bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
        # Somebody may replace a method.
        found += [name, kind, *[value for base in bases for value in vars(base).values() if type(value) is types.FunctionType]]
        own = {key: value for key, value in attributes.items() if key not in _REGISTRIES}
        found.append(frozen([own, part._parameters, part._buffers], tensors))
    return tuple(found)


class Decisions:
    """The decisions that one trace takes.

    Args:
        call: the model's forward signature bound to the example inputs.
        root: the model.

    Attributes:
        taken: whether there was any.
        for_several: whether one was whether there is more than one sample, which was answered by yes.
    """

    def __init__(self, call: inspect.BoundArguments, root: nn.Module) -> None:
        self.taken = self.for_several = False
        self.inputs: dict[fx.Node, Tensor] = {}
        self._root = root
        tensors = batched(call.args, call.kwargs)
        self._batched = {id(tensor) for tensor in tensors}
        # One sample is a case of its own to some code, and the graph is to be of the other.
        self._batches = (max(len(tensors[0]), 2) if tensors else 0, *_OTHER_BATCHES)
        self._meta: dict[int, Tensor] = {}  # of parameters and buffers
        self._given: dict[str, Any] = {}
        self._runs: list[dict[fx.Node, Any]] = [{} for _ in self._batches]

    def note_input(self, name: str, value: Any) -> None:
        """Note what the placeholder of a name was given in the example."""
        self._given[name] = value

    def answer(self, node: fx.Node, ask: Callable[[Any], Any]) -> Any:
        """Return ``ask(value of the node)``.

        Raises:
            TraceError: it depends on the batch size or on values.
        """
        question = f"the code needs the value of node {node.name!r} ({node.target})"
        try:
            with no_modes(), modes_unwatched(), torch.no_grad():
                for one in _with_ancestors(node, self._runs[0]):
                    for env, value in zip(self._runs, self._values(one), strict=True):
                        env[one] = value
                found = [ask(env[node]) for env in self._runs]
        except Exception as error:  # a value is needed, or the code takes no other batch size
            raise TraceError(f"{question}: {error}") from error
        if any(value != found[0] for value in found[1:]) or not self._is_free_of_batch(node):
            raise TraceError(f"{question}, which depends on the batch size")
        self.taken = True
        return found[0]

    def _values(self, node: fx.Node) -> list[Any]:
        """Return the value of a node at each of the batch sizes."""
        if node.op == "placeholder":
            given = self._given[str(node.target)]
            return [pytree.tree_map(functools.partial(self._without_values, batch=batch), given) for batch in self._batches]
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self._root)
            return [self._state(value) if isinstance(value, Tensor) else value] * len(self._runs)
        what: Any = self._root.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        if what in _LOOK_UPS:
            return [self._run(what, node, env) for env in self._runs]
        operands: list[fx.Node] = []

        def operand(one: fx.Node) -> Any:
            operands.append(one)
            return _OPERAND

        call = _Call(what, *fx.map_arg((node.args, node.kwargs), operand))
        return [
            call.result([env[one] for one in operands], functools.partial(self._run, what, node, env)) for env in self._runs
        ]

    def _run(self, what: Any, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
        if node.op == "call_module":
            return self._call(what, args, kwargs)
        return getattr(args[0], what)(*args[1:], **kwargs) if node.op == "call_method" else what(*args, **kwargs)

    def _call(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return functional_call(module, {name: self._state(t) for name, t in tensors.items()}, args, kwargs)

    def _without_values(self, value: Any, batch: int) -> Any:
        if not isinstance(value, Tensor):
            return value
        shape = (batch, *value.shape[1:]) if id(value) in self._batched else tuple(value.shape)
        return torch.empty(shape, dtype=value.dtype, device="meta")

    def _state(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._meta:
            self._meta[id(tensor)] = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return self._meta[id(tensor)]

    def _is_free_of_batch(self, node: fx.Node) -> bool:
        """Tell whether no number that the value of a node is computed from changes with the batch size.

        Two that do may be compared, for they are the same at all batch sizes if they are at these. A whole shape may, too, if
        only sizes are taken from it, which count for themselves.
        """
        waiting, seen = [node], set[fx.Node]()
        while waiting:
            one = waiting.pop()
            if one in seen or _is_of_tensors(self._runs[0][one]):
                continue
            seen.add(one)
            self._check_is_of_form(one)
            if self._is_about_one(one):
                self.for_several = True
                continue
            if one.target in _EQUALITIES and self._is_settled(one):
                continue
            is_shape = isinstance(self._runs[0][one], torch.Size)
            if not is_shape and (self._varies(one) or (one.target is not operator.getitem and self._reads_varying_shape(one))):
                return False
            waiting += one.all_input_nodes
        return True

    def _varies(self, side: Any) -> bool:
        values = [env[side] for env in self._runs] if isinstance(side, fx.Node) else []
        return any(value != values[0] for value in values)

    def _reads_varying_shape(self, node: fx.Node) -> bool:
        return any(isinstance(self._runs[0][n], torch.Size) and self._varies(n) for n in node.all_input_nodes)

    def _is_settled(self, node: fx.Node) -> bool:
        """Tell whether two sides are equal at all batch sizes, or shapes that differ in other sizes than the batch's."""
        pairs: list[list[Any]] = [
            [env[side] if isinstance(side, fx.Node) else side for side in node.args] for env in self._runs
        ]
        if all(one == other for one, other in pairs):
            return all(map(self._varies, node.args)) or not any(map(self._varies, node.args))
        if not all(isinstance(side, tuple) for pair in pairs for side in pair):
            return False
        if any(len(one) != len(other) for one, other in pairs):
            return True
        left, right = (list(zip(*(pair[i] for pair in pairs), strict=True)) for i in (0, 1))  # by dimension, over the runs
        return any(len({*a}) == len({*b}) == 1 and a != b for a, b in zip(left, right, strict=True))

    def _check_is_of_form(self, node: fx.Node) -> None:
        """Raise TraceError if a node asks a tensor for something that one without values has not as the real one has."""
        if not node.args or not isinstance(node.args[0], fx.Node) or not isinstance(self._runs[0][node.args[0]], Tensor):
            return
        name = node.args[1] if node.target is getattr else getattr(node.target, "__name__", node.target)
        if name not in _OF_FORM:
            raise TraceError(f"the code decides by the {name!r} of a tensor")

    def _is_about_one(self, node: fx.Node) -> bool:
        """Tell whether a node compares the batch size with one, or whether there is one sample: code for broadcasting."""
        if node.target not in _COMPARISONS or self._varies(node):
            return False
        varying = [side for side in node.args if isinstance(side, fx.Node) and self._varies(side)]
        others = [side for side in node.args if not self._varies(side)]
        if len(varying) != 1 or not self._is_batch(varying[0]):
            return False
        return all((self._runs[0][side] if isinstance(side, fx.Node) else side) in (0, 1) for side in others)

    def _is_batch(self, node: fx.Node) -> bool:
        """Tell whether a value is the batch size or a multiple of it; what else is computed from it may be one at any size."""
        sizes = [env[node] for env in self._runs]
        return all(
            type(n) is int and n > 0 and n * self._batches[0] == sizes[0] * b for n, b in zip(sizes, self._batches, strict=True)
        )

    def write_guards(self, graph: fx.Graph) -> None:
        """Check, at the head of a graph, that all sizes but the batch's are those of the example.

        What only decisions were for is taken out of the graph.
        """
        for node in reversed(graph.nodes):
            asked = node in self._runs[0] and node.op != "placeholder" and not _is_of_tensors(self._runs[0][node])
            if not node.users and (asked or node.op == "get_attr"):
                graph.erase_node(node)
        batches = [node for node, value in self.inputs.items() if id(value) in self._batched]
        with graph.inserting_after(max([*self.inputs, *graph.find_nodes(op="placeholder")])):
            size = graph.call_method("size", (batches[0], 0)) if len(batches) > 1 else None
        last = size
        for node, value in self.inputs.items():
            expected: list[Any] = list(value.shape)
            if node in batches:
                expected[0] = -1 if node is batches[0] else size
            if all(n == -1 for n in expected):
                continue
            with graph.inserting_after(last or max(self.inputs)):
                last = graph.call_function(layers.check_shape, (node, expected, node.name))


def _is_of_tensors(value: Any) -> bool:
    if isinstance(value, Tensor) or type(value) in UNCHANGING:  # nearly always
        return isinstance(value, Tensor)
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def _with_ancestors(node: fx.Node, known: dict[fx.Node, Any]) -> list[fx.Node]:
    """Return the nodes that the value of a node is computed from, itself included, that have no value yet, in order."""
    found, waiting = set[fx.Node](), [node]
    while waiting:
        one = waiting.pop()
        if one not in found and one not in known:
            found.add(one)
            waiting += one.all_input_nodes
    return sorted(found)
