"""The export front end: ``torch.export``, for models that symbolic tracing cannot follow.

Gives an ATen-level graph whose parameters are read under their original names.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP

from fxprune.errors import CaptureError, in_short
from fxprune.frontends.model.snapshot import ModelSnapshot
from fxprune.functional import layers
from fxprune.graph.metadata import MODULE, NN_MODULE_STACK
from fxprune.graph.paths import erase_unused, value_at
from fxprune.torch_internals.graphs import graph_assert, guards_of, refuse_other_items, transforms
from fxprune.torch_internals.interrupts import let_interrupts_in
from fxprune.torch_internals.refusals import noting_refusals
from fxprune.torch_internals.switches import masks_unseen, no_fast_path, quiet, unlogged, unprinted
from fxprune.torch_internals.tensors import pytree


def swallowed(refusal: str) -> CaptureError:
    """Return the error for a refusal that the model's code has caught, after which it went another way than in a real run."""
    return CaptureError(f"the model's code catches an error that only the capture raises, and goes on: {refusal}")


def not_a_container(kind: type | str) -> str:
    """Say that a graph cannot take or return objects of a class, and what to do."""
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return (
        f"an input or output is of class {name}, which no graph holds: let the model take and return tensors, tuples, lists, "
        "dicts or dataclasses (one that returns a cache does with use_cache=False among example_kwargs), or register the class "
        "for torch.export by torch.utils._pytree.register_pytree_node, as the library that it is from may do on request"
    )


def optional_inputs(call: inspect.BoundArguments) -> dict[str, Any]:
    """Return the last inputs that are None, flags or numbers: the graph has them as constants, so calls may omit them.

    Inputs before others are left out, as Python allows a default only where all later arguments have one.
    """
    named: list[tuple[str, Any]] = []
    for name, value in call.arguments.items():
        is_rest = call.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        named += value.items() if is_rest else [(name, value)]
    plain = (type(None), bool, int, float, str)
    return dict(itertools.takewhile(lambda item: isinstance(item[1], plain), reversed(named)))


_UNKNOWN = re.compile(r"(?:Found|Unsupported input type) <class '([^']+)'>")


@dataclasses.dataclass(frozen=True)
class Exported:
    """A graph, and the constants that it reads, by the targets of their get_attr nodes."""

    graph: fx.Graph
    constants: dict[str, Any]
    fixed_batch: str | None  # why the model fixes the batch size; None if every batch size fits
    for_several: bool  # whether the export took the batch for more than one sample


def export(kept: ModelSnapshot, args: tuple[Any, ...], kwargs: dict[str, Any], *, free_batch: bool) -> Exported:
    """Export a model in its current mode; ``free_batch`` leaves the batch size free where the model allows it.

    Raises:
        CaptureError: ``torch.export`` refuses the model; the cause is chained.
    """
    let_interrupts_in()
    model, refusals = kept.model, list[str]()

    def note(error: Exception) -> None:
        refusals.append(in_short(error, 2))  # the error itself would keep tensors alive

    try:
        with (
            kept.untouched(),
            quiet(),
            unlogged(),
            unprinted(),
            no_fast_path(),
            masks_unseen(),
            noting_refusals(note),
        ):
            shapes = _dynamic(model, args, kwargs) if free_batch else None
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
            if transforms(program.graph):  # the nodes between would run only while a level of torch.func is open
                program = program.run_decompositions({})
            # The guards are written into the graph below, as nodes that script and pickle.
            unlifted = program.module(check_guards=False)
    except Exception as error:  # torch.export raises many kinds of errors, and the model may raise any
        if unknown := _UNKNOWN.match(str(error)):
            raise CaptureError(not_a_container(unknown[1])) from error
        raise CaptureError(in_short(error, 2)) from error
    if refusals:
        raise swallowed(refusals[0])
    graph = unlifted.graph
    if left := transforms(graph):
        raise CaptureError(f"node {left[0].name!r} opens a level of torch.func, which torch.export does not write out")
    graph.owning_module = None
    refuse_other_items(graph)
    for node in graph.nodes:
        MODULE.set(node, _module_path(node))
    # Such as the second name of a tied parameter, or a parameter that the code does not use.
    erase_unused(graph.find_nodes(op="get_attr"))
    for node in graph.find_nodes(op="call_function", target=_aten._assert_tensor_metadata.default):
        graph.erase_node(node)  # under autocast, or in another precision, it would fail
    _reshape_what_attention_gives(graph)
    fixed_batch = _why_batch_is_fixed(program, graph, batched(args, kwargs)) if free_batch else None
    _write_guards(graph)
    read = {str(node.target): value_at(unlifted, str(node.target)) for node in graph.find_nodes(op="get_attr")}
    of_model = {*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers(remove_duplicate=False))}
    constants = {target: value for target, value in read.items() if target not in of_model}
    return Exported(graph, constants, fixed_batch, free_batch)


_aten = torch.ops.aten
_MOVES = (_aten.transpose.int, _aten.permute.default, _aten.unsqueeze.default, _aten.squeeze.dim, _aten.select.int)


def _reshape_what_attention_gives(graph: fx.Graph) -> None:
    """Put ``reshape`` in place of ``view`` where the result of attention is viewed.

    How that result lies in memory depends on the kernel. Code lays it out with ``contiguous``, which the exported graph has
    only if the kernel of the example makes it necessary: ``heads.transpose(1, 2).contiguous().view(2, 5, 8)`` may come out as
    ``view(transpose(heads, 1, 2), [2, 5, 8])``, which fails with every kernel that gives ``heads`` in their own order.
    """
    for node in graph.find_nodes(op="call_function", target=_aten.view.default):
        source = node.args[0]
        while source.target in _MOVES:
            source = source.args[0]
        if source.target is _aten.scaled_dot_product_attention.default:
            node.target = _aten.reshape.default


def _module_path(node: fx.Node) -> str:
    stack = NN_MODULE_STACK.get(node) or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    return "" if path.startswith("_empty_nn_module_stack") else path.partition("@")[0]


def _why_batch_is_fixed(program: ExportedProgram, graph: fx.Graph, inputs: list[Tensor]) -> str | None:
    """Return the reason of ``torch.export`` for which the graph does not fit every batch size; None without one."""
    if not inputs:
        return None
    symbols = set(map(_symbol, of_any_batch(graph)))
    if not symbols:
        return "its code needs the number itself"
    for symbol, bounds in program.range_constraints.items():
        if symbol in symbols and (bounds.lower > 2 or bounds.upper.is_Integer):
            return f"its code depends on the batch size being in [{bounds.lower}, {bounds.upper}]"
    broken = [guard for guard in guards_of(program) if not _holds_for_all_batches(guard)]
    return f"its code depends on {broken[0]}" if broken else None


def _holds_for_all_batches(guard: str) -> bool:
    """Evaluate a guard, such as ``L['x'].size()[0] <= 64``, at several batch sizes; all inputs have the same."""
    names = dict.fromkeys(re.findall(r"L((?:\[[^\]]+\])+)\.size\(\)\[0\]", guard))
    others = re.sub(r"L(?:\[[^\]]+\])+\.size\(\)\[0\]", "", guard)
    if re.search(r"L\[", others):
        return False  # the guard is about another size than the batch's
    # The numbers in the guard are tried as well, as the batch size may be compared with them.
    named = {int(n) + d for n in re.findall(r"\b\d+\b", others) for d in (-1, 0, 1)}
    for batch in sorted({2, 3, 4, 5, 7, 64, 1021} | {n for n in named if n > 1}):
        code = guard
        for name in names:
            code = code.replace(f"L{name}.size()[0]", str(batch))
        try:
            if not eval(code, {"__builtins__": {}}, dict(SYMPY_INTERP)):
                return False
        except Exception:  # the guard calls a function that only torch knows
            return False
    return True


def batched(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the input tensors whose first dimension is the batch: all with the size of the first tensor there."""
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim() > 0]
    return [t for t in tensors if t.shape[0] == tensors[0].shape[0]]


def of_any_batch(graph: fx.Graph) -> list[fx.Node]:
    """Return the inputs of an exported graph whose first size is a symbol."""
    values = [(node, node.meta.get("val")) for node in graph.find_nodes(op="placeholder")]
    return [node for node, value in values if isinstance(value, Tensor) and value.dim() > 0 and _is_free(value.shape[0])]


def _dynamic(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    shapes = torch.export.ShapesCollection()
    for tensor in batched(args, kwargs):
        shapes[tensor] = {0: torch.export.Dim.AUTO}
    return shapes.dynamic_shapes(model, args, kwargs)


def _write_guards(graph: fx.Graph) -> None:
    """Check, at the head of the graph, each input of which the graph holds a size or the value as a constant."""
    placeholders = graph.find_nodes(op="placeholder")
    if not placeholders:
        return
    batch = of_any_batch(graph)
    with graph.inserting_before(placeholders[-1].next):
        size = graph.call_method("size", (batch[0], 0)) if len(batch) > 1 else None
        for node in placeholders:
            value = node.meta.get("val")
            if isinstance(value, Tensor):
                expected: list[Any] = [-1 if _is_free(s) else int(s) for s in value.shape]
                if node in batch[1:] and _symbol(node) == _symbol(batch[0]):  # the export has one size for both
                    expected[0] = size
                if any(s != -1 for s in expected):
                    graph.call_function(layers.check_shape, (node, expected, str(node.target)))
            elif value is None or isinstance(value, bool | int | float | str):
                node.type = node.type if value is None else type(value)
                check_value(graph.call_function, node, str(node.target), value)


def _symbol(node: fx.Node) -> Any:
    size: Any = node.meta["val"].shape[0]
    return size.node.expr


def _is_free(size: Any) -> bool:
    """Tell whether a size is a symbol; torch.export wraps some constants as SymInt too."""
    return not isinstance(size, int) and not size.node.expr.is_number


def check_value(call: Callable[[Any, tuple[Any, ...]], Any], given: Any, name: str, value: Any) -> None:
    """Check in a graph, which gets its nodes by ``call(function, args)``, that the input ``given`` is ``value``."""
    message = f"input {name!r} was {value!r} when the graph was captured; capture the model again for another value"
    if value is None:
        call(layers.check_none, (given, message))
    else:
        call(graph_assert, (call(operator.eq, (given, value)), message))


def check_items(call: Callable[[Any, tuple[Any, ...]], Any], given: Any, name: str, value: Any) -> None:
    """Check in a graph, as :func:`check_value` does, that a list has as many items as ``value``, or a dict the same keys."""
    is_keyed = isinstance(value, dict) and all(isinstance(key, str) for key in value)
    items, found = (sorted(value), call(sorted, (given,))) if is_keyed else (len(value), call(len, (given,)))
    what = f"had the keys {', '.join(sorted(value))}" if is_keyed else f"had {len(value)} items"
    message = f"input {name!r} {what} when the graph was captured; capture the model again for other items"
    call(graph_assert, (call(operator.eq, (found, items)), message))
