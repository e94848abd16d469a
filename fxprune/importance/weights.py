"""Reads the parameters of an analysed graph: their values with masks, and the sums over the elements of each unit."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Member
from fxprune.errors import PlanError
from fxprune.graph.masks import all_masked, find_parameter

_PIECE = 1 << 17  # elements


class Weights:
    """The parameters that groups live on, by name; ``dims`` has the dimensions of each on which units live."""

    def __init__(self, deps: Dependencies) -> None:
        self.dims: dict[str, list[int]] = {}
        for member in (member for group in deps.groups for member in group.on_parameters):
            if member.dim not in self.dims.setdefault(member.parameter, []):
                self.dims[member.parameter].append(member.dim)
        self._gm = deps.gm
        self._plain = dict(deps.gm.named_parameters(remove_duplicate=False))
        self._masked = {name: masked for masked in all_masked(deps.gm) for name in masked.names}

    def parameter(self, name: str) -> nn.Parameter:
        """Return a parameter as it is stored, without its mask."""
        found = self._masked[name].orig if name in self._masked else self._plain.get(name)
        if found is None:
            found = find_parameter(self._gm, name)  # raises, as the graph changed
        if found.is_meta:
            raise PlanError(
                f"parameter {name!r} is on the meta device and has no values to be ranked by: load the weights, or give an "
                "importance of your own"
            )
        return found

    def check_present(self) -> None:
        """Raise PlanError if a parameter is on the meta device."""
        for name in self.dims:
            self.parameter(name)

    def with_gradients(self) -> dict[str, nn.Parameter]:
        """Return the parameters as they are stored that can have gradients: integers and flags have none."""
        parameters = {name: self.parameter(name) for name in self.dims}
        found = {name: p for name, p in parameters.items() if p.is_floating_point() or p.is_complex()}
        for name, parameter in found.items():
            if parameter.is_inference():
                raise PlanError(f"parameter {name!r} was made in inference mode, so that it has no gradient: clone it outside")
        return found

    def value(self, name: str) -> Tensor:
        """Return the value that the graph computes with: the parameter times its mask."""
        value, masked = self.parameter(name).detach(), self._masked.get(name)
        return value if masked is None else value * masked.mask.to(value.dtype)


def accurate(value: Tensor) -> Tensor:
    """Return a tensor in single or double precision; of complex numbers the absolute values."""
    if value.is_complex():
        return value.abs()
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


Element = Callable[[Tensor, Tensor | None], Tensor]
"""The element-wise function whose results are summed; it may write into the second argument and return it."""


def _same(value: Tensor, out: Tensor | None = None) -> Tensor:
    return value


class Sums:
    """The sums of ``element(values(name))`` over all elements at one position of a parameter axis, read once a parameter.

    For a weight of shape (64, 16, 3, 3) the sums along dimension 1 have shape (16,): each is of 64 * 3 * 3 elements.
    """

    def __init__(self, weights: Weights, values: Callable[[str], Tensor], element: Element = _same) -> None:
        self._dims, self._values, self._element = weights.dims, values, element
        self._known: dict[str, dict[int, Tensor]] = {}
        self._buffer = torch.empty(0)

    def of(self, member: Member) -> Tensor:
        """Return the sums over the positions of each unit, shape (units,)."""
        name = member.parameter
        if name not in self._known:
            self._known[name] = self._sums_along(self._values(name), self._dims[name])
        along = self._known[name][member.dim]
        index = torch.from_numpy(member.positions).to(along.device)
        return along.index_select(0, index.view(-1)) if index.shape[1] == 1 else along[index].sum(1)

    def _sums_along(self, value: Tensor, dims: list[int]) -> dict[int, Tensor]:
        """Return for each of ``dims`` the sums over all other dimensions, shape (size,)."""
        if value.dim() == 1:
            return {0: self._element(accurate(value), None)}
        inner = value.shape[1:]
        # On a CPU in pieces that fit into its cache; on other devices each piece would be a kernel of its own.
        step = max(1, _PIECE // max(1, math.prod(inner))) if value.device.type == "cpu" else len(value)
        outermost: list[Tensor] = []
        rest: Tensor | None = None
        for part in value.split(step) if step < len(value) else (value,):
            elements = self._elements(part).flatten(1)
            if 0 in dims:
                outermost.append(elements.sum(1))
            if dims != [0]:
                summed = elements.sum(0)
                rest = summed if rest is None else rest + summed
        found = {0: outermost[0] if len(outermost) == 1 else torch.cat(outermost)} if outermost else {}
        for dim in dims:
            if dim and rest is not None:
                others = [d for d, size in enumerate(inner) if d != dim - 1 and size != 1]
                found[dim] = rest.view(inner).sum(others).view(-1) if others else rest
        return found

    def _elements(self, part: Tensor) -> Tensor:
        """Return ``element(part)``, on a CPU in memory that is used again, as freed pieces of several sizes leave holes."""
        if part.device.type != "cpu" or part.is_complex():
            return self._element(accurate(part), None)
        dtype = torch.float64 if part.dtype == torch.float64 else torch.float32
        if self._buffer.dtype != dtype or len(self._buffer) < part.numel():
            self._buffer = torch.empty(max(part.numel(), _PIECE), dtype=dtype)
        out = self._buffer[: part.numel()].view(part.shape)
        return self._element(part if part.dtype == dtype else out.copy_(part), out)
