"""Runs a freshly traced graph beside its model, on the example inputs.

Symbolic tracing runs the model's code on stand-ins for tensors. Code that asks what kind of object it was given may take
another path with them, and no error says so; only the result does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.frontends.modes import untouched


class _Recorder(fx.Interpreter):
    """Runs a graph and notes on each node what its value looks like, as a fake tensor."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.mode = FakeTensorMode()
        self.at: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.at = n
        value = super().run_node(n)
        n.meta["val"] = pytree.tree_map(self._look, value)
        return value

    def _look(self, leaf: Any) -> Any:
        return self.mode.from_tensor(leaf.detach(), static_shapes=True) if type(leaf) in (Tensor, nn.Parameter) else leaf


class _Run(nn.Module):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__()
        self.gm = gm
        self.recorder = _Recorder(gm)

    def forward(self, *inputs: Any) -> Any:
        return self.recorder.run(*inputs, enable_io_processing=False)


def check_against_model(
    gm: fx.GraphModule, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: Any
) -> None:
    """Run both on the example, compare, and set ``node.meta["val"]`` throughout the graph.

    Neither changes: buffers are copied for the time of the run, and both draw the same random numbers.

    Args:
        gm: the graph, not yet in use by anyone.
        model: its model.
        args: positional inputs of the model.
        kwargs: keyword inputs of the model.
        inputs: the same in the order of the graph's placeholders.

    Raises:
        CaptureError: the graph fails, naming node, operation and shapes; or it gives another result than the model.
    """
    run = _Run(gm)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            ours = functional_call(run, _copied_buffers(run), tuple(inputs))
    except Exception as error:  # whatever an operator raises on operands that do not fit
        raise CaptureError(_failure(run.recorder.at, error)) from error
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), untouched(model):
            torch.manual_seed(0)
            theirs = functional_call(model, _copied_buffers(model), args, kwargs)
    except Exception as error:
        raise CaptureError(f"the model itself fails on the example inputs: {error}") from error
    if not _alike(ours, theirs):
        raise CaptureError("the traced graph does not give the model's result on the example inputs")


def _copied_buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def _failure(node: fx.Node | None, error: Exception) -> str:
    assert node is not None
    shapes = ", ".join(_describe(a.meta.get("val")) for a in node.all_input_nodes)
    lines = str(error).strip().splitlines()
    return f"node {node.name!r} ({node.op} {node.target}) fails on ({shapes}): {lines[0] if lines else type(error).__name__}"


def _describe(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _alike(ours: Any, theirs: Any) -> bool:
    """Tell whether two results are of the same types and, up to rounding, of the same values."""
    if isinstance(theirs, Tensor):
        return isinstance(ours, Tensor) and _close(ours, theirs)
    if (
        type(ours) is not type(theirs)
        and not (isinstance(ours, list) and isinstance(theirs, list))
        and not (isinstance(ours, dict) and isinstance(theirs, dict))
    ):
        return False
    if isinstance(theirs, Mapping):
        return ours.keys() == theirs.keys() and all(_alike(ours[k], theirs[k]) for k in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(_alike, ours, theirs))
    if hasattr(theirs, "__dict__"):
        return _alike(vars(ours), vars(theirs))
    return bool(ours == theirs)


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
