"""The catalogue: one small model of every family that torchvision, timm and transformers have, each with its inputs.

Wider than `tests.zoo.models` and shallower: the models there are tested in depth, those here are only captured and
analysed. All weights are random, and no library is imported before one of its models is built.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Sequence

from tests.zoo.recipe import Recipe

FAMILIES = ("torchvision", "timm", "transformers")


@functools.cache
def catalogue() -> dict[str, Recipe]:
    """Return all recipes by name: ``"<library>/<model>"``."""
    from tests.zoo import catalogue_timm, catalogue_torchvision, catalogue_transformers

    found: dict[str, Recipe] = {}
    for recipe in (*catalogue_torchvision.recipes(), *catalogue_timm.recipes(), *catalogue_transformers.recipes()):
        if recipe.name in found:
            raise ValueError(f"two recipes are named {recipe.name!r}")
        found[recipe.name] = recipe
    return found


def select(patterns: Sequence[str] = (), family: str | None = None) -> list[Recipe]:
    """Return the recipes of a family whose name, with or without the family before it, fits any of the patterns.

    Args:
        patterns: names or glob patterns; none for all recipes.
        family: one of `FAMILIES`, or None for all.

    Raises:
        ValueError: nothing fits one of the patterns.
    """
    recipes = [recipe for recipe in catalogue().values() if family in (None, recipe.family)]
    for pattern in patterns:
        if not any(_fits(recipe, pattern) for recipe in recipes):
            raise ValueError(f"no model of the catalogue{f' from {family}' if family else ''} is named {pattern!r}")
    return [recipe for recipe in recipes if not patterns or any(_fits(recipe, pattern) for pattern in patterns)]


def _fits(recipe: Recipe, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (recipe.name, recipe.name.removeprefix(f"{recipe.family}/")))
