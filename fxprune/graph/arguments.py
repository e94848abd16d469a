"""Walks over the arguments of graph nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def map_aggregate(value: Any, fn: Callable[[Any], Any]) -> Any:
    """Map ``fn`` over the leaves of arguments that torch.fx allows: pytree does not enter slices."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_aggregate(v, fn) for v in value))
    if isinstance(value, tuple | list):
        return type(value)(map_aggregate(v, fn) for v in value)
    if isinstance(value, dict):
        return type(value)((k, map_aggregate(v, fn)) for k, v in value.items())
    if isinstance(value, slice):
        return slice(map_aggregate(value.start, fn), map_aggregate(value.stop, fn), map_aggregate(value.step, fn))
    return fn(value)
