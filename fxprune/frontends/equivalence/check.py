"""Checks a new graph against its model, on the example inputs: as programs, or else by running both.

Symbolic tracing runs the model's code on symbolic values. Code that asks for the type of an input may take another path with a
symbolic value than with a tensor. No error says so; only the result of the graph is different.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from fxprune.abstract.form import FakeMode, Form, IncomparableError
from fxprune.errors import CaptureError
from fxprune.frontends.equivalence.numbering import NumberingError
from fxprune.frontends.equivalence.program import Programs, described, noting_writes
from fxprune.frontends.model.snapshot import Changes, ModelSnapshot
from fxprune.graph.interpreter import NodeByNode, NodeRunner, in_order
from fxprune.graph.paths import all_tensors
from fxprune.graph.side_effects import writes_to_parameters
from fxprune.torch_internals.switches import accelerators, fixed_seed, uncompiled
from fxprune.torch_internals.tensors import pytree, tensors_in, with_tensors


def _noting(fake: Callable[[FakeMode, Tensor, fx.Node], Tensor]) -> Callable[[fx.Node, Any], None]:
    """Return a function that notes on a node the value that it returns, with ``fake`` of each tensor in its place."""
    mode = FakeMode()

    def note(node: fx.Node, value: Any) -> None:
        def noted(leaf: Any) -> Any:
            return fake(mode, leaf, node) if type(leaf) in (Tensor, nn.Parameter) else leaf

        is_tensor = isinstance(value, Tensor)  # nearly always, and pytree is slow
        node.meta["val"] = noted(value) if is_tensor else pytree.tree_map(noted, value)

    return note


def _of_form(mode: FakeMode, tensor: Tensor, _: fx.Node) -> Tensor:
    return mode.make(Form.of(tensor))


def _of_tensor(mode: FakeMode, tensor: Tensor, node: fx.Node) -> Tensor:
    try:
        return mode.from_tensor(tensor.detach(), static_shapes=True)
    except Exception as error:  # torch has no fake of a quantized tensor
        raise CaptureError(_failure(node, error)) from error


def _result(runner: NodeRunner, gm: fx.GraphModule, inputs: Any) -> Any:
    values = in_order(gm, inputs)
    try:
        value = runner.run(*values)
    except Exception as error:
        if runner.at is None and not isinstance(error, IncomparableError):
            raise NumberingError(f"a bug of fxprune, in noting what a node gives: {error!r}") from error
        raise
    return gm.graph.process_outputs(value)


def check_against_model(
    gm: fx.GraphModule,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    record: bool = False,
    programs: Programs | None = None,
) -> Changes:
    """Compare the results of graph and model on the example inputs, and the tensors that they write to.

    If both call the same operators on the same arguments, they are equal. If not, or if that is not known, both run and the
    numbers decide. Graph, model and inputs stay as they are: copies and stand-ins take their place.

    Args:
        gm: the graph.
        model: its model.
        args: positional inputs of both.
        kwargs: keyword inputs of both.
        record: set ``node.meta["val"]`` throughout the graph, as fake tensors.
        programs: comparisons with this model, which remember its runs.

    Returns:
        The attributes, besides tensors, that the model's code changes.

    Raises:
        CaptureError: the graph fails, naming node, operation and shapes; or it gives another result than the model.
        ModelError: the model fails.
    """
    changes = (programs or Programs(ModelSnapshot(model))).same(
        lambda *inputs: _result(NodeRunner(gm, after=_noting(_of_form) if record else None), gm, inputs), args, kwargs
    )
    if changes is None:
        return _check_numbers(gm, model, (args, kwargs), NodeRunner(gm, after=_noting(_of_tensor) if record else None))
    return changes


def _check_numbers(gm: fx.GraphModule, model: nn.Module, inputs: Any, runner: NodeRunner) -> Changes:
    """Run graph and model on copies of their tensors, with the same random numbers; compare results and tensors."""
    failure: CaptureError | None = None
    writes, kinds = writes_to_parameters(gm), accelerators((*model.parameters(), *model.buffers()))
    run = NodeByNode(runner)
    ours_state, ours_inputs, theirs_inputs = _copied_state(run, writes), _copied(inputs), _copied(inputs)
    values, ours_read, theirs_read = in_order(gm, ours_inputs), tensors_in(ours_inputs), tensors_in(theirs_inputs)
    try:
        with torch.no_grad(), fixed_seed(kinds):
            ours = gm.graph.process_outputs(functional_call(run, ours_state, tuple(values), tie_weights=False))
    except CaptureError as error:
        failure = error
    except Exception as error:  # an operator may raise any error on operands that do not fit
        if runner.at is None:
            raise
        failure = CaptureError(_failure(runner.at, error))
        failure.__cause__ = error
    theirs_state = _copied_state(model, writes)
    try:
        with torch.no_grad(), fixed_seed(kinds), uncompiled(), ModelSnapshot(model).untouched() as changes:
            with noting_writes(model, theirs_inputs, changes), changes.forms.noting(theirs_inputs):
                theirs = functional_call(model, theirs_state, *theirs_inputs, tie_weights=False)
    except Exception as error:
        raise ModelError(f"the model itself fails on the example inputs: {error}") from error
    if failure is not None:
        raise failure
    if described(ours, _Numbers) != described(theirs, _Numbers):
        raise CaptureError("the graph does not give the model's result on the example inputs")
    changed = [name for name, t in theirs_state.items() if not _close(ours_state[f"gm.{name}"], t)]
    if changed:
        raise CaptureError(f"the graph does not change {', '.join(changed)} as the model does")
    if not all(map(_close, ours_read, theirs_read)):
        raise CaptureError("the graph does not write to its inputs as the model does")
    return changes


def remembers(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], programs: Programs) -> bool:
    """Tell whether what the model's code keeps in attributes from one call changes what the next call computes."""
    known = programs.remembers(args, kwargs)
    if known is not None:
        return known
    inputs = args, kwargs
    others = with_tensors(inputs, lambda t: t.detach() / 2 if t.is_floating_point() or t.is_complex() else t.clone())
    try:
        return bool(_computed(model, [others]) != _computed(model, [inputs, others]))
    except Exception:  # the model's code may refuse the other values
        return True


def _computed(model: nn.Module, calls: list[Any]) -> Any:
    """Return what the last of several calls of a model gives and writes; tensors are as before at each call."""
    kinds = accelerators((*model.parameters(), *model.buffers()))
    found: Any = None
    with torch.no_grad(), uncompiled(), ModelSnapshot(model).untouched():
        for inputs in calls:
            state = _copied_state(model, True)
            with fixed_seed(kinds):
                found = functional_call(model, state, *_copied(inputs), tie_weights=False), state
    return described(found, _Numbers)


class ModelError(CaptureError):
    """The model itself fails, so there is no result to compare the graph's with."""


def _copied(inputs: Any) -> Any:
    return with_tensors(inputs, Tensor.clone)


def _copied_state(module: nn.Module, parameters: bool) -> dict[str, Tensor]:
    """Return copies of the tensors that ``forward`` may change in place; a tied tensor has one copy, under all its names."""
    named = all_tensors(list(module.named_modules()))
    tensors = {tensor for tensor in named.values() if parameters or not isinstance(tensor, nn.Parameter)}
    copies = {tensor: tensor.detach().clone() for tensor in tensors}
    return {name: copies[tensor] for name, tensor in named.items() if tensor in copies}


def _failure(node: fx.Node, error: Exception) -> str:
    shapes = ", ".join(_describe(a.meta.get("val")) for a in node.all_input_nodes)
    lines = str(error).strip().splitlines()
    return f"node {node.name!r} ({node.op} {node.target}) fails on ({shapes}): {lines[0] if lines else type(error).__name__}"


def _describe(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


@dataclasses.dataclass(eq=False)
class _Numbers:
    """The elements of a tensor, compared by ``==`` up to rounding."""

    tensor: Tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Numbers) and _close(self.tensor, other.tensor)


def _close(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if theirs.is_meta or theirs.numel() == 0:
        return True
    if not (theirs.is_floating_point() or theirs.is_complex()):
        return torch.equal(ours, theirs)
    # Kernels may round differently from call to call; another path of the code differs by more than a few roundings.
    scale = theirs.abs().nan_to_num(0, 0, 0).max().item()
    tolerance = 100 * torch.finfo(theirs.dtype).eps
    return torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
