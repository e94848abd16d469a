"""Methods of ``torch.nn.utils.prune``: the private attributes of its classes, and its checks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from torch.nn.utils import prune

_Method = TypeVar("_Method", bound=prune.BasePruningMethod)

elements_to_prune = prune._compute_nparams_toprune
"""Return the number of elements of an amount, as torch rounds it."""

check_elements_to_prune = prune._validate_pruning_amount
"""Raise torch's own error for more elements than there are."""


def parameter_of(method: prune.BasePruningMethod) -> str:
    """Return the name of the parameter that a method prunes."""
    return method._tensor_name


def for_parameter(method: _Method, name: str) -> _Method:
    """Let a method prune the parameter called ``name``, and return it."""
    method._tensor_name = name
    return method


def parts_of(method: object) -> tuple[prune.BasePruningMethod, ...]:
    """Return the methods in a container, or else the method alone."""
    return tuple(getattr(method, "_pruning_methods", (method,)))


def set_parts(container: prune.PruningContainer, parts: Iterable[prune.BasePruningMethod]) -> None:
    """Put methods into a container without the checks of ``add_pruning_method``."""
    container._pruning_methods = tuple(parts)
