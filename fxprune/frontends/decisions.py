"""Answers the questions of a model's code that need the number behind a symbolic value: an ``if``, a loop, ``range(n)``.

The nodes that the value is computed from run on tensors without values, at several batch sizes. The answer has to be the same
at every batch size. All other sizes are those of the example, and the graph checks them; if the code asks for nothing but ranks
and dtypes, the graph checks the ranks alone. For ``x`` of shape ``(batch, 3)``::

    if x.shape[1] == 3        True at batch sizes 2, 3, 5 and 4099: the answer is True
    range(len(x))             2, 3, 5 and 4099: TraceError
    if (x > 0).all()          depends on values: TraceError
    int(self.heads)           a buffer that the model does not write to: its number, which the graph checks
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
from fxprune.frontends.form_guards import check_dtype
from fxprune.frontends.torch_export import batched
from fxprune.functional import layers
from fxprune.graph.paths import all_tensors, erase_unused, sources, value_at
from fxprune.graph.side_effects import writer_of
from fxprune.graph.source_lines import code_line
from fxprune.torch_internals.operators import no_modes
from fxprune.torch_internals.switches import modes_unwatched
from fxprune.torch_internals.tensors import pytree

# Batch sizes besides the example's: small ones show most dependences, the large one shows thresholds.
_OTHER_BATCHES = (3, 5, 4099)
_LOOK_UPS = (getattr, operator.getitem)  # computed anew each time, which is faster than the memo
_EQUALITIES = (operator.eq, operator.ne)
_COMPARISONS = (*_EQUALITIES, operator.lt, operator.le, operator.gt, operator.ge)
# Attributes, methods and functions for which a tensor without values gives the answer of the real tensor.
_OF_FORM = ("shape", "size", "dtype", "ndim", "dim", "numel", "nelement", "is_floating_point", "is_complex", "len", "is_nested")


# Of these, those that are the same at all sizes.
_OF_RANK = ("dtype", "ndim", "dim", "is_floating_point", "is_complex", "is_nested")
_SQUEEZES = ("squeeze", "squeeze_")  # whose ranks depend on sizes
_OF_DTYPE = ("dtype", "is_floating_point", "is_complex")


# Stands for every operand of a call in the part of its key that all batch sizes share.
_OPERAND = torch.empty(0)


class _Call:
    """A call of a function, method or module of torch, with a memo of the forms of results that all traces share.

    Args:
        what: the function, the name of the method, or the module.
        args: its positional arguments, :data:`_OPERAND` in the place of operands that depend on the batch size.
        kwargs: its keyword arguments.
    """

    def __init__(self, what: Any, args: Any, kwargs: Any) -> None:
        self._own: list[Tensor] = []  # the tensors among its arguments that are the same at all batch sizes
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
        """Return the result of the call on ``operands``, which ``run`` computes unless the memo has it."""
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
        """Return the key of the call in the memo; None without tensors, or if an operand cannot be part of a key."""
        try:
            given = [frozen(operand, tensors) for operand in operands]
            forms = [*self._forms, *map(Form.of, tensors)]
        except IncomparableError:
            return None
        return PROPAGATION.key(self._what, (self._given, *given), tensors, forms) if tensors else None


_REGISTRIES = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = _REGISTRIES - {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}


def _settings(module: nn.Module, tensors: list[Any]) -> tuple[Any, ...]:
    """Return a key of a module of torch: plain attributes and methods of it and all modules inside.

    Parameters and buffers are added to ``tensors``.

    Raises:
        IncomparableError: the module runs other code than torch's: of another class, a hook, a function as attribute.
    """
    found: list[Any] = [torch.backends.mha.get_fastpath_enabled()]
    for name, part in module.named_modules():
        kind, attributes = type(part), vars(part)
        if not kind.__module__.startswith("torch.nn.modules."):
            raise IncomparableError(f"a module of type {kind.__name__}")
        if any(map(attributes.get, _HOOKS)):
            raise IncomparableError("a module with hooks")
        bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
        # The methods are part of the key, as a program may replace a method of a class of torch.
        found += [name, kind, *[value for base in bases for value in vars(base).values() if type(value) is types.FunctionType]]
        own = {key: value for key, value in attributes.items() if key not in _REGISTRIES}
        found.append(frozen([own, part._parameters, part._buffers], tensors))
    return tuple(found)


class Decisions:
    """The decisions of one trace of the model ``root``; ``call`` is its forward signature bound to the example inputs."""

    def __init__(self, call: inspect.BoundArguments, root: nn.Module) -> None:
        self.taken = False  # whether the trace took any decision
        self.for_several = False  # whether the code asked if the batch is one sample; the answer is no
        self.of_dtype = ""  # where the code asks for a dtype of floating point, which is a constant of the graph
        self._asked_dtype: dict[fx.Node, str] = {}  # inputs with where the code asks for their dtype
        self._by_sizes = False  # whether an answer depends on other than ranks and dtypes
        self._ranked: set[fx.Node] = set()  # nodes with tensors of the same ranks, or a shape of the same length, at all sizes
        self.inputs: dict[fx.Node, Tensor] = {}
        self.given: dict[str, Any] = {}  # the values of the inputs in the example, by the names of their placeholders
        self._root = root
        tensors = batched(call.args, call.kwargs)
        self._batched = {id(tensor) for tensor in tensors}
        # Some code has a path for one sample alone; the graph takes the path for several.
        self._batches = (max(len(tensors[0]), 2) if tensors else 0, *_OTHER_BATCHES)
        self._meta: dict[int, Tensor] = {}  # of parameters and buffers
        self._runs: list[dict[fx.Node, Any]] = [{} for _ in self._batches]
        self._constants: dict[str, Tensor] = {}  # the buffers whose values the code asks for, by name

    def answer(self, node: fx.Node, ask: Callable[[Any], Any]) -> Any:
        """Return ``ask`` of the value of a node; raise TraceError if the answer depends on the batch size or on values.

        A TypeError of a value that is known, such as of the index of a shape, is raised as it is.
        """
        question = f"the code needs the value of node {node.name!r} ({node.target})"
        try:
            found = self._asked(node, ask)
        except Exception as error:  # the nodes need values, or fail at another batch size
            if self._takes_constants(node):
                return self.answer(node, ask)
            known = self._runs[0].get(node, _OPERAND)
            if isinstance(error, TypeError) and type(known) in (torch.Size, tuple, torch.dtype, torch.device):
                raise  # as the code does: torch asks a shape for an index before it takes it for a shape
            raise TraceError(f"{question}: {error}") from error
        if any(value != found[0] for value in found[1:]) or not self._is_free_of_batch(node):
            raise TraceError(f"{question}, which depends on the batch size")
        self.taken = True
        counts = ask in (len, bool) and isinstance(self._runs[0][node], torch.Size) and node in self._ranked
        of_constants = bool(self._constants) and all(read.op != "placeholder" for read in sources(node, lambda _: False))
        self._by_sizes = self._by_sizes or not (counts or of_constants or self._is_of_ranks(node))
        if isinstance(found[0], torch.dtype) and (found[0].is_floating_point or found[0].is_complex):
            self.of_dtype = self.of_dtype or code_line(node)
        name = node.args[1] if node.target is getattr else getattr(node.target, "__name__", node.target)
        if name in _OF_DTYPE and node.op != "placeholder" and node.args[0] in self.inputs:
            self._asked_dtype.setdefault(node.all_input_nodes[0], code_line(node))
        return found[0]

    def _is_ranked(self, node: fx.Node) -> bool:
        """Tell whether ranks, and the lengths of shapes, follow from those of the operands of a node that are ranked."""
        what, value = node.target, self._runs[0][node]
        if not self._ranked.issuperset(node.all_input_nodes) or (node.op == "call_method" and what in _SQUEEZES):
            return False
        if node.op != "call_function":
            return True
        name = getattr(what, "__name__", "")
        if str(what.__module__).partition(".")[0] not in ("torch", "_operator", "builtins") or name in _SQUEEZES:
            return False
        if what is operator.getitem and isinstance(value, torch.Size):
            return len(node.all_input_nodes) == 1
        return not isinstance(value, tuple) or what.__module__ != "_operator" or what in (operator.getitem, operator.add)

    def _is_of_ranks(self, node: fx.Node) -> bool:
        """Tell whether the value of a node is computed from ranks and dtypes alone."""
        if node.target is getattr or node.op == "call_method":
            name = node.args[1] if node.target is getattr else node.target
            return name in _OF_RANK and self._ranked.issuperset(node.all_input_nodes)
        computes = node.op == "call_function" and node.target.__module__ == "_operator" and node.target is not operator.getitem
        return computes and bool(node.all_input_nodes) and all(map(self._is_of_ranks, node.all_input_nodes))

    def _asked(self, node: fx.Node, ask: Callable[[Any], Any]) -> list[Any]:
        with no_modes(), modes_unwatched(), torch.no_grad():
            for ancestor in sorted(sources(node, self._runs[0].__contains__)):
                for env, value in zip(self._runs, self._values(ancestor), strict=True):
                    env[ancestor] = value
                if self._is_ranked(ancestor):
                    self._ranked.add(ancestor)
            return [ask(env[node]) for env in self._runs]

    def _takes_constants(self, node: fx.Node) -> bool:
        """Take the small buffers that a node is computed from for constants; tell whether there are any that were not."""
        behind = list(sources(node, lambda _: False))
        reads = {str(source.target): value_at(self._root, str(source.target)) for source in behind if source.op == "get_attr"}
        new = {name: t for name, t in reads.items() if name not in self._constants and _may_be_constant(t)}
        self._constants |= new
        for env in self._runs if new else ():
            for source in behind:
                env.pop(source, None)
        return bool(new)

    def _values(self, node: fx.Node) -> list[Any]:
        """Return the value of a node at each batch size."""
        if node.op == "placeholder":
            given = self.given[str(node.target)]
            return [pytree.tree_map(functools.partial(self._without_values, batch=batch), given) for batch in self._batches]
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self._root)
            is_unknown = isinstance(value, Tensor) and str(node.target) not in self._constants
            return [self._state(value) if is_unknown else value] * len(self._runs)
        what: Any = self._root.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        if what in _LOOK_UPS or any(_is_known(self._runs[0][read]) for read in node.all_input_nodes):
            return [self._run(what, node, env) for env in self._runs]
        operands: list[fx.Node] = []

        def operand(given: fx.Node) -> Any:
            operands.append(given)
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
        state = {name: self._state(tensor) for name, tensor in all_tensors(list(module.named_modules())).items()}
        return functional_call(module, state, args, kwargs, tie_weights=False)

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
        """Tell whether all numbers that the value of a node is computed from are the same at all batch sizes.

        Three kinds of nodes are allowed besides: a comparison of the batch size with one; an equality of two numbers that
        change alike, as sizes of two inputs; and a shape, whose sizes are looked at where the code takes them.
        """
        waiting, seen = [node], set[fx.Node]()
        while waiting:
            source = waiting.pop()
            if source in seen or (_is_of_tensors(self._runs[0][source]) and not _is_known(self._runs[0][source])):
                continue
            seen.add(source)
            self._check_is_of_form(source)
            if self._is_about_one(source):
                self.for_several = True
                continue
            if source.target in _EQUALITIES and self._is_settled(source):
                continue
            reads_shape = source.target is not operator.getitem and any(
                isinstance(self._runs[0][n], torch.Size) and self._varies(n) for n in source.all_input_nodes
            )
            if not isinstance(self._runs[0][source], torch.Size) and (self._varies(source) or reads_shape):
                return False
            waiting += source.all_input_nodes
        return True

    def _varies(self, side: Any) -> bool:
        values = [env[side] for env in self._runs] if isinstance(side, fx.Node) else []
        return any(not torch.equal(v, values[0]) if _is_known(v) else v != values[0] for v in values)

    def _is_settled(self, node: fx.Node) -> bool:
        """Tell whether the sides of an equality are equal at all batch sizes, or are shapes with other unequal sizes."""
        pairs: list[list[Any]] = [
            [env[side] if isinstance(side, fx.Node) else side for side in node.args] for env in self._runs
        ]
        if all(left == right for left, right in pairs):
            return all(map(self._varies, node.args)) or not any(map(self._varies, node.args))
        if not all(isinstance(side, tuple) for pair in pairs for side in pair):
            return False
        if any(len(left) != len(right) for left, right in pairs):
            return True
        # The sizes of each dimension over the runs.
        lefts, rights = (list(zip(*shapes, strict=True)) for shapes in zip(*pairs, strict=True))
        return any(len({*a}) == len({*b}) == 1 and a != b for a, b in zip(lefts, rights, strict=True))

    def _check_is_of_form(self, node: fx.Node) -> None:
        """Raise TraceError if a node reads an attribute of a tensor that differs on a tensor without values."""
        if not node.args or not isinstance(node.args[0], fx.Node) or not isinstance(self._runs[0][node.args[0]], Tensor):
            return
        if _is_known(self._runs[0][node.args[0]]):
            return
        name = node.args[1] if node.target is getattr else getattr(node.target, "__name__", node.target)
        if name not in _OF_FORM:
            raise TraceError(f"the code decides by the {name!r} of a tensor")

    def _is_about_one(self, node: fx.Node) -> bool:
        """Tell whether a node compares the batch size with 0 or 1, as code for broadcasting does."""
        if node.target not in _COMPARISONS or self._varies(node):
            return False
        varying = [side for side in node.args if isinstance(side, fx.Node) and self._varies(side)]
        others = [side for side in node.args if not self._varies(side)]
        if len(varying) != 1 or not self._is_batch(varying[0]):
            return False
        return all((self._runs[0][side] if isinstance(side, fx.Node) else side) in (0, 1) for side in others)

    def _is_batch(self, node: fx.Node) -> bool:
        """Tell whether a value is the batch size or a multiple of it; another function of it may be 1 at any batch size."""
        sizes = [env[node] for env in self._runs]
        return all(
            type(n) is int and n > 0 and n * self._batches[0] == sizes[0] * b for n, b in zip(sizes, self._batches, strict=True)
        )

    def write_guards(self, graph: fx.Graph) -> None:
        """Check, at the head of a graph, that sizes but the batch's are those of the example, or ranks alone, and dtypes.

        Nodes that only decisions used are erased.
        """
        asked = [n for n, value in self._runs[0].items() if n.op != "placeholder" and not _is_of_tensors(value)]
        erase_unused(sorted({*asked, *graph.find_nodes(op="get_attr")}))
        batches = [node for node, value in self.inputs.items() if id(value) in self._batched]
        with graph.inserting_after(max([*self.inputs, *graph.find_nodes(op="placeholder")])):
            size = graph.call_method("size", (batches[0], 0)) if len(batches) > 1 and self._by_sizes else None
        last = size
        if self._constants:
            self._write_constants(graph)
        for node, where in self._asked_dtype.items():
            with graph.inserting_after(last or max(self.inputs)):
                last = check_dtype(graph, node, self.inputs[node], where)
        for node, value in self.inputs.items():
            expected: list[Any] = list(value.shape) if self._by_sizes else [-1] * value.dim()
            if node in batches and self._by_sizes:
                expected[0] = -1 if node is batches[0] else size
                if all(n == -1 for n in expected):
                    continue
            with graph.inserting_after(last or max(self.inputs)):
                last = graph.call_function(layers.check_shape, (node, expected, node.name))

    def _write_constants(self, graph: fx.Graph) -> None:
        """Check, at the head of a graph, that the buffers whose values decide are as they were."""
        if (writer := writer_of(set(self._constants), graph, self._root)) is not None:
            raise TraceError(f"the code decides by {', '.join(self._constants)}, and writes in node {writer.name!r}")
        for name, buffer in self._constants.items():
            held = buffer.flatten().double().tolist()
            message = (
                f"buffer {name!r}, by which the model's code decides, was {buffer.tolist()} when the graph was captured; "
                "capture the model again for another value"
            )
            with graph.inserting_after(max(graph.find_nodes(op="placeholder"))):
                read = graph.get_attr(name)
            with graph.inserting_after(read):
                graph.call_function(layers.check_constant, (read, held, message))


_LARGEST_CONSTANT = 256  # elements


def _may_be_constant(value: Any) -> bool:
    """Tell whether a tensor is a buffer with values, of few enough elements to check at each call."""
    is_buffer = isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and not value.is_meta
    return is_buffer and value.numel() <= _LARGEST_CONSTANT and not value.is_complex()


def _is_known(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_meta


def _is_of_tensors(value: Any) -> bool:
    if isinstance(value, Tensor) or type(value) in UNCHANGING:  # nearly always
        return isinstance(value, Tensor)
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
