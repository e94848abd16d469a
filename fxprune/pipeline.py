"""analyze, mask, shrink and prune: analysis and passes one after the other, with a check at the end."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.algebra.axes import Flags
from fxprune.analysis.analyze import find_dependencies
from fxprune.analysis.dependencies import Dependencies
from fxprune.capture import capture
from fxprune.errors import CaptureWarning, FxpruneError, PruneWarning, PruningValueError, ShrinkError, VerificationError
from fxprune.frontends.capture import Frontend
from fxprune.graph.captured import CapturedModule, adopt, as_editable, as_graph_module, compile_all, compiled_later
from fxprune.graph.interpreter import in_order
from fxprune.graph.masks import all_masked, base_names
from fxprune.graph.metadata import BAKED, EXAMPLE, FIXED_DTYPE, KEEPS, SHAPES, WHOLE
from fxprune.graph.parts import Graph, shared_copy
from fxprune.importance import Importance
from fxprune.passes.bake import Bake
from fxprune.passes.graph_pass import run_all
from fxprune.passes.mask import Mask
from fxprune.passes.mask_units import MaskUnits
from fxprune.passes.own_buffers import OwnBuffers
from fxprune.passes.shrink import shrunk_copy
from fxprune.passes.shrink_units import ShrinkUnits
from fxprune.passes.unmask import strip, unmasked
from fxprune.planning.group_choice import Choose
from fxprune.planning.names import selectors
from fxprune.planning.plan import Plan
from fxprune.planning.planner import Scope, plan
from fxprune.planning.reach import shortfall
from fxprune.torch_internals.switches import alone, deeper, quiet, uncollected
from fxprune.torch_internals.tensors import hooks_of, pytree
from fxprune.verification.inputs import given
from fxprune.verification.verify import verify_rewriting

_Example = tuple[Any, Mapping[str, Any] | None]
_HALF = (torch.half, torch.bfloat16)


def analyze(gm: fx.GraphModule) -> Dependencies:
    """Find out which positions of which parameters and buffers have to be removed together.

    The graph runs once on fake tensors: no weight is read, and models on the meta device do as well.

    A masked graph is analysed without the masks of a plan and their corrections: a new plan may keep what they remove.

    Args:
        gm: a graph of :func:`fxprune.capture`, masked or not; only read. Its inputs carry example values
            (``node.meta["val"]``), whose sizes are those that FLOPs are counted at.

    Returns:
        The groups, the reasons of what has to stay whole, and the mixing points.

    Raises:
        AnalysisError: an input node carries no example value, or nobody knows what a node gives that cannot run on fake
            tensors; names the node.
        RuleError: a rule that was registered does not fit an operator's shapes; names node, operator, rule and shapes.

    Example:
        >>> deps = fxprune.analyze(fxprune.capture(torchvision.models.resnet18(), torch.randn(1, 3, 224, 224)))
        >>> print(deps.explain("layer1.0.conv1.weight", dim=0))
    """
    return unmasked(as_graph_module(gm)).deps.about(gm)


def mask(gm: Graph, masks: Plan | Mapping[str, Tensor], *, verify: bool = True) -> Graph:
    """Mask parameters of a graph, in place.

    A plan masks all that its removed units own, by one vector of flags for each axis, and corrects what combines their
    positions, so that the graph computes what :func:`fxprune.shrink` will leave of it. A plan applied to a graph that an
    earlier plan masked replaces that; on the same axes the masks are updated and the graph stays as it is.

    Args:
        gm: the graph.
        masks: a plan; or for each dotted parameter name a tensor of the parameter's shape, of any real dtype, that
            multiplies it. It replaces the mask that the parameter may have already.
        verify: where a plan has corrections written into the graph, compare it in eval mode with what :func:`fxprune.shrink`
            leaves of it, on random inputs like those of the capture. Nothing is compared on the meta device, nor if the
            graph was not captured in this process, nor if only masks change.

    Returns:
        ``gm``.

    Raises:
        PlanError: the plan was made for another graph, or the graph changed since.
        PruningAttributeError: a name is not a parameter of the graph.
        PruningAssertionError: a mask has another shape than its parameter.
        PruningTypeError: a mask is not a tensor, or a parameter is not of floating-point or complex dtype.
        VerificationError: the masked graph does not compute what is left of it without the removed units.
        LoweringError: a leaf module that holds one of the parameters cannot be written out.
            In each case nothing has changed.

    Example:
        >>> gm = fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
        >>> gm = fxprune.mask(gm, {"fc.weight": (gm.fc.weight.abs() > 0.1)})
    """
    before = shared_copy(as_editable(gm)) if verify and isinstance(masks, Plan) and _example(gm) is not None else None
    modified = Mask(masks)(gm).modified
    if before is not None and modified and KEEPS.get(gm) and (inputs := _example(gm)) is not None:
        try:
            with compiled_later():
                smaller, _ = shrunk_copy(shared_copy(gm))  # the graph itself has no note of what cannot be rewritten
            verify_rewriting(gm, smaller, *inputs, modes=("eval",))
        except ShrinkError:  # which says nothing of the masked graph
            return gm
        except BaseException:
            adopt(gm, before)
            raise
    return gm


def shrink(
    gm: Graph,
    *,
    from_zeros: bool = False,
    verify: bool = True,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> Graph:
    """Take the units that masks remove out of a graph, in place; its results stay.

    The masks say which units go: masks of a plan, or masks of ``torch.nn.utils.prune``, whose slices of zeros can go where
    nothing else depends on them. All masks are baked, and no multiplication is left.
    Parameters that lose something are new objects, of the same class and with the same attributes; the others stay. All buffers
    are new. So an optimizer from before trains only what stayed: make a new one.

    Args:
        gm: the graph.
        from_zeros: take out slices of zeros in the weights as well, without any mask.
        verify: compare the results of both graphs, in eval mode on one sample and in train mode on two, on the smallest inputs
            on which every node combines several positions.
        example_inputs: positional inputs to verify with; those of the capture unless given.
        example_kwargs: keyword inputs, likewise.

    Returns:
        ``gm``.

    Raises:
        VerificationError: the smaller graph computes something else; names the first node that differs.
        PruningValueError: there are no inputs to verify with.
            In each case the graph is as it was.

    Warns:
        PruneWarning: a node cannot be rewritten for the positions that are left, so that what it reads stays whole; or a new
            parameter does not have the hooks of the one before.

    Example:
        >>> gm = fxprune.shrink(fxprune.mask(gm, plan))
        >>> optimizer = torch.optim.SGD(gm.parameters(), 0.1)
    """
    as_editable(gm)
    inputs = _inputs(gm, example_inputs, example_kwargs) if verify else None
    if inputs is not None:
        placeholders = gm.graph.find_nodes(op="placeholder")
        for node, value in zip(placeholders, in_order(gm, given(gm, *inputs)), strict=True):
            node.meta.setdefault("val", value)  # a graph from a pickle has no example values
    whole = WHOLE.get(gm) or {}
    try:
        with compiled_later():
            smaller, _ = shrunk_copy(gm, from_zeros=from_zeros)
        stuck = [why for name, why in (WHOLE.get(gm) or {}).items() if name not in whole]
        if inputs is not None:
            _check_shrunk(gm, smaller, inputs, from_zeros)
    except BaseException:
        WHOLE.pop(gm)
        if whole:
            WHOLE.set(gm, whole)
        raise
    lost = _lost_hooks(_hooked(gm), smaller)
    adopt(gm, smaller)
    _warn([*(f"{why}; what the node reads stays whole" for why in stuck), *lost])
    return gm


def _hooked(gm: fx.GraphModule) -> dict[str, nn.Parameter]:
    """Return the parameters with hooks on their gradients, by name."""
    return {base_names(gm, p)[0]: p for p in gm.parameters() if hooks_of(p)}


def _lost_hooks(before: Mapping[str, nn.Parameter], smaller: fx.GraphModule) -> list[str]:
    """Return a sentence for each parameter whose hooks are not on the parameter in its place in the smaller graph."""
    present = dict(smaller.named_parameters(remove_duplicate=False))
    found = []
    for name, old in before.items():
        if present.get(name) is not old:
            called = ", ".join(getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks_of(old))
            found.append(f"the parameter {name!r} is a new one without the hooks of the one before: {called}")
    return found


def _warn(texts: Iterable[str]) -> None:
    for text in texts:
        with alone():  # another thread may hide warnings in a run
            warnings.warn(text, PruneWarning, stacklevel=3)


def _check_shrunk(gm: fx.GraphModule, smaller: fx.GraphModule, inputs: _Example, from_zeros: bool) -> None:
    """Compare a shrunk graph with the masked one.

    A bias in half precision rounds the constants that it takes in. There the graphs are compared in their own precision, and
    graphs with the same weights in double precision as any others.
    """
    try:
        verify_rewriting(gm, smaller, *inputs)
    except VerificationError:
        if not any(p.dtype in _HALF for p in gm.parameters()):
            raise
        wide = copy.deepcopy(gm)
        FIXED_DTYPE.pop(wide)  # both graphs have the same dtypes as constants
        wide.double()
        for node in wide.graph.find_nodes(op="placeholder"):
            node.meta["val"] = pytree.tree_map_only(Tensor, lambda t: t.double() if t.dtype in _HALF else t, node.meta["val"])
        with compiled_later():
            smaller_wide, _ = shrunk_copy(wide, from_zeros=from_zeros)
        verify_rewriting(wide, smaller_wide, *inputs)
        verify_rewriting(gm, smaller, *inputs, precision="own")


def _example(gm: fx.GraphModule) -> _Example | None:
    """Return the inputs of the capture; None if there are none, or on the meta device, where there is nothing to compare."""
    return None if any(t.is_meta for t in (*gm.parameters(), *gm.buffers())) else EXAMPLE.get(gm)


def _inputs(gm: fx.GraphModule, args: Any, kwargs: Mapping[str, Any] | None) -> _Example | None:
    """Return the inputs to verify with; None on the meta device, where there is nothing to compare."""
    if any(t.is_meta for t in (*gm.parameters(), *gm.buffers())):
        return None
    if args is not None or kwargs is not None:
        return args if args is not None else (), kwargs
    if (example := _example(gm)) is not None:
        return example
    raise PruningValueError(
        "there are no inputs to verify with: the graph was not captured in this process; give example_inputs, or verify=False"
    )


def prune(
    model: nn.Module,
    example_inputs: Any,
    amount: float | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    importance: Importance | None = None,
    scope: Scope = "local",
    round_to: int = 1,
    ignore: str | nn.Module | Iterable[str | nn.Module] = (),
    overrides: Mapping[str, float] | None = None,
    max_params: float | None = None,
    max_flops: float | None = None,
    choose: Choose | None = None,
    frontend: Frontend = "auto",
    verify: bool = True,
) -> CapturedModule:
    """Make a model smaller: capture, analyze, plan, mask, shrink and verify in one call, without configuration.

    Args:
        model: the model; left as it is.
        example_inputs: positional inputs as a tuple or list, or the single input; see :func:`fxprune.capture`.
        amount: the share (float in [0, 1)) or number (int) of units to remove of every group; see :func:`fxprune.plan`, as for
            everything up to ``choose``.
        example_kwargs: keyword inputs.
        importance: the scores of units.
        scope: "local" or "global".
        round_to: the numbers of units left are rounded up to multiples of it.
        ignore: the modules and parameters to leave alone.
        overrides: other amounts by name or pattern.
        max_params: a budget of parameters in place of an amount.
        max_flops: a budget of floating-point operations in place of an amount.
        choose: which of several groups that cross on an axis are pruned.
        frontend: see :func:`fxprune.capture`.
        verify: compare the small graph with the masked one; see :func:`fxprune.shrink`.

    Returns:
        A graph with parameters and buffers of its own; of the parameters those that lost nothing are the model's.

    Raises:
        CaptureError: the model cannot be captured.
        PlanError: nothing can be planned as asked.
        VerificationError: the small graph does not compute what the masked one does.

    Warns:
        PruneWarning: nothing could be removed, or an amount reaches less than half of the parameters that are neither fixed by
            inputs and outputs nor ignored; says what keeps most of them. Or a new parameter does not have the hooks of the one
            before.

    Example:
        >>> slim = fxprune.prune(torchvision.models.resnet50(), torch.randn(1, 3, 224, 224), 0.5)
        >>> fxprune.summary(model, slim)
    """
    ignore = selectors(ignore)

    def captured() -> tuple[CapturedModule, CapturedModule]:
        """Return the graph, and the graph without the masks that it came with."""
        gm = capture(model, example_inputs, example_kwargs, frontend=frontend)
        return gm, shrunk_copy(gm)[0] if all_masked(gm) or KEEPS.get(gm) or BAKED.get(gm) else gm

    def planned(deps: Dependencies) -> tuple[Plan, str]:
        """Return the plan, and what keeps most of the parameters from what was asked for."""
        made = plan(
            deps,
            amount,
            importance=importance,
            scope=scope,
            round_to=round_to,
            ignore=ignore,
            overrides=overrides,
            max_params=max_params,
            max_flops=max_flops,
            choose=choose,
        )
        if not amount or not (lacking := shortfall(deps, made, ignore, overrides)):
            return made, ""
        return made, f"amount={amount} leaves {made.params_after / made.params_before:.1%} of the model: it {lacking}"

    with uncollected(), deeper(), compiled_later():  # most graphs are never called as they were captured
        first, gm = captured()
        inputs, hooked = _inputs(first, None, None) if verify else None, _hooked(first)
        if gm is not first and inputs is not None:
            _check_shrunk(first, gm, inputs, from_zeros=False)
        # In a function of its own, so that the analysis is gone when the collector is on again.
        to_check, small, why = _pruned(gm, lambda: captured()[1], planned, masked_too=inputs is not None)
    compile_all(small)
    _warn([*([why] if why and amount != 0 else []), *_lost_hooks(hooked, small)])
    if to_check is not None and inputs is not None:
        verify_rewriting(to_check, small, *inputs)
    return small


def _pruned(
    gm: CapturedModule,
    again: Callable[[], CapturedModule],
    planned: Callable[[Dependencies], tuple[Plan, str]],
    *,
    masked_too: bool,
) -> tuple[CapturedModule | None, CapturedModule, str]:
    """Return a graph as masked, None unless asked for, and as shrunk; and why nothing or little was removed, if that is so.

    What a node reads that cannot be masked or rewritten is kept whole: then it starts with the same graph once more. That is
    the masked graph without its masks, or what ``again`` gives.
    """
    whole: dict[str, str] = {}
    while True:
        try:
            return _pruned_once(gm, planned, masked_too=masked_too)
        except FxpruneError as error:
            if error.nodes.keys() <= whole.keys():
                raise
            whole |= error.nodes
        if masked_too:
            strip(gm)
            gm.recompile()
        else:
            with quiet(CaptureWarning):
                gm = again()
        WHOLE.set(gm, whole)


def _pruned_once(
    gm: CapturedModule, planned: Callable[[Dependencies], tuple[Plan, str]], *, masked_too: bool
) -> tuple[CapturedModule | None, CapturedModule, str]:
    deps = find_dependencies(gm)
    made, lacking = planned(deps)
    removed = made.removed(deps)
    if not removed.any():
        OwnBuffers(list(gm.buffers()))(gm)
        largest = sorted((t for t in deps.tracked if t.is_parameter), key=lambda t: -math.prod(t.label.shape))
        reasons = [str(deps.explain(t.name, dim)) for t in largest[:5] for dim, n in enumerate(t.label.shape) if n > 1]
        return None, gm, "\n  ".join(["nothing was removed:", *reasons])
    return *without(gm, deps, removed, masked_too=masked_too), lacking


def without(
    gm: CapturedModule, deps: Dependencies, removed: Flags, *, masked_too: bool
) -> tuple[CapturedModule | None, CapturedModule]:
    """Return a graph without some units, masked (None unless asked for) and shrunk; either of them is the graph itself."""
    shrinking = (ShrinkUnits(deps, removed), OwnBuffers(list(gm.buffers())))
    if not masked_too:
        run_all(shrinking, gm)
        return None, gm
    MaskUnits(deps, removed)(gm)
    small = shared_copy(gm)
    SHAPES.set(small, deps.shapes())
    run_all((Bake(), *shrinking), small)
    return gm, small
