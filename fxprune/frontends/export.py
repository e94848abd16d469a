"""The export front end: ``torch.export``, for what symbolic tracing cannot follow.

Gives an ATen-level graph whose parameters are read under their original names.
"""

from __future__ import annotations

import contextlib
import operator
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune import functional
from fxprune.errors import CaptureError, CaptureWarning


def export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[fx.Graph, dict[str, Any]]:
    """Export ``model`` in its current mode.

    Args:
        model: the model; left as it was.
        args: positional example inputs.
        kwargs: keyword example inputs.

    Returns:
        The graph, and its constants by the names that it reads them under.

    Raises:
        CaptureError: if ``torch.export`` refuses the model; the cause is chained.
    """
    args, kwargs = two_samples(args, kwargs)
    try:
        with _quiet(), _slow_attention():
            program = torch.export.export(model, args, kwargs, dynamic_shapes=_dynamic(model, args, kwargs), strict=False)
            # The guards are written into the graph below, as nodes that script and pickle.
            unlifted = program.module(check_guards=False)
    except Exception as error:  # torch.export raises many kinds of errors, and the model its own
        raise CaptureError(_reason(error)) from error
    graph = unlifted.graph
    graph.owning_module = None
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        path = list(stack.values())[-1][0] if stack else ""
        node.meta["fxprune_module"] = path.partition("@")[0] if path != "_empty_nn_module_stack_from_metadata_hook" else ""
    for node in graph.find_nodes(op="get_attr"):
        if not node.users:  # the second name of a tied parameter, or a parameter out of use
            graph.erase_node(node)
    _write_guards(graph)
    read = {str(node.target): _get(unlifted, str(node.target)) for node in graph.find_nodes(op="get_attr")}
    of_model = {*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers(remove_duplicate=False))}
    return graph, {target: value for target, value in read.items() if target not in of_model}


def _get(root: nn.Module, target: str) -> Any:
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # About torch.export's own internals; what concerns the user is raised or warned of here.
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _slow_attention() -> Iterator[None]:
    """Switch off the fused eval-mode kernel of nn.MultiheadAttention: it has no counterpart in train mode."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _batched(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the input tensors whose first dimension is the batch: as long as that of the first tensor."""
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim() > 0]
    return [t for t in tensors if t.shape[0] == tensors[0].shape[0]]


def two_samples(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Repeat a batch of one: ``torch.export`` takes a dimension of size 1 for a constant."""
    batched = _batched(args, kwargs)
    if not batched or batched[0].shape[0] != 1:
        return args, kwargs
    ids = {id(t) for t in batched}

    def repeat(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if id(leaf) in ids else leaf

    repeated: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(repeat, (args, kwargs))
    return repeated


def _dynamic(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    shapes = torch.export.ShapesCollection()
    for tensor in _batched(args, kwargs):
        shapes[tensor] = {0: torch.export.Dim.AUTO}
    return shapes.dynamic_shapes(model, args, kwargs)


def _write_guards(graph: fx.Graph) -> None:
    """Check, at the head of the graph, each input of which the graph holds something as a constant."""
    placeholders = graph.find_nodes(op="placeholder")
    if not placeholders:
        return
    tensors = [n for n in placeholders if isinstance(n.meta.get("val"), Tensor)]
    batch = [n for n in tensors if n.meta["val"].dim() > 0 and _is_free(n.meta["val"].shape[0])]
    if tensors and not batch:
        message = "the model fixes its batch size: the graph takes only batches of the example's size"
        warnings.warn(message, CaptureWarning, stacklevel=6)
    with graph.inserting_before(placeholders[-1].next):
        size = graph.call_method("size", (batch[0], 0)) if len(batch) > 1 else None
        for node in placeholders:
            value = node.meta.get("val")
            if isinstance(value, Tensor):
                _check_shape(graph, node, value, size, batch)
            elif value is None or isinstance(value, bool | int | float | str):
                _check_value(graph, node, value)


def _check_shape(graph: fx.Graph, node: fx.Node, value: Tensor, size: fx.Node | None, batch: list[fx.Node]) -> None:
    """Check the constant dimensions, and that a batch is as long as that of the first input where the graph takes it so."""
    expected: list[Any] = [-1 if _is_free(s) else int(s) for s in value.shape]
    if node in batch[1:] and _symbol(node) == _symbol(batch[0]):
        expected[0] = size
    if any(s != -1 for s in expected):
        graph.call_function(functional.check_shape, (node, expected, str(node.target)))


def _symbol(node: fx.Node) -> Any:
    size: Any = node.meta["val"].shape[0]
    return size.node.expr


def _is_free(size: Any) -> bool:
    """Tell whether a size is a symbol; torch.export keeps some constants in the same wrapping."""
    return not isinstance(size, int) and not size.node.expr.is_number


def _check_value(graph: fx.Graph, node: fx.Node, value: Any) -> None:
    message = f"input {node.target!r} was {value!r} when the graph was captured; capture the model again for another value"
    if value is None:
        graph.call_function(functional.check_none, (node, message))
        return
    node.type = type(value)
    same = graph.call_function(operator.eq, (node, value))
    graph.call_function(torch._assert, (same, message))
