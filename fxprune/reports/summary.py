"""summary: what is masked in a graph, or what a model costs before and after, as a table."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from tabulate import tabulate
from torch import Tensor, fx, nn

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
        """The share of zeros in what the graph computes with, in [0, 1]."""
        return self.zeros / self.elements if self.elements else 0.0


@dataclasses.dataclass(frozen=True)
class Summary:
    """The rows of :func:`summary` and their totals; ``str()`` gives the table."""

    rows: tuple[Row, ...]

    @property
    def elements(self) -> int:
        """Elements of all parameters, each tied one counted once."""
        return sum(row.elements for row in self.rows)

    @property
    def zeros(self) -> int:
        """Zeros among them."""
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
        masked = sum(1 for row in self.rows if row.mask_bytes)
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
    """Print a table: of what is masked in one graph, or of what two models cost.

    With one graph: its parameters with shape, pruning method, sparsity; totals; memory of the masks. Zeros are counted in the
    values that the graph computes with, so after the mask. A tied parameter has one row, under all of its names.

    With two models: parameters, bytes of these; FLOPs and latency of one run in eval mode. Neither model changes.

    Args:
        before: the graph; or the one model, of any kind.
        after: the other model.
        example_inputs: positional inputs of both models as a tuple or list, or the single one. Without, nothing is run.
        example_kwargs: keyword inputs.
        layers: compare parameter by parameter, and the FLOPs module by module.
        latency: measure time: the median over runs of both models in turn.
        file: where to print, ``sys.stdout`` unless given; None prints nothing.

    Returns:
        The numbers, whose ``str()`` is the table.

    Raises:
        PruningTypeError: ``before`` is not a graph and there is no ``after``, or one of the two is not a module; or inputs are
            given for one graph alone.
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


def _compared(before: object, after: object, inputs: Any, kwargs: Any, *, layers: bool, latency: bool) -> Comparison:
    for name, model in (("before", before), ("after", after)):
        if not isinstance(model, nn.Module):
            raise PruningTypeError(f"{name} must be a torch.nn.Module, not {type(model).__name__}")
    assert isinstance(before, nn.Module)
    assert isinstance(after, nn.Module)
    found = None
    if inputs is not None or kwargs is not None:
        positional = () if inputs is None else inputs
        found = given(before, positional, kwargs)
        given(after, positional, kwargs)
    return compare(before, after, found, layers=layers, latency=latency)


def _masked(gm: fx.GraphModule) -> Summary:
    methods = METHODS.get(gm) or {}
    rows = []
    for _, parameter in gm.named_parameters():
        names = parameter_names(gm, parameter)
        masked = find_masked(gm, names[0].removesuffix(ORIG))
        if masked is not None and masked.orig is parameter:
            value: Tensor = parameter.detach() * masked.mask
            mask_bytes = sum(mask.nbytes for mask in masked.masks.values())
            rows.append(_row(masked.names, value, _method_names(methods.get(masked.name)), mask_bytes))
        else:
            rows.append(_row(names, parameter.detach(), "", 0))
    return Summary(tuple(rows))


def _row(names: tuple[str, ...], value: Tensor, method: str, mask_bytes: int) -> Row:
    zeros = 0 if value.is_meta else value.numel() - int(value.count_nonzero())
    return Row(" = ".join(names), tuple(value.shape), method, value.numel(), zeros, mask_bytes)


def _method_names(method: object) -> str:
    return ", ".join(type(part).__name__ for part in parts_of(method)) if method is not None else "given mask"


def _memory(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
