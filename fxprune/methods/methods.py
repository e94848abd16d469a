"""The API of ``torch.nn.utils.prune``, on graphs.

Every class here is a subclass of the torch class of the same name and inherits ``compute_mask`` and the argument checks, so
masks, random draws and error types are torch's own. Only the place of the mask differs: torch has a hook that overwrites an
attribute, a graph has a product with the mask as a node.

Names are dotted parameter names of the graph (``"layer1.0.conv1.weight"``), where torch takes a module and an attribute.

Source: https://docs.pytorch.org/docs/stable/nn.html#utilities (``torch.nn.utils.prune``).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune as torch_prune

from fxprune.errors import PruningAssertionError, PruningTypeError, PruningValueError, as_pruning_errors
from fxprune.graph.captured import as_editable, as_graph_module
from fxprune.graph.masks import Masked, all_masked, base_names, check_prunable, fault_of, find_masked, find_parameter
from fxprune.graph.metadata import METHODS
from fxprune.graph.parts import Graph
from fxprune.passes.mask_parameters import insert_masks, remove_masks
from fxprune.torch_internals.interrupts import interrupts_wait, uninterrupted
from fxprune.torch_internals.pruning_methods import for_parameter, parameter_of, parts_of, set_parts


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
        """Raise PruningTypeError: the graph multiplies by the mask itself, without a hook."""
        raise PruningTypeError("a pruning method on a graph is not a hook: apply(gm, name) inserts the mask as nodes")

    @classmethod
    @interrupts_wait()
    def apply(cls, module: fx.GraphModule, name: str, *args: Any, importance_scores: Any = None, **kwargs: Any) -> Any:
        """Compute a mask for one parameter and insert it into the graph, in place.

        A parameter that is masked already is pruned among its elements that are left, as in torch.

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
        parameter = find_parameter(as_editable(module), name)
        masked = find_masked(module, name)
        check_prunable(name, parameter)
        context = f"cannot prune parameter {name!r} of shape {tuple(parameter.shape)} with {cls.__name__}"
        with as_pruning_errors(context), torch.no_grad():
            method: torch_prune.BasePruningMethod = for_parameter(cls(*args, **kwargs), base_names(module, parameter)[0])
            value, default_mask = current_value(parameter, masked)
            scores = scores_for(importance_scores, value, name)
            if masked is not None:
                method = chain(module, parameter_of(method), method)
            mask = method.compute_mask(scores, default_mask=default_mask)
        with uninterrupted():
            insert_masks(module, {name: mask})
            module.recompile()
            remember(module, method)
        return method

    def apply_mask(self, module: fx.GraphModule) -> Tensor:
        """Return the masked parameter, a tensor of the parameter's shape and dtype that is differentiable in it."""
        masked = self._masked(module)
        return masked.mask.to(dtype=masked.orig.dtype) * masked.orig

    def remove(self, module: fx.GraphModule) -> None:
        """Bake the mask into the parameter and take it out of the graph; see :func:`remove`."""
        remove(module, self._masked(module).name)

    def _masked(self, module: fx.GraphModule) -> Masked:
        name = self._tensor_name
        masked = find_masked(as_graph_module(module), name) if name is not None else None
        if masked is None:
            raise PruningAssertionError(f"parameter {name!r} is not pruned by this {type(self).__name__}")
        return masked


# In each class torch's base comes first: its apply() checks the arguments and then calls BasePruningMethod.apply().
class PruningContainer(torch_prune.PruningContainer, BasePruningMethod):
    """The methods applied to one parameter, in order; see ``torch.nn.utils.prune.PruningContainer``."""


class Identity(torch_prune.Identity, BasePruningMethod):  # type: ignore[misc]
    """Insert a mask of ones; see ``torch.nn.utils.prune.Identity``."""


class RandomUnstructured(torch_prune.RandomUnstructured, BasePruningMethod):  # type: ignore[misc]
    """Prune elements at random; see ``torch.nn.utils.prune.RandomUnstructured``."""


class L1Unstructured(torch_prune.L1Unstructured, BasePruningMethod):  # type: ignore[misc]
    """Prune the elements of smallest absolute value; see ``torch.nn.utils.prune.L1Unstructured``."""


class RandomStructured(torch_prune.RandomStructured, BasePruningMethod):  # type: ignore[misc]
    """Prune channels of one dimension at random; see ``torch.nn.utils.prune.RandomStructured``."""


class LnStructured(torch_prune.LnStructured, BasePruningMethod):  # type: ignore[misc]
    """Prune the channels of smallest Ln norm; see ``torch.nn.utils.prune.LnStructured``."""

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return the mask that takes the channels of smallest norm out."""
        # From torch 2.14 on the nuclear norm is over the last two dimensions, whichever dimension the channels are.
        if self.n == "nuc" and t.dim() not in (1, 3):
            raise RuntimeError(f"norm 'nuc' is of matrices, but the channels of this parameter have {t.dim() - 1} dimensions")
        return super().compute_mask(t, default_mask)  # type: ignore[no-any-return]


class CustomFromMask(torch_prune.CustomFromMask, BasePruningMethod):  # type: ignore[misc]
    """Prune by a given mask; see ``torch.nn.utils.prune.CustomFromMask``."""

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return the product of the given mask and the mask in force."""
        if not isinstance(self.mask, Tensor):
            raise AttributeError(f"the mask must be a tensor, not {type(self.mask).__name__}")
        if self.mask.shape != default_mask.shape:  # torch up to 2.12 raises without a message
            raise AssertionError(f"the mask has shape {list(self.mask.shape)}, the parameter {list(default_mask.shape)}")
        if fault := fault_of(self.mask, default_mask):
            raise TypeError(f"the mask {fault}")
        return super().compute_mask(t, default_mask)  # type: ignore[no-any-return]


def current_value(parameter: nn.Parameter, masked: Masked | None) -> tuple[Tensor, Tensor]:
    """Return the parameter times its mask, and the mask in the parameter's dtype: of ones if there is none."""
    if masked is None:
        return parameter.detach(), torch.ones_like(parameter)
    mask = masked.mask.to(dtype=parameter.dtype).expand_as(parameter)
    return mask * parameter.detach(), mask.clone(memory_format=torch.contiguous_format)


def scores_for(importance_scores: Any, current: Tensor, name: str) -> Tensor:
    """Return the scores that a method ranks by: the user's, checked, or else the current value of the parameter."""
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


def chain(gm: fx.GraphModule, name: str, method: torch_prune.BasePruningMethod) -> PruningContainer:
    """Return a new container of the recorded methods of a parameter and ``method``; the record does not change."""
    earlier = (METHODS.get(gm) or {}).get(name)
    container = for_parameter(PruningContainer(), name)
    set_parts(container, parts_of(earlier) if earlier is not None else ())
    container.add_pruning_method(method)
    return container


def remember(gm: fx.GraphModule, method: torch_prune.BasePruningMethod) -> None:
    """Record ``method`` for its parameter."""
    METHODS.setdefault(gm, {})[parameter_of(method)] = _without_tensors(method)


def _without_tensors(method: torch_prune.BasePruningMethod) -> torch_prune.BasePruningMethod:
    """Return a copy of the method without tensors, for the record: the graph holds the mask itself."""
    kept = copy.copy(method)
    for key, value in vars(kept).items():
        if isinstance(value, Tensor):
            setattr(kept, key, None)
    if isinstance(kept, torch_prune.PruningContainer):
        set_parts(kept, map(_without_tensors, parts_of(kept)))
    return kept


def adopt(gm: fx.GraphModule, name: str, method: torch_prune.BasePruningMethod) -> None:
    """Record that ``method``, a hook of a module, made the mask of the parameter called ``name``."""
    kept = _without_tensors(method)
    for part in (kept, *parts_of(kept)):
        for_parameter(part, base_names(gm, find_parameter(gm, name))[0])
    remember(gm, kept)


def identity(gm: Graph, name: str) -> Graph:
    """Insert a mask of ones for one parameter, in place; returns ``gm``.

    Args:
        gm: the graph.
        name: dotted name of a parameter.

    Raises:
        PruningError: see :meth:`BasePruningMethod.apply`.
    """
    Identity.apply(gm, name)
    return gm


def random_unstructured(gm: Graph, name: str, amount: int | float) -> Graph:
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


def l1_unstructured(gm: Graph, name: str, amount: int | float, importance_scores: Tensor | None = None) -> Graph:
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


def random_structured(gm: Graph, name: str, amount: int | float, dim: int) -> Graph:
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
    gm: Graph, name: str, amount: int | float, n: int | float | str, dim: int, importance_scores: Tensor | None = None
) -> Graph:
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


def custom_from_mask(gm: Graph, name: str, mask: Tensor) -> Graph:
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


def remove(gm: Graph, name: str) -> Graph:
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
    parameter = find_parameter(as_editable(gm), name)
    masked = find_masked(gm, name)
    if masked is None:
        raise PruningValueError(
            f"parameter {name!r} of shape {tuple(parameter.shape)} has to be pruned before pruning can be removed"
        )
    with uninterrupted():
        remove_masks(gm, [masked])
        (METHODS.get(gm) or {}).pop(masked.name, None)
        gm.recompile()
    return gm


def is_pruned(gm: fx.GraphModule) -> bool:
    """Tell whether any parameter of the graph is masked."""
    return bool(all_masked(as_graph_module(gm)))
