"""global_unstructured: one ranking over the elements of several parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune as torch_prune

from fxprune.errors import PruningTypeError, PruningValueError, as_pruning_errors
from fxprune.graph.captured import as_editable
from fxprune.graph.masks import base_names, check_prunable, find_masked, find_parameter
from fxprune.graph.metadata import METHODS
from fxprune.graph.parts import Graph
from fxprune.methods.methods import CustomFromMask, chain, current_value, remember, scores_for
from fxprune.methods.smallest import masks_of_smallest
from fxprune.passes.mask_parameters import insert_masks
from fxprune.torch_internals.interrupts import interrupts_wait, uninterrupted
from fxprune.torch_internals.pruning_methods import for_parameter

_COMPUTE_L1 = torch_prune.L1Unstructured.compute_mask


@interrupts_wait()
def global_unstructured(
    gm: Graph,
    names: Iterable[str],
    pruning_method: type[torch_prune.BasePruningMethod],
    importance_scores: Mapping[str, Tensor] | None = None,
    **kwargs: Any,
) -> Graph:
    """Prune several parameters in place by one ranking of all their elements; returns ``gm``.

    Args:
        gm: the graph.
        names: dotted names of parameters; a tied parameter counts once, by whichever names it is given.
        pruning_method: a class whose ``PRUNING_TYPE`` is ``"unstructured"``, such as :class:`L1Unstructured`.
        importance_scores: by name a tensor of the parameter's shape to rank by instead of the parameter.
        kwargs: arguments of ``pruning_method``, such as ``amount``.

    Raises:
        PruningError: see :meth:`BasePruningMethod.apply`; nothing has changed then.

    Source: ``torch.nn.utils.prune.global_unstructured``.

    Example:
        >>> names = [n for n, p in gm.named_parameters() if p.dim() > 1]
        >>> gm = fxprune.global_unstructured(gm, names, fxprune.L1Unstructured, amount=0.8)
    """
    parameters = _distinct(gm, names)
    given = _given_scores(gm, parameters, importance_scores)
    with as_pruning_errors(f"cannot prune with {getattr(pruning_method, '__name__', pruning_method)}"):
        method = pruning_method(**kwargs)
        kind = method.PRUNING_TYPE  # type: ignore[attr-defined]
    if kind != "unstructured":
        raise PruningTypeError(
            f'only methods of PRUNING_TYPE "unstructured" can prune globally; {pruning_method.__name__} has {kind!r}'
        )
    masks = _global_masks(gm, parameters, given, method)
    with uninterrupted():
        insert_masks(gm, masks, own=True)
        gm.recompile()
        for name in parameters:
            custom = for_parameter(CustomFromMask(None), name)
            remember(gm, chain(gm, name, custom) if name in (METHODS.get(gm) or {}) else custom)
    return gm


def _distinct(gm: Any, names: Any) -> dict[str, nn.Parameter]:
    """Return each parameter once by its first name, in the order given."""
    if not isinstance(names, Iterable) or isinstance(names, str):
        raise PruningTypeError(f"names must be an iterable of parameter names, not {type(names).__name__}")
    found: dict[str, nn.Parameter] = {}
    for name in names:
        parameter = find_parameter(as_editable(gm), name)
        check_prunable(name, parameter)
        found[base_names(gm, parameter)[0]] = parameter
    if not found:
        raise PruningValueError("names is empty: there is no parameter to prune")
    return found


def _given_scores(gm: fx.GraphModule, parameters: Mapping[str, nn.Parameter], scores: Any) -> dict[str, Tensor]:
    if scores is None:
        return {}
    if not isinstance(scores, Mapping):
        raise PruningTypeError(f"importance_scores must map parameter names to tensors, not {type(scores).__name__}")
    by_first_name: dict[str, Tensor] = {}
    for name, score in scores.items():
        first = base_names(gm, find_parameter(gm, name))[0]
        if first not in parameters:
            raise PruningValueError(f"importance_scores has {name!r}, which is not among the names to prune")
        by_first_name[first] = scores_for(score, parameters[first], name)
    return by_first_name


def _global_masks(
    gm: fx.GraphModule,
    parameters: Mapping[str, nn.Parameter],
    given: Mapping[str, Tensor],
    method: torch_prune.BasePruningMethod,
) -> dict[str, Tensor]:
    """Return a new mask for each parameter; ``method`` ranks the elements of all parameters at once."""
    masked = {name: find_masked(gm, name) for name in parameters}
    names = f"{len(parameters)} parameters ({', '.join(list(parameters)[:3])}{', ...' if len(parameters) > 3 else ''})"
    with as_pruning_errors(f"cannot prune {names} with {type(method).__name__}"), torch.no_grad(), torch.inference_mode(False):
        if isinstance(method, torch_prune.L1Unstructured) and type(method).compute_mask is _COMPUTE_L1:
            ranked = [given.get(name, parameter.detach()) for name, parameter in parameters.items()]
            earlier = [None if entry is None else entry.mask.expand_as(entry.orig) for entry in masked.values()]
            if (masks := masks_of_smallest(ranked, earlier, method.amount)) is not None:
                return dict(zip(parameters, masks, strict=True))
        values = {name: current_value(parameter, masked[name]) for name, parameter in parameters.items()}
        scores = nn.utils.parameters_to_vector([given.get(name, value) for name, (value, _) in values.items()])
        defaults = nn.utils.parameters_to_vector([mask for _, mask in values.values()])
        found = chain(gm, "temp", for_parameter(method, "temp")).compute_mask(scores, defaults)
        pieces = zip(values.items(), found.split([mask.numel() for _, mask in values.values()]), strict=True)
        # As in torch, each piece multiplies the mask in force: a mask of other values than 0 and 1 counts twice.
        return {name: piece.view_as(mask) * mask for (name, (_, mask)), piece in pieces}
