"""verify: does a smaller model compute the same as its reference?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from fxprune.analysis.remaining import Places
from fxprune.errors import InputError, PruningTypeError, PruningValueError, VerificationError, in_short
from fxprune.graph.masks import ORIG, find_masked
from fxprune.graph.metadata import KEPT, SHAPES
from fxprune.torch_internals.tensors import pytree
from fxprune.verification.differences import relative_error, select
from fxprune.verification.first_difference import first_difference, shapes
from fxprune.verification.inputs import Case, Inputs, Mode, cases, cases_of_rewriting, given
from fxprune.verification.small import small_inputs
from fxprune.verification.subject import Result, Subject


def verify(
    reference: nn.Module,
    candidate: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    tolerance: float | None = None,
    modes: Sequence[Mode] = ("eval", "train"),
    other_batch: bool = True,
    precision: Literal["double", "own"] = "double",
    gradients: bool = False,
) -> float:
    """Check that ``candidate`` computes the same as ``reference``, for example a shrunk graph the same as the masked graph.

    Both run on random inputs like the examples: floating-point inputs of the same mean and standard deviation, integers
    shuffled. If the reference fails on them, or gives NaN or an infinity, both run on the examples themselves. All outputs, and
    the buffers after the run, are compared. Nothing is left to chance: dropout keeps everything, with its scale, and other
    random operators give a value from the middle of their distribution. Neither model changes, nor any random state.

    Args:
        reference: the model that is right, a graph or any module.
        candidate: the model to check. On a graph, ``gm.meta["fxprune.kept"]`` and ``node.meta["fxprune_kept"]`` say which
            positions of the reference's tensors are left.
        example_inputs: positional inputs as a tuple or list, or the single input.
        example_kwargs: keyword inputs.
        tolerance: the largest relative error allowed, relative to the largest magnitude in each tensor. By default 1e-6
            in double precision, 1e-3 in single, 0.05 below. Tensors of magnitudes below 1e-9 (in single precision 1e-3)
            count as that large.
        modes: which modes to run in.
        other_batch: run on one sample more than in the examples as well, if the reference can.
        precision: ``"double"`` computes in double precision on copies of the parameters (one model at a time), whatever
            dtypes the code names, or in the models' own precision if one of them cannot; ``"own"`` always in their own.
        gradients: compare the gradients of a fixed random projection of the outputs too: of each parameter of the candidate
            with the kept part of the reference's gradient, masked if the reference is.

    Returns:
        The largest relative error found.

    Raises:
        VerificationError: the models differ, or the candidate fails; names mode, batch size, output, relative error, and the
            first node that differs if both are graphs.
        InputError: the reference cannot run on the example inputs.
        PruningTypeError: a model is not a module.
        PruningValueError: another argument is out of range, or a model is on the meta device.

    Example:
        >>> fxprune.verify(masked, shrunk, torch.randn(1, 3, 224, 224))
    """
    _check_arguments(reference, candidate, tolerance, modes, precision)
    inputs = given(reference, example_inputs, example_kwargs)
    tried = tuple(cases(reference, inputs, modes, other_batch=other_batch))
    return _Verification(reference, candidate, tried, tolerance, gradients).run_in(precision)


def verify_rewriting(
    reference: fx.GraphModule,
    candidate: fx.GraphModule,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None,
    *,
    modes: Sequence[Mode] = ("eval", "train"),
    precision: Literal["double", "own"] = "double",
) -> float:
    """Check a graph against the graph that it was made of, as :func:`verify` does with fewer and smaller runs.

    Rewriting does not depend on the sizes of inputs, so that both run on the smallest inputs that show a fault; see
    :func:`fxprune.verification.small.small_inputs`. Where the reference fails there, or gives NaN, both run on inputs of the
    example's sizes. The first of the modes runs on one sample, the second on two.

    Args:
        reference: the graph before.
        candidate: the graph after.
        example_inputs: positional inputs as a tuple or list, or the single input.
        example_kwargs: keyword inputs.
        modes: which modes to run in.
        precision: see :func:`verify`, as for results and errors.
    """
    inputs = given(reference, example_inputs, example_kwargs)
    with torch.inference_mode(False):
        small = small_inputs(reference, inputs, SHAPES.pop(candidate))
    tried = tuple(cases_of_rewriting(reference, inputs, small, modes))
    return _Verification(reference, candidate, tried).run_in(precision)


def _check_arguments(reference: object, candidate: object, tolerance: object, modes: object, precision: object) -> None:
    for name, model in (("reference", reference), ("candidate", candidate)):
        if not isinstance(model, nn.Module):
            raise PruningTypeError(f"{name} must be a torch.nn.Module, not {type(model).__name__}")
        if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
            raise PruningValueError(f"{name} is on the meta device, where there is nothing to compute with")
    if isinstance(modes, str) or not isinstance(modes, Sequence) or not modes or not set(modes) <= {"eval", "train"}:
        raise PruningValueError(f'modes must be "eval", "train" or both in a tuple, not {modes!r}')
    if precision not in ("double", "own"):
        raise PruningValueError(f'precision must be "double" or "own", not {precision!r}')
    if tolerance is None:
        return
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise PruningTypeError(f"tolerance must be a number, not {type(tolerance).__name__}")
    if not tolerance >= 0:
        raise PruningValueError(f"tolerance must be at least 0, not {tolerance}")


@dataclasses.dataclass(frozen=True)
class _Expected:
    """The result of the reference for the inputs that were chosen for a case."""

    training: bool
    inputs: Inputs
    samples: int | None
    result: Result

    def __str__(self) -> str:
        size = "" if self.samples is None else f" at batch size {self.samples}"
        return f"in {'train' if self.training else 'eval'} mode{size}"


@dataclasses.dataclass(frozen=True)
class _Verification:
    reference: nn.Module
    candidate: nn.Module
    cases: tuple[Case, ...]
    allowed: float | None = None  # the tolerance, by precision if None
    gradients: bool = False
    double: bool = True

    def run_in(self, precision: Literal["double", "own"]) -> float:
        """Return the largest relative error, in double precision if asked for and if both models run in it."""
        with torch.inference_mode(False):
            if precision == "double":
                try:
                    return self.run()
                except InputError:
                    pass
                except VerificationError as error:
                    if error.__cause__ is None:
                        raise  # else the candidate failed, perhaps because of the precision
            return dataclasses.replace(self, double=False).run()

    @cached_property
    def tolerance(self) -> float:
        """The largest relative error allowed."""
        return (
            _default_tolerance(self.reference, self.cases[0].tries[-1].inputs, self.double)
            if self.allowed is None
            else self.allowed
        )

    def run(self) -> float:
        """Return the largest relative error; the models are copied one after the other."""
        expected = self._run_reference()
        subject = Subject(self.candidate, double=self.double, gradients=self.gradients)
        worst = 0.0
        for run in expected:
            try:
                result = subject.run(run.inputs, training=run.training)
            except Exception as error:  # operators raise any type on operands that do not fit
                text = f"the candidate fails {run}, where the reference runs: {in_short(error)}{self._blame(run)}"
                raise VerificationError(text) from error
            for name, found in self._errors(run.result, result):
                if not found <= self.tolerance:
                    raise VerificationError(self._describe(run, name, found, result))
                worst = max(worst, found)
        return worst

    def _run_reference(self) -> list[_Expected]:
        """Run every case that the reference can run; raise InputError if it can run none of some mode."""
        subject = Subject(self.reference, double=self.double, gradients=self.gradients)
        failures: dict[str, Exception] = {}
        runs: list[_Expected] = []
        for case in self.cases:
            try:
                runs.append(_best_run(subject, case))
            except Exception as error:  # models raise any type on inputs that they do not take
                failures.setdefault("train" if case.training else "eval", error)
        for mode, failure in failures.items():
            if not any(run.training is (mode == "train") for run in runs):
                args, kwargs = self.cases[0].tries[-1].inputs
                raise InputError(
                    f"the reference itself fails in {mode} mode on inputs of shapes {shapes(args)} {shapes(kwargs) or ''}: "
                    f"{in_short(failure)}"
                ) from failure
        return runs

    def _errors(self, expected: Result, result: Result) -> Iterator[tuple[str, float]]:
        for name in {**expected.outputs, **result.outputs}:
            both = name in expected.outputs and name in result.outputs
            yield name, _leaf_error(expected.outputs[name], result.outputs[name]) if both else math.inf
        kept = _kept(self.reference, self.candidate)
        for name, buffer in result.buffers.items():
            if name in expected.buffers:
                yield f"buffer {name!r} after the run", _kept_error(expected.buffers[name], buffer, kept.get(name))
        scale = max((_magnitude(g) for g in expected.gradients.values()), default=0.0)
        for name, gradient in result.gradients.items():
            # Some gradients are zero but for rounding, such as the gradient of a bias before a batch norm.
            floor = scale * (1e-6 if self.double else 1e-2)
            yield f"the gradient of {name!r}", self._gradient_error(name, gradient, expected.gradients, kept.get(name), floor)

    def _gradient_error(
        self, name: str, gradient: Tensor, expected: Mapping[str, Tensor], kept: Places | None, floor: float
    ) -> float:
        """Compare with the kept part of the reference's gradient; a mask of the reference alone multiplies the candidate's."""
        theirs = expected.get(name)
        masked = None if theirs is not None else find_masked(self.reference, name)
        if masked is not None:
            theirs = expected.get(name + ORIG)
            mask = select(masked.mask.expand_as(masked.orig), kept)
            if mask is not None and mask.shape == gradient.shape:
                gradient = gradient * mask
        return 0.0 if theirs is None else _kept_error(theirs, gradient, kept, max(floor, 1e-30))

    def _describe(self, run: _Expected, name: str, found: float, result: Result) -> str:
        expected, value = (r.outputs.get(name) for r in (run.result, result))
        if math.isfinite(found):
            text = f"relative error {found:.1e} (tolerance {self.tolerance:.0e})"
        elif (theirs := _form(expected)) != (ours := _form(value)):
            text = f"{theirs} in the reference, {ours} in the candidate"
        else:
            text = "infinite relative error: NaN, infinities or integers differ"
        return f"the candidate does not compute what the reference does {run}: {name}: {text}{self._blame(run)}"

    def _blame(self, run: _Expected) -> str:
        how = {"training": run.training, "double": self.double}
        found = first_difference(self.reference, self.candidate, run.inputs, tolerance=self.tolerance, **how)
        return f"; {found}" if found else ""


def _best_run(subject: Subject, case: Case) -> _Expected:
    """Run on the first inputs that give finite outputs; if none do, on the first inputs that run."""
    best: _Expected | None = None
    for inputs, samples in case.tries:
        try:
            run = _Expected(case.training, inputs, samples, subject.run(inputs, training=case.training))
        except Exception:  # the model need not take random numbers
            if best is None and inputs is case.tries[-1].inputs:
                raise
            continue
        if run.result.is_finite():
            return run
        best = best or run
    assert best is not None
    return best


def _default_tolerance(reference: nn.Module, inputs: Inputs, double: bool) -> float:
    if double:
        return 1e-6
    tensors = [*reference.parameters(), *(leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))]
    epsilon = max((torch.finfo(t.dtype).eps for t in tensors if t.is_floating_point() or t.is_complex()), default=0.0)
    return 1e-6 if epsilon < 1e-10 else 1e-3 if epsilon < 1e-6 else 0.05


def _form(value: Any) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _kept(reference: nn.Module, candidate: nn.Module) -> Mapping[str, Places]:
    """Return the positions of the reference's tensors that the candidate holds; both may be shrunk from a larger graph."""
    theirs, ours = ((isinstance(gm, fx.GraphModule) and KEPT.get(gm)) or {} for gm in (reference, candidate))
    found: dict[str, Places] = {}
    for name, kept in ours.items():
        relative = [_within(a, b) for a, b in zip(theirs.get(name, [None] * len(kept)), kept, strict=True)]
        if all(among for among, _ in relative):
            found[name] = tuple(positions for _, positions in relative)
    return found


def _within(theirs: Tensor | None, ours: Tensor | None) -> tuple[bool, Tensor | None]:
    """Tell whether ``ours`` are among ``theirs``, and at which places; None stands for all positions of the larger graph."""
    if theirs is None or ours is None:
        return theirs is None, ours
    places = torch.searchsorted(theirs, ours).clamp(max=max(len(theirs) - 1, 0))
    return bool(len(theirs)) and torch.equal(theirs[places], ours), places


def _leaf_error(expected: Any, found: Any) -> float:
    if isinstance(expected, Tensor) and isinstance(found, Tensor):
        return relative_error(expected, found)
    plain = all(isinstance(value, bool | int | float | str | None) for value in (expected, found))
    same = expected == found if plain else type(expected) is type(found)
    return 0.0 if same else math.inf


def _kept_error(expected: Tensor, found: Tensor, kept: Places | None, floor: float | None = None) -> float:
    part = select(expected, kept)
    if kept is None and expected.shape != found.shape:
        return 0.0  # no record says which positions are left
    return math.inf if part is None else relative_error(part, found, floor)


def _magnitude(gradient: Tensor) -> float:
    return float(gradient.abs().nan_to_num(0.0, 0.0, 0.0).max()) if gradient.numel() else 0.0
