"""One attempt of one front end: from a model to a checked graph that follows ``train()`` and ``eval()``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import CaptureError
from fxprune.frontends.assemble import assemble
from fxprune.frontends.equivalence.check import ModelError, check_against_model, remembers
from fxprune.frontends.equivalence.program import Programs
from fxprune.frontends.form_guards import write_form_guards
from fxprune.frontends.model.snapshot import Changes, ModelSnapshot
from fxprune.frontends.modes.align import flatten
from fxprune.frontends.modes.merge import merge_modes
from fxprune.frontends.modes.reads import ModeReads, in_mode, noting_mode_reads
from fxprune.frontends.torch_export import Exported, batched, export, optional_inputs
from fxprune.frontends.trace import Traced, bind, trace
from fxprune.graph.captured import CapturedModule
from fxprune.graph.metadata import FIXED_DTYPE, OPTIONAL
from fxprune.graph.parts import shared_copy
from fxprune.torch_internals.tensors import pytree, with_tensors


@dataclasses.dataclass(frozen=True)
class Example:
    """A model and inputs to call it with."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    kept: ModelSnapshot  # undoes what the model's code changes
    programs: Programs  # compares graphs with the model

    @property
    def training(self) -> bool:
        """The mode of the model; the read is not noted as a read by the model's code."""
        return bool(vars(self.model)["training"])

    @property
    def is_meta(self) -> bool:
        """Whether all tensors are on the meta device, which has no values."""
        tensors = [*self.model.parameters(), *self.model.buffers(), *pytree.tree_leaves((self.args, self.kwargs))]
        return all(tensor.is_meta for tensor in tensors if isinstance(tensor, Tensor))

    def one_sample(self) -> Example:
        """Return the example with the first sample of its batch alone."""
        return self._with_batch(lambda batch: batch[:1])

    def no_sample(self) -> Example:
        """Return the example with an empty batch."""
        return self._with_batch(lambda batch: batch[:0])

    def doubled(self) -> Example:
        """Return the example with a batch of one sample repeated, as torch.export takes a size of 1 for a constant."""
        return self._with_batch(lambda batch: torch.cat([batch, batch]) if len(batch) == 1 else batch)

    def _with_batch(self, change: Callable[[Tensor], Tensor]) -> Example:
        ids = {id(t) for t in batched(self.args, self.kwargs)}
        args, kwargs = with_tensors((self.args, self.kwargs), lambda tensor: change(tensor) if id(tensor) in ids else tensor)
        return dataclasses.replace(self, args=args, kwargs=kwargs)


@dataclasses.dataclass
class Attempt:
    """A graph, with sentences on the behaviour of the model that the graph does not keep."""

    gm: CapturedModule
    notes: list[str] = dataclasses.field(default_factory=list)
    follows_mode: bool = True  # whether the graph does what the model does in both modes
    could_follow: bool = True  # whether one graph can: a model that returns more results in one mode needs two graphs


def by_trace(example: Example) -> Attempt:
    """Capture by symbolic tracing.

    Raises:
        CaptureError: tracing fails, or gives a graph that differs from the model.
    """
    call = bind(example.model, example.args, example.kwargs)
    with noting_mode_reads(example.kept.modules) as reads, in_mode(example.kept.modules, example.training):
        traced = trace(example.kept, call)
    attempt = Attempt(assemble(example.model, traced.graph, traced.constants))
    dtypes_asked = [traced.of_dtype]
    attempt.notes += _state_notes(example, _check_first(example, attempt.gm, record=True))
    if traced.for_several:
        _check_other_batches(attempt, example, example.training)

    def other() -> Traced:
        found = trace(example.kept, call, decides=traced.decides)
        dtypes_asked.append(found.of_dtype)
        return found

    if reads:
        _follow_mode(attempt, example, reads, other)
    if any(dtypes_asked):
        FIXED_DTYPE.set(attempt.gm, max(dtypes_asked))
    if reads.writes:
        attempt.follows_mode = False
        attempt.notes.append(_writes_note(reads.writes, example.training))
    return attempt


def by_copy(example: Example) -> Attempt:
    """Copy a model that is a captured graph already; the copy shares its tensors.

    Raises:
        CaptureError: the graph fails on the example inputs.
    """
    assert isinstance(example.model, CapturedModule)
    copied = shared_copy(example.model)
    _check(example, copied, record=True)
    return Attempt(copied)


def by_export(example: Example) -> Attempt:
    """Capture by ``torch.export``.

    Raises:
        CaptureError: the export fails, or gives a graph that differs from the model.
    """
    attempt, reason = _export(example.doubled(), free_batch=True)
    changes = Changes()
    if reason is None:
        try:
            changes = _check_first(example, attempt.gm)
            _check_other_batches(attempt, example, example.training)
        except CaptureError as error:
            if isinstance(error, ModelError) and example.is_meta:
                # Code that reads values outside of an export fails here, as the meta device has no values.
                attempt.notes.append(f"the graph could not be compared with the model on the meta device: {error}")
            else:
                reason = str(error)
    if reason is not None:
        attempt, _ = _export(example, free_batch=False)
        changes = _check(example, attempt.gm)
        attempt.notes.append(f"the graph takes only batches of the example's size, as the model fixes its batch size: {reason}")
    attempt.notes += [*_state_notes(example, changes), *write_form_guards(attempt.gm, changes.forms)]
    if optional := optional_inputs(bind(example.model, example.args, example.kwargs)):
        OPTIONAL.set(attempt.gm, optional)
    attempt.gm.recompile()
    return attempt


def _export(example: Example, free_batch: bool) -> tuple[Attempt, str | None]:
    """Export in both modes; return the attempt and, where the model fixes its batch size, the reason."""
    model, args, kwargs = example.model, example.args, example.kwargs
    with noting_mode_reads(example.kept.modules) as reads, in_mode(example.kept.modules, example.training):
        exported = export(example.kept, args, kwargs, free_batch=free_batch)
    attempt = Attempt(assemble(model, exported.graph, exported.constants))
    if exported.fixed_batch is None:
        try:
            if reads:
                _follow_mode(attempt, example, reads, lambda: export(example.kept, args, kwargs, free_batch=free_batch))
            else:  # the code may know its mode in a way that nobody sees
                _check_mode(example, attempt.gm, not model.training)
        except CaptureError as error:
            attempt.notes.append(f"in {_name(not model.training)} mode {error}")
            attempt.follows_mode = False
    return attempt, exported.fixed_batch


def _follow_mode(attempt: Attempt, example: Example, reads: ModeReads, capture: Callable[[], Traced | Exported]) -> None:
    """Capture the other mode, merge its graph into the attempt's, and check the result in every mode that the model runs in."""
    model, gm = example.model, attempt.gm
    try:
        with in_mode(example.kept.modules, not model.training):
            other = capture()
    except CaptureError as error:
        attempt.notes.append(
            f"the graph does what the model does in {_name(model.training)} mode, whatever gm.train() or gm.eval() say: in "
            f"{_name(not model.training)} mode the model could not be captured ({error})"
        )
        attempt.follows_mode = False
        return
    ours, theirs = (_structure(graph.output_node()) for graph in (gm.graph, other.graph))
    attempt.could_follow = ours == theirs
    lost = merge_modes(gm, model, other.graph, other.constants, reads)
    gm.recompile()
    notes = [_mode_note(path, model.training, reads) for path in lost]
    attempt.notes += notes if attempt.could_follow else [" ".join([_results_note(model.training), *notes])]
    if lost:
        attempt.follows_mode = False
        return
    _check_mode(example, gm, not model.training)
    if other.for_several:
        _check_other_batches(attempt, example, not model.training)
    _check_mode(example, gm, model.training)
    if len({module.training for _, module in example.kept.modules}) > 1:
        _check_if_possible(example.doubled(), gm)


def _structure(node: fx.Node) -> Any:
    """Return the containers around the arguments of a node, comparable by ``==``; a named tuple is a node that makes it."""
    leaves, spec = flatten(node)
    return node.target, spec, [_structure(leaf) if _is_container(leaf) else None for leaf in leaves]


def _is_container(leaf: Any) -> bool:
    made = leaf.target if isinstance(leaf, fx.Node) else None
    return isinstance(made, type) and (issubclass(made, tuple | dict) or dataclasses.is_dataclass(made))


def _check(example: Example, gm: CapturedModule, record: bool = False) -> Changes:
    return check_against_model(gm, example.model, example.args, example.kwargs, record=record, programs=example.programs)


def _check_mode(example: Example, gm: CapturedModule, training: bool) -> None:
    """Check a graph in one mode of all modules, if the model runs in it."""
    with in_mode(gm.named_modules(), training), in_mode(example.kept.modules, training):
        # Some layers need two samples to train on.
        _check_if_possible(example.doubled() if training else example, gm)


def _check_other_batches(attempt: Attempt, example: Example, training: bool) -> None:
    """Check a graph for several samples on one sample and, with a note in place of an error, on none."""
    with in_mode(attempt.gm.named_modules(), training), in_mode(example.kept.modules, training):
        _check_if_possible(example.one_sample(), attempt.gm)
        try:
            _check_if_possible(example.no_sample(), attempt.gm)
        except CaptureError as error:
            attempt.notes.append(f"with a batch of no samples the graph does not do what the model does: {error}")


def _check_if_possible(example: Example, gm: CapturedModule) -> None:
    try:
        _check(example, gm)
    except ModelError:
        return  # the model itself does not run on these inputs


def _check_first(example: Example, gm: CapturedModule, *, record: bool = False) -> Changes:
    """Check a new graph in the mode of the capture, on the example, or on two samples if the model takes no other batch."""
    # Some layers need two samples to train on.
    first, second = (example.doubled(), example) if example.training else (example, example.doubled())
    with in_mode(gm.named_modules(), example.training), in_mode(example.kept.modules, example.training):
        try:
            return _check(first, gm, record)
        except ModelError:
            return _check(second, gm, record)


def check_in_modes(attempt: Attempt, example: Example) -> None:
    """Check a graph against the model in the mode of the capture, and in the other one if the graph follows the mode.

    Raises:
        CaptureError: they differ.
    """
    _check_first(example, attempt.gm)
    if attempt.follows_mode:
        training = not example.training
        with in_mode(attempt.gm.named_modules(), training), in_mode(example.kept.modules, training):
            _check_if_possible(example.doubled() if training else example, attempt.gm)


def _name(training: bool) -> str:
    return "train" if training else "eval"


def _mode_note(path: str, training: bool, reads: ModeReads) -> str:
    found = reads.inside(path)
    by_user = [read for read in found if "torch/nn/modules" not in read.line.replace("\\", "/")] or found
    return (
        f"module {path or '(the model itself)'!r} computes something else in train mode than in eval mode, in a way that one "
        f"graph cannot keep; this part of the graph does what it does in {_name(training)} mode, whatever gm.train() or "
        f"gm.eval() say. The mode is asked for by {'; '.join(dict.fromkeys(map(str, by_user)))}. Capture the model in each "
        "mode if both matter."
    )


def _writes_note(writes: dict[str, str], training: bool) -> str:
    listed = "; ".join(f"that of {path or '(the model itself)'} at {line}" for path, line in writes.items())
    return (
        f"forward sets the mode of modules ({listed}), which a graph of symbolic tracing does not; it computes what the model "
        f"does in {_name(training)} mode. Set modes outside of forward, or capture the model in each mode if both matter."
    )


def _results_note(training: bool) -> str:
    here, there = _name(training), _name(not training)
    return (
        f"the model returns other results in {there} mode than in {here} mode, more of them or in another form; the graph "
        f"always returns those of {here} mode. Capture the model in each mode if both matter."
    )


def _state_notes(example: Example, changes: Changes) -> list[str]:
    written = [
        f"forward changes its input {name!r}, as it adds, removes or assigns items or attributes; the graph leaves it as it is"
        for name in dict.fromkeys(changes.inputs)
    ]
    names = list(dict.fromkeys(changes.rebound_numbers))
    if changes.others:
        several = example.doubled() if example.training else example
        with in_mode(example.kept.modules, example.training):
            if remembers(example.model, several.args, several.kwargs, example.programs):
                names = list(dict.fromkeys([*names, *changes.others]))
    if not names:
        return written
    return [
        *written,
        f"forward changes the Python value{'s' if len(names) > 1 else ''} {', '.join(names)}, which a graph has as a "
        "constant; use a buffer for state that changes from call to call",
    ]
