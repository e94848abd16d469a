"""summary: the masks of a graph, or the costs of a model before and after, as a table."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from tabulate import tabulate
from torch import fx, nn

from fxprune.errors import PruningTypeError
from fxprune.graph.captured import as_graph_module
from fxprune.graph.masks import ORIG, find_masked
from fxprune.graph.metadata import METHODS
from fxprune.graph.paths import parameter_names
from fxprune.reports.comparison import Comparison, compare
from fxprune.torch_internals.pruning_methods import parts_of
from fxprune.verification.inputs import given

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter: its name, shape, pruning methods in order, elements, zeros, and the bytes of its mask."""

    name: str
    shape: tuple[int, ...]
    method: str
    elements: int
    zeros: int
    mask_bytes: int

    @property
    def sparsity(self) -> float:
        """The share of zeros in the parameter times its mask, in [0, 1]."""
        return self.zeros / self.elements if self.elements else 0.0


@dataclasses.dataclass(frozen=True)
class Summary:
    """The rows of :func:`summary` and their totals; ``str()`` gives the table."""

    rows: tuple[Row, ...]

    @property
    def elements(self) -> int:
        """The number of elements of all parameters, each tied parameter counted once."""
        return sum(row.elements for row in self.rows)

    @property
    def zeros(self) -> int:
        """The number of zeros among the elements."""
        return sum(row.zeros for row in self.rows)

    @property
    def sparsity(self) -> float:
        """The share of zeros, in [0, 1]."""
        return self.zeros / self.elements if self.elements else 0.0

    @property
    def mask_bytes(self) -> int:
        """Memory that the masks take, in bytes."""
        return sum(row.mask_bytes for row in self.rows)

    def __str__(self) -> str:
        table = [
            [row.name, "x".join(map(str, row.shape)) or "scalar", row.method, row.elements, row.zeros, f"{row.sparsity:.1%}"]
            for row in self.rows
        ]
        table.append(["total", "", "", self.elements, self.zeros, f"{self.sparsity:.1%}"])
        headers = ["parameter", "shape", "method", "elements", "zeros", "sparsity"]
        text = tabulate(table, headers=headers, colalign=("left", "left", "left", "right", "right", "right"))
        masked = sum(row.mask_bytes > 0 for row in self.rows)
        return f"{text}\n{masked} of {len(self.rows)} parameters masked; masks take {_memory(self.mask_bytes)}"


Destination: TypeAlias = "SupportsWrite[str] | Literal['stdout'] | None"


@overload
def summary(before: fx.GraphModule, after: None = None, *, file: Destination = "stdout") -> Summary: ...


@overload
def summary(
    before: nn.Module,
    after: nn.Module,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    layers: bool = False,
    latency: bool = True,
    file: Destination = "stdout",
) -> Comparison: ...


def summary(
    before: nn.Module,
    after: nn.Module | None = None,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    layers: bool = False,
    latency: bool = True,
    file: Destination = "stdout",
) -> Summary | Comparison:
    """Print a table: of the masks in one graph, or of the costs of two models.

    With one graph: its parameters with shape, pruning method, sparsity; totals; memory of the masks. Zeros are counted in the
    products of parameter and mask. A tied parameter has one row, under all of its names.

    With two models: parameters and their bytes, FLOPs and latency of one run in eval mode. Neither model changes.

    Args:
        before: the graph; or the one model, of any kind.
        after: the other model.
        example_inputs: positional inputs of both models as a tuple or list, or the single input. Without them nothing is run.
        example_kwargs: keyword inputs.
        layers: compare parameter by parameter, and the FLOPs module by module.
        latency: measure time: the median over runs of both models in turn.
        file: where to print, ``sys.stdout`` unless given; None prints nothing.

    Returns:
        The numbers, whose ``str()`` is the table.

    Raises:
        PruningTypeError: ``before`` is not a graph and there is no ``after``, or a model is not a module; or inputs are given
            for one graph alone.
        InputError: the example inputs do not fit one of the models.

    Example:
        >>> fxprune.summary(gm).sparsity
        >>> fxprune.summary(model, slim, torch.randn(1, 3, 224, 224), layers=True)
    """
    result: Summary | Comparison
    if after is not None:
        result = _compared(before, after, example_inputs, example_kwargs, layers=layers, latency=latency)
    elif example_inputs is not None or example_kwargs is not None or layers:
        raise PruningTypeError("example inputs and layers=True are for two models: summary(before, after, example_inputs)")
    else:
        result = _masked(as_graph_module(before))
    if file is not None:
        print(result, file=sys.stdout if file == "stdout" else file)
    return result


def _compared(before: Any, after: Any, inputs: Any, kwargs: Any, *, layers: bool, latency: bool) -> Comparison:
    for name, model in (("before", before), ("after", after)):
        if not isinstance(model, nn.Module):
            raise PruningTypeError(f"{name} must be a torch.nn.Module, not {type(model).__name__}")
    found = None
    if inputs is not None or kwargs is not None:
        found, _ = (given(model, () if inputs is None else inputs, kwargs) for model in (before, after))
    return compare(before, after, found, layers=layers, latency=latency)


def _masked(gm: fx.GraphModule) -> Summary:
    methods = METHODS.get(gm) or {}
    rows = []
    for _, parameter in gm.named_parameters():
        names, value, method, mask_bytes = parameter_names(gm, parameter), parameter.detach(), "", 0
        masked = find_masked(gm, names[0].removesuffix(ORIG))
        if masked is not None and masked.orig is parameter:
            names, value, applied = masked.names, value * masked.mask, methods.get(masked.name)
            method = ", ".join(type(part).__name__ for part in parts_of(applied)) if applied is not None else "given mask"
            mask_bytes = sum(mask.nbytes for mask in masked.masks.values())
        zeros = 0 if value.is_meta else value.numel() - int(value.count_nonzero())
        rows.append(Row(" = ".join(names), tuple(value.shape), method, value.numel(), zeros, mask_bytes))
    return Summary(tuple(rows))


def _memory(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
