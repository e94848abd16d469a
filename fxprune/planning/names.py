"""What names, patterns and modules mean: parameters, axes of parameters, and the groups on them."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, TypeAlias

from torch import nn

from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.groups import Group
from fxprune.analysis.sources import Tracked
from fxprune.errors import PlanError, PruningTypeError

_MOST = 3  # axes that a note names

Places: TypeAlias = dict[tuple[str, int], None]
"""The axes of parameters, by name and dimension, in order."""


def selectors(ignore: Any) -> list[Any]:
    """Return the names, patterns and modules that ``ignore`` has."""
    if isinstance(ignore, str | nn.Module):
        return [ignore]
    try:
        given = iter(ignore)
    except TypeError:  # so do tensors without a dimension, which are iterable to Python
        message = f"ignore must be an iterable of names, glob patterns and modules, not {ignore!r}"
        raise PruningTypeError(message) from None
    return list(given)


class Names:
    """Finds the axes of parameters that a pattern or a module means, and the groups on them."""

    def __init__(self, deps: Dependencies) -> None:
        self._deps = deps
        self._parameters = [t for t in deps.tracked if t.is_parameter]

    @cached_property
    def _groups(self) -> dict[tuple[str, int], list[Group]]:
        """The groups on each axis."""
        found: dict[tuple[str, int], list[Group]] = {}
        for group in self._deps.groups:
            for member in group.on_parameters:
                found.setdefault((member.parameter, member.dim), []).append(group)
        return found

    def groups(self, selector: Any, argument: str) -> set[int]:
        """Return the indices of all groups that live on the axes that ``selector`` means."""
        return {group.index for place in self.places(selector, argument) for group in self._groups.get(place, ())}

    def places(self, selector: Any, argument: str) -> Places:
        """Return the axes of parameters that ``selector`` means.

        ``selector`` is the name of a parameter or module or a glob pattern of names, which an axis may follow, as in
        ``"fc.weight[0]"``, or a module. Errors name it by ``argument``.
        """
        if isinstance(selector, nn.Module):
            found, dim = self._of_module(selector, argument), None
        elif isinstance(selector, str):
            found, dim = self._of_pattern(selector, argument)
        else:
            raise PruningTypeError(f"{argument} takes names, glob patterns and modules, not {selector!r}")
        if dim is None:
            return {(t.name, d): None for t in found for d in range(len(t.label))}
        within = {(t.name, range(len(t.label))[dim]): None for t in found if -len(t.label) <= dim < len(t.label)}
        if not within:
            name, shape = found[0].name, list(found[0].label.shape)
            raise PlanError(f"{argument} has {selector!r}, but {name!r} of shape {shape} has no dimension {dim}")
        return within

    def _of_module(self, module: nn.Module, argument: str) -> list[Tracked]:
        theirs, ours = set(module.parameters()), dict(self._deps.gm.named_parameters(remove_duplicate=False))
        found = [t for t in self._parameters if any(ours.get(n) in theirs for n in t.names)]
        if not found:
            raise PlanError(
                f"{argument} has a {type(module).__name__} that shares no parameter with the graph: give a module of the model "
                "that was captured, or a name"
            )
        return found

    def _of_pattern(self, pattern: str, argument: str) -> tuple[list[Tracked], int | None]:
        """Return the parameters that a pattern means, and the axis that follows it; a pattern with [...] may mean letters."""
        if found := self._matching(pattern):
            return found, None
        name, bracket, axis = pattern.rpartition("[")
        if bracket and axis.endswith("]") and (found := self._matching(name)):
            if re.fullmatch(r"-?\d{1,9}\]", axis):
                return found, int(axis[:-1])
            raise PlanError(f"{argument} has {pattern!r}: an axis is the number of a dimension, as in {name + '[0]'!r}")
        names = [n for t in self._parameters for n in t.names]
        modules = {n[:end] for n in names for end, letter in enumerate(n) if letter == "."}
        close = difflib.get_close_matches(pattern, [*names, *sorted(modules)], 3)
        hint = f"; did you mean {', '.join(map(repr, close))}?" if close else f"; it has {len(names)} parameters"
        raise PlanError(f"{argument} has {pattern!r}, which matches no parameter of the graph{hint}")

    def _matching(self, pattern: str) -> list[Tracked]:
        inside, matches = pattern + ".*", fnmatch.fnmatchcase
        return [t for t in self._parameters if any(matches(n, pattern) or matches(n, inside) for n in t.names)]

    def notes(self, ignore: Iterable[Any], overrides: Mapping[Any, float], pruned: Iterable[Group]) -> tuple[str, ...]:
        """Return a line for each selector that holds for more than it names, and for each override that changes nothing.

        Args:
            ignore: the selectors of groups to leave alone.
            overrides: other amounts by selector.
            pruned: the groups that are pruned.
        """
        found, taken = [], {group.index for group in pruned}
        for selector in ignore:
            if also := self._also(self.places(selector, "ignore"), self.groups(selector, "ignore")):
                found.append(f"ignore: {_called(selector)} leaves alone {also} as well")
        last = {index: selector for selector in overrides for index in self.groups(selector, "overrides")}
        for selector in overrides:
            places, groups = self.places(selector, "overrides"), self.groups(selector, "overrides")
            held = {index for index in groups & taken if last[index] is selector}
            if also := self._also(places, held):
                found.append(f"overrides: {_called(selector)} holds for {also} as well")
            elif not held and places:
                whole = str(self._deps.explain(*next(iter(places))))
                why = "its groups are ignored, meant by a later entry, or cross groups that are pruned" if groups else whole
                found.append(f"overrides: {_called(selector)} changes nothing: {why}")
        return tuple(found)

    def _also(self, places: Places, groups: Iterable[int]) -> str:
        """Return the axes that groups are on besides those named, as text."""
        members = (member for index in sorted(groups) for member in self._deps.groups[index].on_parameters)
        others = dict.fromkeys(f"{m.parameter}[{m.dim}]" for m in members if (m.parameter, m.dim) not in places)
        more = f" and {len(others) - _MOST} more" if len(others) > _MOST else ""
        return ", ".join(list(others)[:_MOST]) + more


def _called(selector: Any) -> str:
    return repr(selector) if isinstance(selector, str) else f"a {type(selector).__name__}"
