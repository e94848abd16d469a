"""The inputs that a verification tries: random inputs like the examples, at the example's batch size and at another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn

from fxprune.frontends.torch_export import of_any_batch
from fxprune.frontends.trace import as_call, bind
from fxprune.torch_internals.graphs import is_flattened
from fxprune.torch_internals.tensors import hint, pytree, with_tensors
from fxprune.verification.without_chance import WIDER

Mode = Literal["eval", "train"]


class Inputs(NamedTuple):
    """Positional and keyword inputs of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """Return inputs with every tensor changed."""
        args, kwargs = with_tensors((self.args, self.kwargs), change)
        return Inputs(args, kwargs)

    def copied(self, double: bool) -> Inputs:
        """Return inputs of new tensors, in double precision if asked."""
        return self.map(lambda t: t.detach().to(WIDER.get(t.dtype, t.dtype) if double else t.dtype, copy=True))


class Try(NamedTuple):
    """Inputs for one run, and their number of samples if that is known."""

    inputs: Inputs
    samples: int | None


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison: the mode, and the inputs to try, the best first."""

    training: bool
    tries: tuple[Try, ...]


def cases(model: nn.Module, inputs: Inputs, modes: Iterable[Mode], *, other_batch: bool) -> Iterator[Case]:
    """Yield the cases to compare models in; with ``other_batch`` also those with one sample more, if ``model`` can take it."""
    batch = batch_size(model, inputs)
    for mode in dict.fromkeys(modes):
        for samples in (batch, batch + 1) if batch is not None and other_batch else (batch,):
            full = _of_size(inputs, batch, samples)
            yield Case(mode == "train", (Try(randomised(full.inputs), full.samples), full))


def cases_of_rewriting(model: nn.Module, inputs: Inputs, small: Inputs, modes: Iterable[Mode]) -> Iterator[Case]:
    """Yield one case a mode: on one sample of the ``small`` inputs in the first mode, on two in the second.

    Where the model does not run on these, the inputs of the example's sizes are tried.
    """
    batch = batch_size(model, inputs)
    for number, mode in enumerate(dict.fromkeys(modes)):
        best = _of_size(small, batch, None if batch is None else number + 1)
        more = _of_size(inputs, batch, None if batch is None else batch + number)
        drawn = (Try(randomised(each.inputs), each.samples) for each in (best, more, Try(inputs, batch)))
        yield Case(mode == "train", (*drawn, Try(inputs, batch)))


def _of_size(inputs: Inputs, batch: int | None, samples: int | None) -> Try:
    return Try(inputs if batch is None or samples is None else resized(inputs, batch, samples), samples)


def given(model: nn.Module, inputs: Any, kwargs: Any) -> Inputs:
    """Return the example inputs of a user; raise InputError if they do not fit the signature of ``model``."""
    found = Inputs(*as_call(inputs, kwargs))
    bind(model, *found, advice="give them as a tuple")
    return found


def batch_size(model: nn.Module, inputs: Inputs) -> int | None:
    """Return the number of samples in the inputs; None if it is unknown, or if ``model`` takes no other number.

    It is the first free size of the graph where the graph records free sizes; else the first dimension of all tensors, if
    they agree.
    """
    if isinstance(model, fx.GraphModule) and is_flattened(model):
        free = of_any_batch(model.graph)
        return hint(free[0].meta["val"].shape[0]) if free else None
    sizes = {t.shape[0] for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor) and t.dim() > 0}
    return sizes.pop() if len(sizes) == 1 else None


def resized(inputs: Inputs, batch: int, samples: int) -> Inputs:
    """Return inputs of another batch size: the samples repeated, from the first on."""

    def repeat(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or tensor.shape[0] != batch:
            return tensor
        if batch == 0:  # there is no sample to repeat
            return torch.zeros((samples, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
        return tensor.index_select(0, torch.arange(samples, device=tensor.device) % batch)

    return inputs.map(repeat)


def randomised(inputs: Inputs, seed: int = 0) -> Inputs:
    """Return random inputs like ``inputs``, drawn from a generator of their own.

    Floating-point tensors become normal with the given tensor's mean and standard deviation (1 if it is constant); elements
    that are not finite stay. Integers are shuffled along the first two dimensions, usually batch and sequence. All other
    inputs stay.
    """
    generator = torch.Generator().manual_seed(seed)

    def randomise(tensor: Tensor) -> Tensor:
        if tensor.numel() == 0 or tensor.dtype == torch.bool or tensor.layout is not torch.strided:
            return tensor
        if tensor.is_floating_point() or tensor.is_complex():
            return _normal_like(tensor, generator)
        rows = tensor.flatten(0, 1) if tensor.dim() > 1 else tensor.reshape(-1)
        order = torch.randperm(len(rows), generator=generator).to(tensor.device)
        return rows[order].view(tensor.shape)

    return inputs.map(randomise)


def _normal_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    values = tensor.detach().to(wide)
    finite = values.isfinite()
    known = values[finite]
    if known.numel() == 0:
        return tensor
    spread = known.std(unbiased=False)
    noise = torch.randn(tensor.shape, generator=generator, dtype=wide).to(tensor.device)
    drawn = known.mean() + (spread if spread > 0 else 1.0) * noise
    return torch.where(finite, drawn, values).to(tensor.dtype)
