"""analyze, shrink and prune: analysis and passes one after the other, with a check at the end."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import fx, nn

from fxprune.algebra.axes import Flags
from fxprune.analysis.analyze import find_dependencies
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.fingerprint import remember
from fxprune.capture import capture
from fxprune.errors import PruneWarning, PruningValueError
from fxprune.frontends.capture import Frontend
from fxprune.graph.captured import CapturedModule, adopt, as_graph_module, compile_all, compiled_later
from fxprune.graph.interpreter import in_order
from fxprune.graph.masks import all_masked
from fxprune.graph.metadata import BAKED, KEEPS
from fxprune.graph.parts import Graph, shared_copy
from fxprune.importance import Importance
from fxprune.passes.bake import Bake
from fxprune.passes.graph_pass import run_all
from fxprune.passes.mask_units import MaskUnits
from fxprune.passes.own_buffers import OwnBuffers
from fxprune.passes.shrink import shrunk_copy
from fxprune.passes.shrink_units import ShrinkUnits
from fxprune.passes.unmask import unmasked
from fxprune.planning.group_choice import Choose
from fxprune.planning.plan import Plan
from fxprune.planning.planner import Scope, plan
from fxprune.torch_internals.switches import alone, uncollected
from fxprune.verification.inputs import given
from fxprune.verification.verify import verify as check


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
        AnalysisError: an input node carries no example value, or a node cannot run on fake tensors; names the node.
        RuleError: a rule does not fit an operator's shapes; names node, operator, rule and shapes.

    Example:
        >>> deps = fxprune.analyze(fxprune.capture(torchvision.models.resnet18(), torch.randn(1, 3, 224, 224)))
        >>> print(deps.explain("layer1.0.conv1.weight", dim=0))
    """
    found = unmasked(as_graph_module(gm))
    remember(gm, found.gm, found.deps)
    return found.deps.about(gm)


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
    Parameters that lose something are new objects; the others stay. All buffers are new.

    Args:
        gm: the graph.
        from_zeros: take out slices of zeros in the weights as well, without any mask.
        verify: compare the results of both graphs in eval and in train mode, at two batch sizes; see :func:`verify`.
        example_inputs: positional inputs to verify with; those of the capture unless given.
        example_kwargs: keyword inputs, likewise.

    Returns:
        ``gm``.

    Raises:
        VerificationError: the smaller graph computes something else; names the first node that differs.
        ShrinkError: a node cannot be rewritten for the positions that are left.
        PruningValueError: there are no inputs to verify with.
            In each case the graph is as it was.

    Example:
        >>> gm = fxprune.shrink(fxprune.mask(gm, plan))
    """
    as_graph_module(gm)
    inputs = _inputs(gm, example_inputs, example_kwargs) if verify else None
    if inputs is not None:
        placeholders = gm.graph.find_nodes(op="placeholder")
        for node, value in zip(placeholders, in_order(gm, given(gm, *inputs)), strict=True):
            node.meta.setdefault("val", value)  # a graph from a pickle has no example values
    with compiled_later():
        smaller, _ = shrunk_copy(gm, from_zeros=from_zeros)
    if inputs is not None:
        check(gm, smaller, *inputs)
    adopt(gm, smaller)
    return gm


def _inputs(gm: fx.GraphModule, args: Any, kwargs: Mapping[str, Any] | None) -> tuple[Any, Mapping[str, Any] | None] | None:
    """Return the inputs to verify with; None on the meta device, where there is nothing to compare."""
    if any(t.is_meta for t in (*gm.parameters(), *gm.buffers())):
        return None
    if args is not None or kwargs is not None:
        return args if args is not None else (), kwargs
    if isinstance(gm, CapturedModule) and gm.example is not None:
        return gm.example
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
        verify: compare the small graph with the masked one; see :func:`fxprune.verify`.

    Returns:
        A graph with parameters and buffers of its own; of the parameters those that lost nothing are the model's.

    Raises:
        CaptureError: the model cannot be captured.
        PlanError: nothing can be planned as asked.
        VerificationError: the small graph does not compute what the masked one does.

    Warns:
        PruneWarning: nothing could be removed; says why.

    Example:
        >>> slim = fxprune.prune(torchvision.models.resnet50(), torch.randn(1, 3, 224, 224), 0.5)
        >>> fxprune.summary(model, slim)
    """
    with uncollected(), compiled_later():  # most graphs are never called as they were captured
        gm = capture(model, example_inputs, example_kwargs, frontend=frontend)
        inputs = _inputs(gm, None, None) if verify else None
        if all_masked(gm) or KEEPS.get(gm) or BAKED.get(gm):
            given, (gm, _) = gm, shrunk_copy(gm)
            if inputs is not None:
                check(given, gm, *inputs)
        # In a function of its own, so that the analysis is gone when the collector is on again.
        masked, small, why = _pruned(
            gm,
            partial(
                plan,
                amount=amount,
                importance=importance,
                scope=scope,
                round_to=round_to,
                ignore=ignore,
                overrides=overrides,
                max_params=max_params,
                max_flops=max_flops,
                choose=choose,
            ),
            masked_too=inputs is not None,
        )
    compile_all(small)
    if why and amount != 0:
        with alone():  # another thread may hide warnings in a run
            warnings.warn(why, PruneWarning, stacklevel=2)
    if masked is not None and inputs is not None:
        check(masked, small, *inputs)
    return small


def _pruned(
    gm: CapturedModule, planned: Callable[[Dependencies], Plan], *, masked_too: bool
) -> tuple[CapturedModule | None, CapturedModule, str]:
    """Return a graph as masked, None unless asked for, and as shrunk; and why nothing was removed, if that is so."""
    deps = find_dependencies(gm)
    removed = planned(deps).removed(deps)
    if not removed.any():
        OwnBuffers(list(gm.buffers()))(gm)
        largest = sorted((t for t in deps.tracked if t.is_parameter), key=lambda t: -math.prod(t.label.shape))
        reasons = [str(deps.explain(t.name, dim)) for t in largest[:5] for dim, n in enumerate(t.label.shape) if n > 1]
        return None, gm, "\n  ".join(["nothing was removed:", *reasons])
    return *without(gm, deps, removed, masked_too=masked_too), ""


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
    run_all((Bake(), *shrinking), small)
    return gm, small
