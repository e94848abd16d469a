"""capture: a model and example inputs in, a graph out."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune import methods
from fxprune.errors import CaptureError, CaptureWarning, InputError
from fxprune.frontends.assemble import assemble
from fxprune.frontends.check import check_against_model
from fxprune.frontends.export import export, two_samples
from fxprune.frontends.hooks import Pruned, check_hooks, without_prune_hooks
from fxprune.frontends.merge import merge_modes
from fxprune.frontends.modes import ModeReads, in_mode, noting_mode_reads, untouched
from fxprune.frontends.trace import bind, graph_inputs, trace
from fxprune.modules import CapturedModule
from fxprune.passes.mask import insert_masks

Frontend = Literal["auto", "trace", "export"]


def capture(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...] | list[Any],
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    frontend: Frontend = "auto",
) -> CapturedModule:
    """Turn a model into a ``torch.fx.GraphModule`` that shares its parameters and buffers, but none of its modules.

    The graph takes batches of any size, follows ``train()`` and ``eval()`` as the model does, and has the model's
    state_dict keys. It is captured in the mode that the model is in.

    Args:
        model: the model; left as it was. Parameters pruned by ``torch.nn.utils.prune`` are masked in the graph.
        example_inputs: the positional inputs of ``forward``, or the single tensor if there is one. Only shapes, dtypes and
            devices of tensors matter. Values that are not tensors are fixed, and checked when the graph runs; but plain
            numbers stay inputs where the model's code allows it.
        example_kwargs: the keyword inputs.
        frontend: ``"trace"`` for symbolic tracing (module-level graph), ``"export"`` for ``torch.export`` (ATen-level graph),
            ``"auto"`` for the first of these that works.

    Returns:
        The graph, with example values (fake tensors) in ``node.meta["val"]`` wherever they could be computed.

    Raises:
        InputError: the example inputs do not fit the model.
        HookError: a module of the model has hooks.
        CaptureError: no front end can capture the model; gives the reason of each.

    Warns:
        CaptureWarning: the model does something in train or in eval mode that one graph cannot keep.

    Example:
        >>> gm = fxprune.capture(torchvision.models.resnet18(), torch.randn(1, 3, 224, 224))
    """
    args, kwargs = _inputs(model, example_inputs, example_kwargs, frontend)
    check_hooks(model)
    with without_prune_hooks(model) as pruned, torch.random.fork_rng(devices=[]):
        gm = _first_that_works(_Example(model, args, kwargs), frontend)
    for entry in pruned:
        _mask_as(gm, entry)
    gm.recompile()
    return gm


@dataclasses.dataclass(frozen=True)
class _Example:
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _inputs(model: Any, inputs: Any, kwargs: Any, frontend: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if frontend not in ("auto", "trace", "export"):
        raise CaptureError(f'frontend must be "auto", "trace" or "export", not {frontend!r}')
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InputError(f"example_kwargs must be a dict of keyword inputs, not {type(kwargs).__name__}")
    args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    bind(model, args, dict(kwargs or {}))
    return args, dict(kwargs or {})


def _first_that_works(example: _Example, frontend: Frontend) -> CapturedModule:
    attempts = {"trace": _by_trace, "export": _by_export}
    wanted = list(attempts) if frontend == "auto" else [frontend]
    reasons: dict[str, CaptureError] = {}
    for name in wanted:
        try:
            return attempts[name](example)
        except CaptureError as error:
            reasons[name] = error
    _blame_inputs(example)
    listed = "\n  ".join(f"{name}: {error}" for name, error in reasons.items())
    hint = "" if frontend == "auto" else '\nThe other front end may be able to: frontend="auto" tries both.'
    raise CaptureError(f"{type(example.model).__name__} could not be captured:\n  {listed}{hint}") from list(reasons.values())[
        -1
    ]


def _by_trace(example: _Example) -> CapturedModule:
    model, training = example.model, example.model.training
    call = bind(model, example.args, example.kwargs)
    with noting_mode_reads(model) as reads, untouched(model), in_mode(model, training):
        graph, constants = trace(model, call)
    gm = assemble(model, graph, constants)
    _check(gm, example)
    if reads:
        with untouched(model), in_mode(model, not training):
            other, other_constants = trace(model, call)
        _merge(gm, model, other, other_constants, reads)
    return gm


def _check(gm: CapturedModule, example: _Example) -> None:
    """Run graph and model side by side; on two copies of a single sample if they can: some layers train on no fewer."""
    model = example.model
    for args, kwargs in _distinct([two_samples(example.args, example.kwargs), (example.args, example.kwargs)]):
        inputs = graph_inputs(bind(model, args, kwargs))
        try:
            with in_mode(model, model.training), in_mode(gm, model.training):
                return check_against_model(gm, model, args, kwargs, inputs)
        except CaptureError as error:
            failure = error
    raise failure


def _distinct(examples: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    return examples[:1] if examples[0][0] is examples[1][0] else examples


def _by_export(example: _Example) -> CapturedModule:
    model, training = example.model, example.model.training
    with noting_mode_reads(model) as reads, untouched(model), in_mode(model, training):
        graph, constants = export(model, example.args, example.kwargs)
    gm = assemble(model, graph, constants)
    if reads:
        with untouched(model), in_mode(model, not training):
            other, other_constants = export(model, example.args, example.kwargs)
        _merge(gm, model, other, other_constants, reads)
    return gm


def _merge(gm: CapturedModule, model: nn.Module, other: fx.Graph, constants: dict[str, Any], reads: ModeReads) -> None:
    training = model.training
    for path in merge_modes(gm, model, other, constants, training=training):
        asked = [read for read in reads.inside(path) if f"{_TORCH}nn" not in read[1]] or reads.inside(path) or reads.all()
        lines = "; ".join(f"{module or '(the model itself)'} at {line}" for module, line in dict.fromkeys(asked))
        warnings.warn(
            f"module {path or '(the model itself)'!r} computes something else in train mode than in eval mode, in a way that "
            f"one graph cannot keep; the graph does what it does in {'train' if training else 'eval'} mode, whatever "
            f"gm.train() or gm.eval() say. The mode is asked for by {lines}. Capture the model in each mode if both matter.",
            CaptureWarning,
            stacklevel=5,
        )


_TORCH = torch.__file__.removesuffix("__init__.py")


def _blame_inputs(example: _Example) -> None:
    """Raise InputError if the model itself cannot run on the example inputs."""
    try:
        model = copy.deepcopy(example.model)
    except Exception:  # a model that cannot be copied is not run: that could change it
        return
    try:
        with torch.no_grad(), in_mode(model, training=False):
            model(*example.args, **example.kwargs)
    except Exception as error:
        shapes = pytree.tree_map(lambda leaf: list(leaf.shape) if isinstance(leaf, Tensor) else leaf, example.args)
        keywords = pytree.tree_map(lambda leaf: list(leaf.shape) if isinstance(leaf, Tensor) else leaf, example.kwargs)
        raise InputError(
            f"the example inputs do not fit the model: {type(example.model).__name__} itself fails on inputs of shapes "
            f"{shapes} {keywords or ''}: {type(error).__name__}: {error}"
        ) from error


def _mask_as(gm: CapturedModule, pruned: Pruned) -> None:
    """Mask a parameter as ``torch.nn.utils.prune`` had it, the record of its methods included."""
    insert_masks(gm, {pruned.name: pruned.mask})
    methods.adopt(gm, pruned.name, pruned.method)
