"""Exports graphs, masked or finalized, as TorchScript, ``torch.export`` programs and ONNX."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, fx, nn

from fxprune.errors import ExportError, ExportWarning, InputError, in_short
from fxprune.export.scriptable import plain, scriptable
from fxprune.torch_internals.switches import alone, quiet
from fxprune.torch_internals.tensors import pytree
from fxprune.torch_internals.versions import mend_onnx_type_promotion

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.onnx import ONNXProgram


def to_torchscript(
    gm: fx.GraphModule,
    example_inputs: Tensor | tuple[Any, ...] | list[Any],
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    method: Literal["auto", "script", "trace"] = "auto",
) -> torch.jit.ScriptModule:
    """Return the graph as TorchScript: scripted if TorchScript can express it, else traced.

    A scripted graph takes any batch size and follows ``train()`` and ``eval()``. Both kinds take the inputs of the graph in
    order, nested ones flattened; results that are dataclasses or other mappings become dicts.

    Args:
        gm: the graph, masked or not; left as it is.
        example_inputs: positional inputs, or the single tensor.
        example_kwargs: keyword inputs.
        method: ``"script"`` or ``"trace"`` allow only that.

    Returns:
        The module, ready for ``save``; of type ``torch.jit.TopLevelTracedModule`` if it was traced.

    Raises:
        InputError: the example inputs do not fit the graph.
        ExportError: TorchScript refuses the graph, or the traced module gives other results on the example.

    Warns:
        ExportWarning: the graph was traced because scripting failed, with the reason.

    Source: https://docs.pytorch.org/docs/stable/jit.html

    Example:
        >>> fxprune.to_torchscript(gm, torch.randn(1, 3, 224, 224)).save("model.pt")
    """
    if method not in ("auto", "script", "trace"):
        raise ExportError(f'method must be "auto", "script" or "trace", not {method!r}')
    inputs = _positional(gm, example_inputs, example_kwargs)
    if method == "trace":
        return _trace(gm, inputs)
    try:
        with alone(), quiet():
            return torch.jit.script(scriptable(gm))
    except Exception as error:  # the TorchScript compiler raises many kinds
        reason = in_short(error, 3)
        if method == "script":
            raise ExportError(f"TorchScript cannot script this graph: {reason}") from error
    warnings.warn(
        f"the graph was traced, not scripted, so it is fixed to {'train' if gm.training else 'eval'} mode and may be fixed to "
        f"the example's batch size. Scripting failed: {reason}",
        ExportWarning,
        stacklevel=2,
    )
    return _trace(gm, inputs)


def to_exported_program(
    gm: fx.GraphModule,
    example_inputs: Tensor | tuple[Any, ...] | list[Any],
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_batch: bool = True,
) -> ExportedProgram:
    """Return the graph as a ``torch.export.ExportedProgram``, fixed to its present mode.

    Args:
        gm: the graph, masked or not; left as it is.
        example_inputs: positional inputs, or the single tensor.
        example_kwargs: keyword inputs; the program takes them by keyword too.
        dynamic_batch: leave the first dimension of the inputs free where the graph allows it; needs a batch of two or more.

    Raises:
        InputError: the example inputs do not fit the graph.
        ExportError: ``torch.export`` refuses the graph.

    Source: https://docs.pytorch.org/docs/stable/export.html
    """
    _positional(gm, example_inputs, example_kwargs)
    args = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    kwargs = dict(example_kwargs or {})
    shapes = _dynamic_batch(gm, args, kwargs) if dynamic_batch else None
    try:
        with alone(), quiet():
            return torch.export.export(gm, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise ExportError(f"torch.export refuses this graph: {in_short(error, 3)}") from error


def to_onnx(
    gm: fx.GraphModule,
    example_inputs: Tensor | tuple[Any, ...] | list[Any],
    path: str | os.PathLike[str] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_batch: bool = True,
) -> ONNXProgram:
    """Return the graph as ONNX, fixed to its present mode. Needs the extra ``fxprune[onnx]``.

    Args:
        gm: the graph, masked or not; left as it is.
        example_inputs: positional inputs, or the single tensor.
        path: file to write, if any.
        example_kwargs: keyword inputs.
        dynamic_batch: leave the first dimension of the inputs free where the graph allows it.

    Raises:
        InputError: the example inputs do not fit the graph.
        ExportError: the exporter is not installed, or refuses the graph.

    Source: https://docs.pytorch.org/docs/stable/onnx.html
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError('ONNX export needs more packages: pip install "fxprune[onnx]"') from error
    inputs = _positional(gm, example_inputs, example_kwargs)
    program = to_exported_program(gm, inputs, dynamic_batch=dynamic_batch)
    mend_onnx_type_promotion()
    try:
        with alone(), quiet():
            onnx_program = torch.onnx.export(program, (), dynamo=True, verbose=False)
            assert onnx_program is not None
            if path is not None:
                onnx_program.save(os.fspath(path))
    except Exception as error:
        raise ExportError(f"the ONNX exporter refuses this graph: {in_short(error, 3)}") from error
    return onnx_program


class _PlainCall(nn.Module):
    """Calls a graph on tensors; inputs of other types, which torch.jit.trace does not take, are fixed."""

    def __init__(self, gm: fx.GraphModule, inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self.gm = gm
        leaves, self._spec = pytree.tree_flatten(inputs)
        self._fixed = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
        self.tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))

    def forward(self, *tensors: Tensor) -> Any:
        given = iter(tensors)
        leaves = [next(given) if fixed is None else fixed[0] for fixed in self._fixed]
        return plain(self.gm(*pytree.tree_unflatten(leaves, self._spec)))


def _trace(gm: fx.GraphModule, inputs: tuple[Any, ...]) -> torch.jit.ScriptModule:
    call = _PlainCall(gm, inputs)
    call.training = gm.training
    try:
        with alone(), quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
            traced: torch.jit.ScriptModule = torch.jit.trace(call, call.tensors, strict=False, check_trace=False)
            if not gm.training:
                torch.testing.assert_close(traced(*call.tensors), call(*call.tensors), equal_nan=True)
    except Exception as error:
        raise ExportError(f"TorchScript cannot trace this graph: {in_short(error, 3)}") from error
    return traced


def _positional(gm: fx.GraphModule, inputs: Any, kwargs: Any) -> tuple[Any, ...]:
    """Return all inputs in the order of the graph's signature."""
    args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    signature = inspect.signature(gm.forward)
    try:
        bound = signature.bind(*args, **dict(kwargs or {}))
    except TypeError as error:
        raise InputError(f"the example inputs do not fit the graph's forward{signature}: {error}") from error
    return tuple(bound.arguments.values())


def _dynamic_batch(gm: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim() > 0]
    shapes = torch.export.ShapesCollection()
    for tensor in tensors:
        if tensor.shape[0] == tensors[0].shape[0] > 1:
            shapes[tensor] = {0: torch.export.Dim.AUTO}
    return shapes.dynamic_shapes(gm, args, kwargs)
