"""summary: what is masked in a graph, as a table."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Literal

from tabulate import tabulate
from torch import Tensor, fx

from fxprune import state
from fxprune.modules import ORIG

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


def summary(gm: fx.GraphModule, *, file: SupportsWrite[str] | Literal["stdout"] | None = "stdout") -> Summary:
    """Print a table of the parameters of a graph: shape, pruning method, sparsity; totals; memory of the masks.

    Zeros are counted in the values that the graph computes with, so after the mask. A tied parameter has one row, under all
    of its names.

    Args:
        gm: the graph.
        file: where to print, ``sys.stdout`` unless given; None prints nothing.

    Returns:
        The rows and totals, whose ``str()`` is the table.

    Example:
        >>> fxprune.summary(gm).sparsity
    """
    methods = state.methods_of(state.graph_module(gm))
    rows = []
    for _, parameter in gm.named_parameters():
        names = state.parameter_names(gm, parameter)
        masked = state.find_masked(gm, names[0].removesuffix(ORIG))
        if masked is not None and masked.orig is parameter:
            value: Tensor = parameter.detach() * masked.mask
            rows.append(_row(masked.names, value, _method_names(methods.get(masked.name)), _bytes(masked.mask)))
        else:
            rows.append(_row(names, parameter.detach(), "", 0))
    result = Summary(tuple(rows))
    if file is not None:
        print(result, file=sys.stdout if file == "stdout" else file)
    return result


def _row(names: tuple[str, ...], value: Tensor, method: str, mask_bytes: int) -> Row:
    zeros = 0 if value.is_meta else value.numel() - int(value.count_nonzero())
    return Row(" = ".join(names), tuple(value.shape), method, value.numel(), zeros, mask_bytes)


def _method_names(method: object) -> str:
    parts = getattr(method, "_pruning_methods", (method,))
    return ", ".join(type(part).__name__ for part in parts) if method is not None else "given mask"


def _bytes(mask: Tensor) -> int:
    return mask.numel() * mask.element_size()


def _memory(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
