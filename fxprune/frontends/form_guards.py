"""What an exported graph takes from the form of the example: dtypes, gradients, memory. Nodes at its head check it.

``torch.export`` has such facts as constants: of ``2 if x.dtype == torch.float32 else 3`` the graph has 2, of
``torch.zeros(n, dtype=h.dtype)`` the dtype. So it is noted what the model's code asks for while it runs in the check, and the
graph refuses what would have another answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.functional import layers
from fxprune.graph.metadata import FIXED_DTYPE
from fxprune.torch_internals.form_reads import watching_forms
from fxprune.torch_internals.tensors import pytree


class FormReads:
    """Where the model's code asks for the form of a tensor: by fact and place among the inputs, negative for other tensors."""

    def __init__(self) -> None:
        self.by_model: dict[tuple[str, int], str] = {}
        self.by_torch = False  # whether torch's own layers ask for a dtype, which they hand to operators
        self.of_computed = ""  # where the dtype of a computed tensor is asked for, which autocast changes
        self._places: dict[int, int] = {}

    @contextlib.contextmanager
    def noting(self, inputs: Any) -> Iterator[None]:
        """Record what the model's code, which runs within the context on ``inputs``, asks for."""
        leaves = pytree.tree_leaves(inputs)
        self._places = {id(leaf): place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        with watching_forms(self._note):
            yield
        self._places = {}  # of tensors that the model was called with

    def _note(self, fact: str, tensor: Tensor, frame: FrameType) -> None:
        if str(frame.f_globals.get("__name__", "")).startswith("torch.nn."):
            self.by_torch |= fact == "dtype"
        else:
            place = self._places.get(id(tensor), _FLOAT if tensor.is_floating_point() or tensor.is_complex() else _OTHER)
            where = self.by_model.setdefault((fact, place), f"{frame.f_code.co_filename}:{frame.f_lineno}")
            if fact == "dtype" and place == _FLOAT and not isinstance(tensor, nn.Parameter):
                self.of_computed = self.of_computed or where


def write_form_guards(gm: fx.GraphModule, reads: FormReads) -> list[str]:
    """Check at the head of an exported graph what its model asked for; returns notes on what cannot be checked."""
    graph = gm.graph
    placeholders = graph.find_nodes(op="placeholder")
    asked = {fact: {place: where for (f, place), where in reads.by_model.items() if f == fact} for fact in _CHECKS}
    if reads.by_torch and not asked["dtype"] and any(map(_names_float, graph.nodes)):
        asked["dtype"] = {_FLOAT: "torch.nn"}
    if asked["dtype"]:
        FIXED_DTYPE.set(gm, next(iter(asked["dtype"].values())))
    tensors = [node for node in placeholders if isinstance(node.meta.get("val"), Tensor)]
    if placeholders:
        with graph.inserting_before(placeholders[-1].next):
            for fact, places in asked.items():
                for place, node in enumerate(placeholders):
                    value = node.meta.get("val")
                    if isinstance(value, Tensor) and (where := _asks_for(fact, places, place, value)) is not None:
                        _CHECKS[fact](graph, node, value, where)
            if reads.of_computed and tensors:
                graph.call_function(layers.check_autocast, (tensors[0], _AUTOCAST.format(reads.of_computed)))
    return [_GRADIENTS.format(where) for place, where in asked["requires_grad"].items() if place < 0]


_FLOAT, _OTHER = -1, -2  # in place of a place: a tensor that is no input, of floating-point dtype or not


def _asks_for(fact: str, places: dict[int, str], place: int, value: Tensor) -> str | None:
    """Return the line that asks for a fact of an input, or of a tensor that may have it from the input; None without one."""
    if place in places or fact == "requires_grad":
        return places.get(place)
    from_floats = places.get(_FLOAT) if value.is_floating_point() or value.is_complex() or fact != "dtype" else None
    return from_floats or places.get(_OTHER)


_AUTOCAST = (
    "the graph has dtypes as constants that the code at {} asks of a computed tensor; under autocast the model may compute "
    "something else. Convert the model before the capture instead"
)
_GRADIENTS = (
    "the code at {} asks whether a tensor requires gradients that is no input; the graph always does what it does for the "
    "tensors of the capture"
)


def _names_float(node: fx.Node) -> bool:
    leaves = pytree.tree_leaves((node.args, node.kwargs))
    return any(isinstance(leaf, torch.dtype) and leaf.is_floating_point for leaf in leaves)


def _message(node: fx.Node, what: str, where: str) -> str:
    return (
        f"input {node.name!r} {what} when the graph was captured, which the code at {where} asks for; capture the model "
        "again with an example like this input"
    )


def check_dtype(graph: fx.Graph, node: fx.Node, value: Tensor, where: str) -> fx.Node:
    """Write a check that an input has the dtype of ``value``, which the code at ``where`` asks for; return its node."""
    # A verification in double precision runs the graph as captured on wider numbers.
    wider = torch.complex128 if value.is_complex() else torch.float64 if value.is_floating_point() else value.dtype
    dtypes, message = list(dict.fromkeys((value.dtype, wider))), _message(node, f"was of {value.dtype}", where)
    return graph.call_function(layers.check_dtype, (node, dtypes, message))


def _check_contiguous(graph: fx.Graph, node: fx.Node, value: Tensor, where: str) -> None:
    what = f"was {'' if value.is_contiguous() else 'not '}contiguous"
    graph.call_function(layers.check_contiguous, (node, value.is_contiguous(), _message(node, what, where)))


def _check_requires_grad(graph: fx.Graph, node: fx.Node, value: Tensor, where: str) -> None:
    what = f"did {'' if value.requires_grad else 'not '}require gradients"
    graph.call_function(layers.check_requires_grad, (node, value.requires_grad, _message(node, what, where)))


_CHECKS: dict[str, Callable[..., Any]] = {
    "dtype": check_dtype,
    "contiguous": _check_contiguous,
    "requires_grad": _check_requires_grad,
}
