"""The module classes that a captured graph is made of.

``CapturedModule`` is the GraphModule itself; ``Container`` holds parameters under their original names; ``Lowered`` stands
in for a leaf module whose computation was written out as nodes; ``ByMode`` holds two versions of a computation, one for
train and one for eval mode.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import PythonCode
from torch.fx.node import map_aggregate

from fxprune.errors import CaptureError, PruningTypeError
from fxprune.graph.masks import MaskLoading
from fxprune.graph.metadata import ANALYSIS, EXAMPLE, FIXED_DTYPE, OPTIONAL, SHAPES
from fxprune.graph.parts import shared_copy
from fxprune.graph.pickling import dump, load
from fxprune.torch_internals.graphs import (
    COMPILED_CALL,
    OF_CODE,
    codegen_of,
    flattened,
    forget_code,
    has_code,
    is_flattened,
    rename_self,
)
from fxprune.torch_internals.interrupts import uninterrupted
from fxprune.torch_internals.switches import alone, quiet


class CapturedModule(MaskLoading, fx.GraphModule):
    """An ordinary ``torch.fx.GraphModule`` that pickles its graph as it is.

    torch.fx pickles the generated code and traces it again on loading, which would freeze the ``training`` flags that the
    graph reads.

    :data:`fxprune.graph.metadata.EXAMPLE` has the inputs that it was captured with, unless it was pickled.
    """

    def recompile(self) -> PythonCode:
        """Make the code of ``forward`` anew from the graph; within :func:`compiled_later` only once it is read."""
        rename_self(self.graph)
        if not _COMPILES_LATER.get():
            with alone(), uninterrupted():
                code = super().recompile()
                self._give_defaults()
                return code
        forget_code(self)
        type(self).forward = _Forward()  # type: ignore[assignment] # each graph has a class of its own
        return _NO_CODE

    def compile_put_off(self) -> None:
        """Make the code, if the graph has none yet."""
        if not has_code(self):
            with alone(), uninterrupted():
                super().recompile()
                self._give_defaults()

    def _give_defaults(self) -> None:
        """Let calls omit inputs of an exported graph; the generator of its code writes no defaults."""
        if optional := OPTIONAL.get(self):
            forward: Any = type(self).forward
            names = forward.__code__.co_varnames[1 : forward.__code__.co_argcount]
            last = [*itertools.takewhile(optional.__contains__, reversed(names))]
            forward.__defaults__ = tuple(optional[name] for name in reversed(last))

    flattened = staticmethod(flattened)  # which the code of a graph of torch.export calls

    @property
    def code(self) -> str:
        """The code of ``forward``."""
        self.compile_put_off()
        return super().code

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Convert or move the tensors, as ``half()`` and ``to()`` do; constants of an exported graph follow to another device.

        Raises:
            CaptureError: the tensors get another dtype, and the graph holds one as a constant; nothing has changed.
        """
        tensors = [*self.parameters(), *self.buffers()]
        probes = [fn(torch.empty(0, dtype=t.dtype, device=t.device)) for t in tensors]
        where = FIXED_DTYPE.get(self)
        for tensor, probe in zip(tensors, probes, strict=True) if where is not None else ():
            if probe.dtype != tensor.dtype:
                raise CaptureError(
                    f"this graph was captured in {tensor.dtype} and has dtypes as constants, which the model's code asks for "
                    f"at {where}: convert the model to {probe.dtype}, and capture it again"
                )
        devices = {(t.device, p.device) for t, p in zip(tensors, probes, strict=True)}
        result = super()._apply(fn, recurse)
        if is_flattened(self) and len(devices) == 1:
            move_constants(self, *devices.pop())
        return result

    __jit_unused_properties__ = [*fx.GraphModule.__jit_unused_properties__, "code"]  # noqa: RUF012

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the state and a flat list of the nodes."""
        if "forward" in vars(self):
            raise pickle.PicklingError(f"{_replaced(self)}, and would not follow the weights of the pickle: {_TAKE_AWAY}")
        state = {k: v for k, v in self.__dict__.items() if k not in _DERIVED}
        with quiet(FutureWarning):  # torch warns of its own TreeSpec class
            graph = pickle.dumps((dump(self.graph), codegen_of(self.graph)))
        return _rebuild, (state, type(self).__name__, graph)

    def __copy__(self) -> CapturedModule:
        """Copy modules and graph, and share the tensors; with torch.fx both would have one graph, and the copy no example."""
        return shared_copy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> CapturedModule:
        """Copy state and graph; torch.fx would lose second names and which buffers are persistent."""
        forward = vars(self).get("forward")
        if forward is not None and getattr(forward, "__self__", None) is not self:
            raise PruningTypeError(f"{_replaced(self)}; a copy would compute with the weights of this graph: {_TAKE_AWAY}")
        with compiled_later():
            copied = CapturedModule(nn.Module(), fx.Graph(), type(self).__name__)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy({k: v for k, v in self.__dict__.items() if k not in _DERIVED}, memo))
        with quiet(FutureWarning):
            copied.graph = copy.deepcopy(self.graph)
        EXAMPLE.set(copied, EXAMPLE.get(self))
        return copied


class _Forward:
    """Stands for the ``forward`` of a graph without code; the first read makes the code."""

    def __get__(self, gm: CapturedModule | None, owner: type[CapturedModule]) -> Any:
        if gm is None:
            return self
        gm.compile_put_off()
        return gm.forward


_COMPILES_LATER: contextvars.ContextVar[bool] = contextvars.ContextVar("fxprune_compiles_later", default=False)
_NO_CODE = PythonCode("", {}, None)


@contextlib.contextmanager
def compiled_later() -> Iterator[None]:
    """Put off the code of graphs that are set within the context until their first call."""
    token = _COMPILES_LATER.set(True)
    try:
        yield
    finally:
        _COMPILES_LATER.reset(token)


def move_constants(gm: fx.GraphModule, before: torch.device, after: torch.device) -> None:
    """Put the device ``after`` in place of ``before`` wherever a graph, or a graph in it, has that device as a constant."""
    for graph_module in [module for module in gm.modules() if isinstance(module, fx.GraphModule) and before != after]:
        for node in graph_module.graph.nodes:
            args, kwargs = map_aggregate((node.args, node.kwargs), lambda leaf: after if leaf == before else leaf)
            if (args, kwargs) != (node.args, node.kwargs):
                node.args, node.kwargs = args, kwargs
        recompile_later(graph_module)


def recompile_later(gm: fx.GraphModule) -> None:
    """Forget the code of a graph that was rewritten; it is made anew on the first call."""
    with compiled_later():
        gm.recompile()


def compile_all(gm: fx.GraphModule) -> None:
    """Make the code that was put off, of a graph and of the graphs in it; do nothing within :func:`compiled_later`."""
    for module in gm.modules() if not _COMPILES_LATER.get() else ():
        if isinstance(module, CapturedModule):
            module.compile_put_off()


def adopt(gm: fx.GraphModule, other: fx.GraphModule) -> None:
    """Let a graph become ``other``, in place and compiled anew; ``other`` must not be used any more."""
    graph = other.graph
    compiled = {k: v for k, v in vars(gm).items() if k == COMPILED_CALL}  # which runs the code that the graph has when called
    with uninterrupted():
        gm.__dict__.clear()
        gm.__dict__.update(other.__dict__ | compiled)
        gm.graph = graph
        compile_all(gm)


# recompile() makes the code of the graph; the compiled call is of this graph, example and analysis of this process alone.
_DERIVED = (*OF_CODE, COMPILED_CALL, EXAMPLE.name, ANALYSIS.name, SHAPES.name)


def _rebuild(state: dict[str, Any], class_name: str, graph: bytes) -> CapturedModule:
    gm = CapturedModule(nn.Module(), fx.Graph(), class_name)
    gm.__dict__.update(state)
    try:
        with quiet(FutureWarning):
            dumped = pickle.loads(graph)
    except Exception as error:  # the pickle holds torch's own description of nested inputs, which differs by version
        raise pickle.UnpicklingError(
            f"the graph of {class_name} was pickled with another version of torch, whose classes torch {torch.__version__} "
            f"cannot read ({error}): load it with that version"
        ) from error
    gm.graph = load(*dumped)
    return gm


_TAKE_AWAY = "take it away with `del gm.forward` first, and put it back afterwards"


def _replaced(gm: fx.GraphModule) -> str:
    forward = vars(gm)["forward"]
    name = getattr(forward, "__qualname__", type(forward).__name__)
    return f"the forward of this graph ({type(gm).__name__}) was replaced by {name!r}, an attribute of the instance"


def as_editable(module: object) -> fx.GraphModule:
    """Return a graph that may be rewritten; raise PruningTypeError if it is not a graph, or if calls would not follow it."""
    gm = as_graph_module(module)
    if "forward" in vars(gm):  # as training frameworks do for mixed precision
        raise PruningTypeError(f"{_replaced(gm)}, which runs the code from before: {_TAKE_AWAY}")
    return gm


def as_graph_module(module: object) -> fx.GraphModule:
    """Return ``module``, or raise PruningTypeError if it is not a graph."""
    if not isinstance(module, fx.GraphModule):
        raise PruningTypeError(
            f"expected a torch.fx.GraphModule, got {type(module).__name__}; make one with fxprune.capture(model, inputs)"
        )
    return module
