"""Chooses the front end that captures a model, and says why the other front end does not."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from types import CodeType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.errors import CaptureError, InputError
from fxprune.frontends.attempt import Attempt, Example, by_copy, by_export, by_trace, check_in_modes
from fxprune.frontends.equivalence.gradients import gradient_note
from fxprune.frontends.equivalence.program import Programs
from fxprune.frontends.model.hooks import Hook, Pruned, cannot_keep, other_hooks, without_hooks, without_prune_hooks
from fxprune.frontends.model.snapshot import ModelSnapshot
from fxprune.frontends.model.wrappers import without_wrapper, without_wrappers
from fxprune.frontends.modes.reads import in_mode, switching_changes
from fxprune.frontends.trace import AssignedError, as_call, bind
from fxprune.graph.captured import CapturedModule, compiled_later
from fxprune.graph.metadata import EXAMPLE
from fxprune.graph.parts import has_extra_state
from fxprune.torch_internals.switches import (
    alone,
    no_autocast,
    own_random_numbers,
    uncollected,
    uncompiled,
    unlogged,
    watching_backwards,
    watching_checkpoints,
)
from fxprune.torch_internals.tensors import pytree, with_tensors

Frontend = Literal["auto", "trace", "export"]


@dataclasses.dataclass(frozen=True)
class Captured:
    """A graph before masks are inserted."""

    gm: CapturedModule  # with its example inputs
    pruned: list[Pruned]  # the parameters that torch.nn.utils.prune masks in the model
    notes: list[str]  # sentences on the behaviour of the model that the graph does not keep, without repetition


def capture_graph(
    model: nn.Module, example_inputs: Any, example_kwargs: Mapping[str, Any] | None = None, frontend: Frontend = "auto"
) -> Captured:
    """Capture a model as :func:`fxprune.capture` does, with the same errors, but without masks and warnings."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    model = without_wrapper(model)
    args, kwargs = _inputs(model, example_inputs, example_kwargs, frontend)
    with (
        alone(), torch.inference_mode(False), torch.enable_grad(), uncollected(), compiled_later(), no_autocast(), unlogged(),
        without_wrappers(model),
    ):  # fmt: skip
        modules = list(model.named_modules())
        hooks = other_hooks(modules)
        with without_prune_hooks(modules) as pruned:
            with without_hooks(modules, hooks) as computing:
                example = _example(model, args, kwargs)
                with own_random_numbers(example.kept.tensors.values()) as other_generators:
                    attempt = _with_gradients(example, frontend)
            if hooks or computing:
                _check_hooks(attempt, _example(model, args, kwargs), hooks, computing)
        EXAMPLE.set(attempt.gm, (args, kwargs))
        drawn = [
            f"the model draws numbers from {name}; those drawn during the capture are constants of the graph"
            for name in other_generators
        ]
        notes = [*attempt.notes, *drawn, *switching_changes(modules)]
        if has_extra_state(model) and not isinstance(model, CapturedModule):
            notes.append(f"the extra state of {type(model).__name__} itself is not in the graph's state_dict")
        if paths := [path for path, module in modules if isinstance(module, nn.SyncBatchNorm)]:
            where = ", ".join(paths)
            notes.append(f"{where}: in train mode the graph computes batch statistics in each process alone, as BatchNorm does")
    return Captured(attempt.gm, pruned, list(dict.fromkeys(notes)))


def _example(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Example:
    kept = ModelSnapshot(model)
    return Example(model, args, kwargs, kept, Programs(kept))


def _check_hooks(attempt: Attempt, example: Example, hooks: list[Hook], computing: list[Hook]) -> None:
    """Compare a graph that was captured without hooks with the model as it is; raise HookError if they differ."""
    try:
        with own_random_numbers(example.kept.tensors.values()):
            check_in_modes(attempt, example)
    except CaptureError as error:
        raise cannot_keep([*hooks, *computing]) from error
    if hooks:
        listed = "\n  ".join(map(str, hooks))
        attempt.notes.append(
            f"the graph runs without {len(hooks)} hooks, as the model computes the same without them on the example inputs:\n  "
            f"{listed}"
        )


def _inputs(model: nn.Module, inputs: Any, kwargs: Any, frontend: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if frontend not in ("auto", "trace", "export"):
        raise CaptureError(f'frontend must be "auto", "trace" or "export", not {frontend!r}')
    args, kwargs = as_call(inputs, kwargs)
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("the model is TorchScript, which no front end looks into: capture the module that it was made from")
    for name, value in bind(model, args, kwargs).arguments.items():
        if any(isinstance(leaf, np.ndarray) for leaf in pytree.tree_leaves(value)):
            raise InputError(f"example input {name!r} is or holds a NumPy array: give a tensor, as of torch.from_numpy")
    return args, kwargs


def _with_gradients(example: Example, frontend: Frontend) -> Attempt:
    """Return the first attempt that works, with a note on the backwards that the model's code writes and the graph loses."""
    backwards: dict[str, None] = {}

    def note(name: str, code: CodeType) -> None:
        backwards.setdefault(f"{name} ({code.co_filename}:{code.co_firstlineno})")

    checkpointed: dict[str, None] = {}

    def note_checkpoint(code: CodeType | None) -> None:
        checkpointed.setdefault(f"{code.co_filename}:{code.co_firstlineno}" if code is not None else "functions of torch")

    with watching_backwards(note), watching_checkpoints(note_checkpoint):
        attempt = _first_that_works(example, frontend)
    if checkpointed:
        attempt.notes.append(
            "torch.utils.checkpoint does not take part in the graph, which keeps all activations for the backward pass: those "
            f"of {', '.join(checkpointed)}"
        )
    if backwards:
        for training in (example.training, not example.training) if attempt.follows_mode else (example.training,):
            each = example.doubled() if training else example  # some layers need two samples to train on
            inputs = each.args, each.kwargs
            with in_mode(example.kept.modules, training), in_mode(attempt.gm.named_modules(), training):
                lost = gradient_note(attempt.gm, example.model, inputs, backwards)
            if lost is not None:
                attempt.notes.append(lost)
                break
    return attempt


def _after_a_call(example: Example, frontend: Frontend) -> Attempt:
    """Return the first attempt that works on the model with the tables that its first call makes, with a note on them."""

    def call() -> None:
        args, kwargs = with_tensors((example.args, example.kwargs), Tensor.clone)
        with torch.no_grad(), uncompiled():
            example.model(*args, **kwargs)

    with example.kept.with_assigned(call) as names:
        later = _example(example.model, example.args, example.kwargs)
        attempt = _first_that_works(later, frontend, fills=False)
    attempt.notes.append(
        f"forward assigns tensors to {', '.join(names)}; the graph has those of the example inputs as constants"
    )
    return attempt


def _first_that_works(example: Example, frontend: Frontend, *, fills: bool = True) -> Attempt:
    attempts = {"trace": by_trace, "export": by_export}
    if isinstance(example.model, CapturedModule):
        attempts, frontend = {"copy": by_copy}, "auto"
    reasons: dict[str, CaptureError] = {}
    found: list[Attempt] = []
    tries = [(name, example) for name in (attempts if frontend == "auto" else [frontend])]
    if example.kept.caches():  # what a cache holds would be a constant of the graph; what is no cache is one
        computing = dataclasses.replace(example, kept=example.kept.without_caches())
        tries = [(name, each) for name, _ in tries for each in (computing, example)]
    for name, each in tries:
        try:
            attempt = attempts[name](each)
        except CaptureError as error:
            reasons[name] = error
            continue
        if attempt.follows_mode or not attempt.could_follow:
            return attempt
        found.append(attempt)  # the other front end may keep more of the model
    if found:
        return min(found, key=lambda attempt: len(attempt.notes))
    if fills and any(isinstance(error.__cause__, AssignedError) for error in reasons.values()):
        return _after_a_call(example, frontend)
    _blame_inputs(example)
    listed = "\n  ".join(f"{name}: {error}" for name, error in reasons.items())
    hint = "" if frontend == "auto" else '\nThe other front end may be able to: frontend="auto" tries both.'
    last = list(reasons.values())[-1]
    raise CaptureError(f"{type(example.model).__name__} could not be captured:\n  {listed}{hint}") from last


def _blame_inputs(example: Example) -> None:
    """Raise InputError if the model itself cannot run on the example inputs."""
    try:
        model = copy.deepcopy(example.model)
    except Exception:  # a model that cannot be copied is not run, as a run could change it
        return
    try:
        with torch.no_grad(), in_mode(model.named_modules(), training=False):
            args, kwargs = with_tensors((example.args, example.kwargs), Tensor.clone)
            model(*args, **kwargs)
    except Exception as error:
        inputs = example.args, example.kwargs
        shapes, keywords = pytree.tree_map(lambda leaf: list(leaf.shape) if isinstance(leaf, Tensor) else leaf, inputs)
        raise InputError(
            f"the example inputs do not fit the model: {type(example.model).__name__} itself fails on inputs of shapes "
            f"{shapes} {keywords or ''}: {type(error).__name__}: {error}"
        ) from error
