"""Checks a freshly traced graph against its model, on the example inputs: as programs, or else by running both.

Symbolic tracing runs the model's code on stand-ins for tensors. Code that asks what kind of object it was given may take
another path with them, and no error says so; only the result does.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from fxprune.abstract.form import Form, Wrapping
from fxprune.errors import CaptureError
from fxprune.frontends.equivalence.program import Programs, described
from fxprune.frontends.model.snapshot import Changes, ModelSnapshot, accelerators, fixed_seed
from fxprune.graph.interpreter import NodeRunner
from fxprune.graph.side_effects import writes_to_parameters

Look = Callable[[Any], Any]


# What holds no tensors; pytree leaves ten objects behind at each call, which only the garbage collector finds.
_WITHOUT_TENSORS = frozenset([int, float, bool, str, type(None)])


class _Recorder(NodeRunner):
    """Runs a graph and notes on each node what its value looks like: ``look`` of each tensor."""

    def __init__(self, gm: fx.GraphModule, look: Look | None) -> None:
        super().__init__(gm)
        self.gm = gm
        self.look = look
        self.at: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.at = n
        value = super().run_node(n)
        if self.look is not None:
            n.meta["val"] = _map_tensors(self.look, value)
        return value


def _map_tensors(look: Look, value: Any) -> Any:
    if type(value) is Tensor:  # nearly always
        return look(value)
    if type(value) in _WITHOUT_TENSORS:
        return value
    return pytree.tree_map(lambda leaf: look(leaf) if type(leaf) in (Tensor, nn.Parameter) else leaf, value)


class _Run(nn.Module):
    """The graph under an interpreter, as a module, so that its tensors can be replaced for one call."""

    def __init__(self, gm: fx.GraphModule, look: Look | None) -> None:
        super().__init__()
        self.gm = gm
        self.recorder = _Recorder(gm, look)

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _result(self.recorder, args, kwargs)


def _result(recorder: _Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    inputs = _in_order(recorder.gm, args, kwargs)
    try:
        return recorder.graph.process_outputs(recorder.run(*inputs, enable_io_processing=False))
    finally:
        recorder.env, recorder.args_iter = {}, iter(())  # keeps no tensor alive


def _in_order(gm: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return one value for each input node of the graph."""
    if isinstance(gm.graph._codegen, _PyTreeCodeGen):
        return pytree.tree_leaves(list(inspect.signature(gm.forward).bind(*args, **kwargs).arguments.values()))
    # The graph may have no code yet, and does not need any.
    names = [str(node.target) for node in gm.graph.find_nodes(op="placeholder")]
    return [*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs)]


def check_against_model(
    gm: fx.GraphModule,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    record: bool = False,
    programs: Programs | None = None,
) -> Changes:
    """Compare the results and effects of both on the example.

    If they call the same operators on the same arguments, that is all. If not, or if that cannot be told, both are run: they
    may still compute the same in other ways. Neither changes, nor do the inputs: all are copied or stood in for.

    Args:
        gm: the graph; its forward takes what the model's takes.
        model: its model.
        args: positional inputs.
        kwargs: keyword inputs.
        record: set ``node.meta["val"]`` throughout the graph, as fake tensors.
        programs: what checks of other graphs of the same model have found out.

    Returns:
        What the model's code tried to change besides tensors.

    Raises:
        CaptureError: the graph fails, naming node, operation and shapes; or it gives another result than the model.
        ModelError: the model fails.
    """
    mode = FakeTensorMode()
    look = Form.of if record else None
    changes = (programs or Programs(ModelSnapshot(model))).same(
        lambda *inputs: _result(_Recorder(gm, look), *inputs), args, kwargs
    )
    if changes is None:
        return _check_numbers(_Run(gm, _faker(mode) if record else None), model, args, kwargs)
    wrapping = Wrapping(mode)
    for node in gm.graph.nodes if record else ():
        node.meta["val"] = _with_fakes(wrapping, node.meta["val"])
    return changes


def _with_fakes(wrapping: Wrapping, value: Any) -> Any:
    if isinstance(value, Form):
        return value.fake(wrapping)
    if type(value) in _WITHOUT_TENSORS:
        return value
    return pytree.tree_map(
        lambda leaf: leaf.fake(wrapping) if isinstance(leaf, Form) else leaf, value, is_leaf=lambda leaf: isinstance(leaf, Form)
    )


def _faker(mode: FakeTensorMode) -> Look:
    return lambda tensor: mode.from_tensor(tensor.detach(), static_shapes=True)


def _check_numbers(run: _Run, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Changes:
    """Run both on copies, drawing the same random numbers, and compare what comes out."""
    failure: CaptureError | None = None
    writes, kinds = writes_to_parameters(run.gm), accelerators((*model.parameters(), *model.buffers()))
    ours_state = _copied_state(run, writes)
    try:
        with torch.no_grad(), fixed_seed(kinds):
            ours = functional_call(run, ours_state, _copied((args, kwargs)))
    except Exception as error:  # whatever an operator raises on operands that do not fit
        failure = CaptureError(_failure(run.recorder.at, error))
        failure.__cause__ = error
    theirs_state = _copied_state(model, writes)
    try:
        with torch.no_grad(), fixed_seed(kinds), ModelSnapshot(model).untouched() as changes:
            theirs = functional_call(model, theirs_state, *_copied((args, kwargs)))
    except Exception as error:
        raise ModelError(f"the model itself fails on the example inputs: {error}") from error
    if failure is not None:
        raise failure
    if described(ours, _Numbers) != described(theirs, _Numbers):
        raise CaptureError("the graph does not give the model's result on the example inputs")
    changed = [name for name, t in theirs_state.items() if not _close(ours_state[f"gm.{name}"], t)]
    if changed:
        raise CaptureError(f"the graph does not change {', '.join(changed)} as the model does")
    return changes


class ModelError(CaptureError):
    """The model itself cannot run, so that there is nothing to compare a graph with."""


def _copied(inputs: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)


def _copied_state(module: nn.Module, parameters: bool) -> dict[str, Tensor]:
    """Return copies of the tensors that ``forward`` may change in place."""
    tensors = dict(module.named_buffers())
    if parameters:
        tensors |= dict(module.named_parameters())
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _failure(node: fx.Node | None, error: Exception) -> str:
    assert node is not None
    shapes = ", ".join(_describe(a.meta.get("val")) for a in node.all_input_nodes)
    lines = str(error).strip().splitlines()
    return f"node {node.name!r} ({node.op} {node.target}) fails on ({shapes}): {lines[0] if lines else type(error).__name__}"


def _describe(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


@dataclasses.dataclass(eq=False)
class _Numbers:
    """The elements of a tensor, the same as others up to rounding."""

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
    # Kernels may round differently from call to call; a wrong path does not hide below a few roundings.
    scale = theirs.abs().nan_to_num(0, 0, 0).max().item()
    tolerance = 100 * torch.finfo(theirs.dtype).eps
    return torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
