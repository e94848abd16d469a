"""The API of ``torch.nn.utils.prune``, on graphs.

Every class here is a subclass of the torch class of the same name and inherits its ``compute_mask`` and argument checks, so
masks, random draws and error types are torch's own. What differs is where the mask goes: not into a hook that overwrites
an attribute, but into the graph, as a multiplication that everything downstream reads.

Names are dotted parameter names of the graph (``"layer1.0.conv1.weight"``), where torch takes a module and an attribute.

Source: https://docs.pytorch.org/docs/stable/nn.html#utilities (``torch.nn.utils.prune``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune as torch_prune

from fxprune import state
from fxprune.errors import (
    FxpruneError,
    PruningAssertionError,
    PruningError,
    PruningTypeError,
    PruningValueError,
    as_pruning_error,
)
from fxprune.passes.mask import insert_masks, remove_masks

_Method = TypeVar("_Method", bound=torch_prune.BasePruningMethod)


class BasePruningMethod(torch_prune.BasePruningMethod):
    """Base class of pruning methods on graphs; subclass it and define ``PRUNING_TYPE`` and ``compute_mask``.

    Example:
        >>> class Tail(fxprune.BasePruningMethod):
        ...     PRUNING_TYPE = "unstructured"
        ...     def compute_mask(self, t, default_mask):
        ...         mask = default_mask.clone()
        ...         mask.view(-1)[t.numel() // 2 :] = 0
        ...         return mask
        >>> Tail.apply(gm, "fc.weight")
    """

    _tensor_name: str = None  # type: ignore[assignment]

    def __call__(self, module: Any, inputs: Any) -> None:
        """Refuse to be used as a hook; the graph multiplies by the mask itself."""
        raise PruningTypeError("a pruning method on a graph is not a hook: apply(gm, name) inserts the mask as nodes")

    @classmethod
    def apply(cls, module: fx.GraphModule, name: str, *args: Any, importance_scores: Any = None, **kwargs: Any) -> Any:
        """Compute a mask for one parameter and insert it into the graph, in place.

        Applied to a parameter that is masked already, it prunes among what is left, as in torch.

        Args:
            module: the graph.
            name: dotted name of a parameter.
            args: positional arguments of the method's constructor.
            importance_scores: a tensor of the parameter's shape that the method ranks by; the parameter itself if None.
            kwargs: keyword arguments of the method's constructor.

        Returns:
            The method, or a :class:`PruningContainer` that ends with it if the parameter was masked before.

        Raises:
            PruningError: of the builtin type that torch raises for the same mistake; graph and parameters are unchanged.
        """
        method, mask = _compute(cls, module, name, args, kwargs, importance_scores)
        insert_masks(module, {name: mask})
        module.recompile()
        _remember(module, method)
        return method

    def apply_mask(self, module: fx.GraphModule) -> Tensor:
        """Return the masked parameter, a tensor of the parameter's shape and dtype that is differentiable in it."""
        masked = self._masked(module)
        return masked.mask.to(dtype=masked.orig.dtype) * masked.orig

    def remove(self, module: fx.GraphModule) -> None:
        """Bake the mask into the parameter and take it out of the graph; see :func:`remove`."""
        remove(module, self._masked(module).name)

    def _masked(self, module: fx.GraphModule) -> state.Masked:
        name = self._tensor_name
        masked = state.find_masked(_graph_module(module), name) if name is not None else None
        if masked is None:
            raise PruningAssertionError(f"parameter {name!r} is not pruned by this {type(self).__name__}")
        return masked


# In each class torch's own comes first: its apply() checks the arguments and then calls ours.
class PruningContainer(torch_prune.PruningContainer, BasePruningMethod):
    """The methods applied to one parameter, in order; see ``torch.nn.utils.prune.PruningContainer``."""


class Identity(torch_prune.Identity, BasePruningMethod):
    """Insert a mask of ones; see ``torch.nn.utils.prune.Identity``."""


class RandomUnstructured(torch_prune.RandomUnstructured, BasePruningMethod):
    """Prune elements at random; see ``torch.nn.utils.prune.RandomUnstructured``."""


class L1Unstructured(torch_prune.L1Unstructured, BasePruningMethod):
    """Prune the elements of smallest absolute value; see ``torch.nn.utils.prune.L1Unstructured``."""


class RandomStructured(torch_prune.RandomStructured, BasePruningMethod):
    """Prune channels of one dimension at random; see ``torch.nn.utils.prune.RandomStructured``."""


class LnStructured(torch_prune.LnStructured, BasePruningMethod):
    """Prune the channels of smallest Ln norm; see ``torch.nn.utils.prune.LnStructured``."""


class CustomFromMask(torch_prune.CustomFromMask, BasePruningMethod):
    """Prune by a given mask; see ``torch.nn.utils.prune.CustomFromMask``."""


def _graph_module(module: Any) -> fx.GraphModule:
    if not isinstance(module, fx.GraphModule):
        raise PruningTypeError(
            f"expected a torch.fx.GraphModule, got {type(module).__name__}; make one with fxprune.capture(model, inputs)"
        )
    return module


def _context(gm: fx.GraphModule, name: str, method: type) -> str:
    shape = tuple(state.find_parameter(gm, name).shape)
    return f"cannot prune parameter {name!r} of shape {shape} with {method.__name__}"


def _compute(
    cls: type[_Method], gm: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], importance_scores: Any
) -> tuple[torch_prune.BasePruningMethod, Tensor]:
    """Return the method to record for ``name`` and the new mask; the graph is only read."""
    parameter = state.find_parameter(_graph_module(gm), name)
    masked = state.find_masked(gm, name)
    try:
        _check_dtype(name, parameter)
        method: torch_prune.BasePruningMethod = cls(*args, **kwargs)
        method._tensor_name = masked.name if masked is not None else name
        with torch.no_grad():
            current, default_mask = _current(parameter, masked)
            scores = _scores(importance_scores, current, name)
            if masked is not None:
                method = _chain(gm, masked.name, method)
            # The mask is copied: methods may hand back the user's own tensor.
            mask = method.compute_mask(scores, default_mask=default_mask).detach().clone()  # type: ignore[no-untyped-call]
    except PruningError:
        raise
    except Exception as error:
        raise as_pruning_error(error, _context(gm, name, cls)) from error
    return method, mask


def _check_dtype(name: str, parameter: nn.Parameter) -> None:
    if not (parameter.is_floating_point() or parameter.is_complex()):
        raise PruningTypeError(
            f"parameter {name!r} of shape {tuple(parameter.shape)} has dtype {parameter.dtype}; only floating-point and "
            "complex parameters can be pruned"
        )


def _current(parameter: nn.Parameter, masked: state.Masked | None) -> tuple[Tensor, Tensor]:
    """Return what the graph computes with now, and the mask in force in the parameter's dtype."""
    if masked is None:
        return parameter.detach(), torch.ones_like(parameter)
    mask = masked.mask.to(dtype=parameter.dtype)
    return mask * parameter.detach(), mask.clone(memory_format=torch.contiguous_format)


def _scores(importance_scores: Any, current: Tensor, name: str) -> Tensor:
    if importance_scores is None:
        return current
    if not isinstance(importance_scores, Tensor):
        raise PruningTypeError(
            f"importance_scores of parameter {name!r} must be a tensor, not {type(importance_scores).__name__}"
        )
    if importance_scores.shape != current.shape:
        raise PruningAssertionError(
            f"importance_scores should have the same shape as parameter {name!r}, got {tuple(importance_scores.shape)} "
            f"vs {tuple(current.shape)}"
        )
    return importance_scores


def _chain(gm: fx.GraphModule, name: str, method: torch_prune.BasePruningMethod) -> PruningContainer:
    """Return a container of the methods so far and ``method``, as torch makes one; the record is not touched."""
    earlier = state.methods_of(gm).get(name)
    container = PruningContainer()  # type: ignore[no-untyped-call]
    container._tensor_name = name
    if isinstance(earlier, torch_prune.PruningContainer):
        container._pruning_methods = tuple(earlier)  # type: ignore[no-untyped-call]
    elif earlier is not None:
        container._pruning_methods = (earlier,)
    container.add_pruning_method(method)  # type: ignore[no-untyped-call]
    return container


def _remember(gm: fx.GraphModule, method: torch_prune.BasePruningMethod) -> None:
    state.methods_of(gm)[method._tensor_name] = _without_tensors(method)


def _without_tensors(method: torch_prune.BasePruningMethod) -> torch_prune.BasePruningMethod:
    """Return the method as the record keeps it: tensors dropped, since the mask in force is in the graph already."""
    kept = copy.copy(method)
    for key, value in vars(kept).items():
        if isinstance(value, Tensor):
            setattr(kept, key, None)
    if isinstance(kept, torch_prune.PruningContainer):
        kept._pruning_methods = tuple(_without_tensors(m) for m in kept._pruning_methods)
    return kept


def adopt(gm: fx.GraphModule, name: str, method: torch_prune.BasePruningMethod) -> None:
    """Record that ``method``, a hook of a module, made the mask of ``name``."""
    masked = state.find_masked(gm, name)
    assert masked is not None
    kept = _without_tensors(method)
    for part in (kept, *getattr(kept, "_pruning_methods", ())):
        part._tensor_name = masked.name
    state.methods_of(gm)[masked.name] = kept


def identity(gm: fx.GraphModule, name: str) -> fx.GraphModule:
    """Insert a mask of ones for one parameter, in place; returns ``gm``.

    Args:
        gm: the graph.
        name: dotted name of a parameter.

    Raises:
        PruningError: see :meth:`BasePruningMethod.apply`.
    """
    Identity.apply(gm, name)
    return gm


def random_unstructured(gm: fx.GraphModule, name: str, amount: int | float) -> fx.GraphModule:
    """Prune elements of one parameter at random, in place; returns ``gm``.

    Args:
        gm: the graph.
        name: dotted name of a parameter.
        amount: share (float in [0, 1]) or number (int) of the elements not pruned yet.

    Raises:
        PruningError: see :meth:`BasePruningMethod.apply`.
    """
    RandomUnstructured.apply(gm, name, amount)
    return gm


def l1_unstructured(
    gm: fx.GraphModule, name: str, amount: int | float, importance_scores: Tensor | None = None
) -> fx.GraphModule:
    """Prune the elements of one parameter with the smallest absolute value, in place; returns ``gm``.

    Args:
        gm: the graph.
        name: dotted name of a parameter.
        amount: share (float in [0, 1]) or number (int) of the elements not pruned yet.
        importance_scores: a tensor of the parameter's shape to rank by instead of the parameter.

    Raises:
        PruningError: see :meth:`BasePruningMethod.apply`.

    Example:
        >>> gm = fxprune.l1_unstructured(gm, "layer1.conv1.weight", amount=0.3)
    """
    L1Unstructured.apply(gm, name, amount=amount, importance_scores=importance_scores)
    return gm


def random_structured(gm: fx.GraphModule, name: str, amount: int | float, dim: int) -> fx.GraphModule:
    """Prune channels of one parameter along ``dim`` at random, in place; returns ``gm``.

    Args:
        gm: the graph.
        name: dotted name of a parameter of at least two dimensions.
        amount: share (float in [0, 1]) or number (int) of the channels not pruned yet.
        dim: the dimension whose positions are the channels.

    Raises:
        PruningError: see :meth:`BasePruningMethod.apply`.
    """
    RandomStructured.apply(gm, name, amount, dim)
    return gm


def ln_structured(
    gm: fx.GraphModule,
    name: str,
    amount: int | float,
    n: int | float | str,
    dim: int,
    importance_scores: Tensor | None = None,
) -> fx.GraphModule:
    """Prune the channels of one parameter along ``dim`` with the smallest Ln norm, in place; returns ``gm``.

    Args:
        gm: the graph.
        name: dotted name of a parameter of at least two dimensions.
        amount: share (float in [0, 1]) or number (int) of the channels not pruned yet.
        n: the order of the norm, as ``p`` in ``torch.norm``.
        dim: the dimension whose positions are the channels.
        importance_scores: a tensor of the parameter's shape to rank by instead of the parameter.

    Raises:
        PruningError: see :meth:`BasePruningMethod.apply`.
    """
    LnStructured.apply(gm, name, amount, n, dim, importance_scores=importance_scores)
    return gm


def custom_from_mask(gm: fx.GraphModule, name: str, mask: Tensor) -> fx.GraphModule:
    """Prune one parameter by a given mask, in place; returns ``gm``.

    Args:
        gm: the graph.
        name: dotted name of a parameter.
        mask: a tensor of the parameter's shape; combined with the mask in force, if any.

    Raises:
        PruningError: see :meth:`BasePruningMethod.apply`.
    """
    CustomFromMask.apply(gm, name, mask)
    return gm


def global_unstructured(
    gm: fx.GraphModule,
    names: Iterable[str],
    pruning_method: type[torch_prune.BasePruningMethod],
    importance_scores: Mapping[str, Tensor] | None = None,
    **kwargs: Any,
) -> fx.GraphModule:
    """Prune several parameters in place by one ranking of all their elements; returns ``gm``.

    Args:
        gm: the graph.
        names: dotted names of parameters; a tied parameter counts once, whichever of its names come.
        pruning_method: a class whose ``PRUNING_TYPE`` is ``"unstructured"``, such as :class:`L1Unstructured`.
        importance_scores: for some of the names, a tensor of the parameter's shape to rank by instead.
        kwargs: arguments of ``pruning_method``, such as ``amount``.

    Raises:
        PruningError: see :meth:`BasePruningMethod.apply`; nothing has changed then.

    Source: ``torch.nn.utils.prune.global_unstructured``.

    Example:
        >>> names = [n for n, p in gm.named_parameters() if p.dim() > 1]
        >>> gm = fxprune.global_unstructured(gm, names, fxprune.L1Unstructured, amount=0.8)
    """
    parameters = _distinct(gm, names)
    given = _given_scores(parameters, importance_scores)
    try:
        method = pruning_method(**kwargs)
    except Exception as error:
        raise as_pruning_error(error, f"cannot prune with {getattr(pruning_method, '__name__', pruning_method)}") from error
    if method.PRUNING_TYPE != "unstructured":  # type: ignore[attr-defined]
        raise PruningTypeError(
            f'only methods of PRUNING_TYPE "unstructured" can prune globally; {pruning_method.__name__} has '
            f"{method.PRUNING_TYPE!r}"  # type: ignore[attr-defined]
        )
    masks = _global_masks(gm, parameters, given, method)
    insert_masks(gm, masks)
    gm.recompile()
    for name in parameters:
        custom = CustomFromMask(None)  # type: ignore[no-untyped-call]
        custom._tensor_name = name
        earlier = state.methods_of(gm).get(name)
        _remember(gm, custom if earlier is None else _chain(gm, name, custom))
    return gm


def _distinct(gm: Any, names: Any) -> dict[str, nn.Parameter]:
    """Return the parameters by the first of their names, each once, in the order given."""
    if not isinstance(names, Iterable) or isinstance(names, str):
        raise PruningTypeError(f"names must be an iterable of parameter names, not {type(names).__name__}")
    found: dict[str, nn.Parameter] = {}
    for name in names:
        parameter = state.find_parameter(_graph_module(gm), name)
        _check_dtype(name, parameter)
        masked = state.find_masked(gm, name)
        first = masked.name if masked is not None else name
        if not any(parameter is other for other in found.values()):
            found[first] = parameter
    if not found:
        raise PruningValueError("names is empty: there is no parameter to prune")
    return found


def _given_scores(parameters: Mapping[str, nn.Parameter], scores: Any) -> dict[str, Tensor]:
    if scores is None:
        return {}
    if not isinstance(scores, Mapping):
        raise PruningTypeError(f"importance_scores must map parameter names to tensors, not {type(scores).__name__}")
    unknown = [name for name in scores if name not in parameters]
    if unknown:
        raise PruningValueError(f"importance_scores has names that are not to be pruned: {', '.join(map(str, unknown))}")
    return {name: _scores(score, parameters[name], name) for name, score in scores.items()}


def _global_masks(
    gm: fx.GraphModule,
    parameters: Mapping[str, nn.Parameter],
    given: Mapping[str, Tensor],
    method: torch_prune.BasePruningMethod,
) -> dict[str, Tensor]:
    """Let ``method`` choose among all elements at once and cut its mask into one for each parameter."""
    current = {name: _current(p, state.find_masked(gm, name)) for name, p in parameters.items()}
    try:
        with torch.no_grad():
            scores = nn.utils.parameters_to_vector([given.get(name, tensor) for name, (tensor, _) in current.items()])
            default_mask = nn.utils.parameters_to_vector([mask for _, mask in current.values()])
            method._tensor_name = "temp"
            mask = _chain(gm, "temp", method).compute_mask(scores, default_mask)  # type: ignore[no-untyped-call]
    except FxpruneError:
        raise
    except Exception as error:
        names = f"{len(parameters)} parameters ({', '.join(list(parameters)[:3])}{', ...' if len(parameters) > 3 else ''})"
        raise as_pruning_error(error, f"cannot prune {names} with {type(method).__name__}") from error
    pieces = mask.split([p.numel() for p in parameters.values()])
    return {name: piece.view_as(p) for (name, p), piece in zip(parameters.items(), pieces, strict=True)}


def remove(gm: fx.GraphModule, name: str) -> fx.GraphModule:
    """Bake the mask of one parameter into it and take the mask out of the graph, in place; returns ``gm``.

    The Parameter object stays the same.

    Args:
        gm: the graph.
        name: dotted name of a masked parameter.

    Raises:
        PruningAttributeError: the graph has no parameter of that name.
        PruningValueError: the parameter is not pruned.

    Source: ``torch.nn.utils.prune.remove``.
    """
    parameter = state.find_parameter(_graph_module(gm), name)
    masked = state.find_masked(gm, name)
    if masked is None:
        raise PruningValueError(
            f"parameter {name!r} of shape {tuple(parameter.shape)} has to be pruned before pruning can be removed"
        )
    remove_masks(gm, [masked])
    state.methods_of(gm).pop(masked.name, None)
    gm.recompile()
    return gm


def is_pruned(gm: fx.GraphModule) -> bool:
    """Tell whether any parameter of the graph is masked."""
    return bool(state.all_masked(_graph_module(gm)))
