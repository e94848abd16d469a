"""Compares a graph with its model as programs: by the operators that they call, without computing any of them.

Both run on stand-ins: tensors whose values nobody computes. A dispatch mode sees every operator and gives its result a
number, the same for the same operator on arguments of the same numbers (value numbering). The numbers of parameters,
buffers and inputs say which ones they are. So where graph and model end with the same numbers, they compute the same
function, whatever the values are. Where they do not, nothing is said: they may still be equal, and numbers have to tell.

A stand-in is an ordinary tensor: of the type, device, shape, strides and ``requires_grad`` of what it stands for, so that
no code, of the model or of torch, takes another path than in a real run (a FakeTensor can be asked whether it is one).
What would need its values is noticed: operators that hand them to Python do not propagate, and other ways to the memory
are locked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fxprune.abstract.form import Form, IncomparableError
from fxprune.abstract.propagation import PROPAGATION
from fxprune.frontends.equivalence.numbering import Execution, Numbering
from fxprune.frontends.model.snapshot import Changes, ModelSnapshot
from fxprune.graph.paths import Modules
from fxprune.torch_internals.switches import accelerators, fixed_seed
from fxprune.torch_internals.tensors import pytree


def described(value: Any, leaf: Callable[[Tensor], Any]) -> Any:
    """Return what a value consists of, to be compared by ``==``: its types, ``leaf`` of each tensor, and all else as it is."""
    if isinstance(value, Tensor):
        return Tensor, leaf(value)
    if isinstance(value, Mapping):
        kind = dict if isinstance(value, dict) else type(value)
        return kind, {key: described(part, leaf) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return list if isinstance(value, list) else type(value), [described(part, leaf) for part in value]
    if hasattr(value, "__dict__") and not isinstance(value, type):
        return type(value), described(vars(value), leaf)
    return type(value), value


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What a run came to, by numbers: the results, the inputs as it left them, and the tensors of the model."""

    results: Any
    inputs: Any
    state: list[int]


class Programs:
    """Comparisons of graphs with one model, as programs. What was found out about the model and its layers is kept."""

    def __init__(self, kept: ModelSnapshot) -> None:
        self._kept, self._tensors = kept, list(kept.tensors.values())
        self._held = _holders(kept.modules, self._tensors)
        self._kinds = accelerators(self._tensors)
        self._numbering = Numbering(PROPAGATION)
        self._runs: list[tuple[Any, tuple[_Outcome, Changes] | None]] = []

    def same(self, run: Callable[[Any, Any], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Changes | None:
        """Tell whether a graph and its model are the same program on inputs of these forms; neither changes, nor do the inputs.

        Args:
            run: runs the graph when called with ``args`` and ``kwargs``; it has the model's tensors.
            args: positional inputs.
            kwargs: keyword inputs.

        Returns:
            What the model's code tried to change besides tensors; None if the programs are different or cannot be compared.
        """
        known = self._of_model((args, kwargs))
        if known is None:
            return None
        theirs, changes = known
        return changes if self._run(self._of_graph, run, (args, kwargs)) == theirs else None

    def _of_model(self, inputs: Any) -> tuple[_Outcome, Changes] | None:
        try:
            forms = described(inputs, lambda tensor: (Form.of(tensor), tensor.storage_offset()))
        except IncomparableError:
            return None
        key = [module.__dict__["training"] for _, module in self._kept.modules], forms
        for known, found in self._runs:
            if known == key:
                return found
        changes = Changes()
        outcome = self._run(self._of_code, changes, inputs)
        self._runs.append((key, None if outcome is None else (outcome, changes)))
        return self._runs[-1][1]

    def _run(self, run: Callable[[Execution, Any, Any], _Outcome], what: Any, inputs: Any) -> _Outcome | None:
        """Run the model, or a graph of it, without values; None if what it does cannot be followed."""
        execution = Execution(self._numbering)
        try:
            return run(execution, what, inputs)
        except IncomparableError:
            return None
        finally:
            if execution.leaks():
                with fixed_seed(self._kinds):
                    execution.mend_leaks()

    def _of_code(self, execution: Execution, changes: Changes, inputs: Any) -> _Outcome:
        """Run the model's code, which may do anything with its tensors: so others stand for them."""
        state = [execution.stand_in(tensor, "state", place) for place, tensor in enumerate(self._tensors)]
        stood_for = _inputs(execution, inputs)
        with fixed_seed(self._kinds), self._kept.untouched(changes):
            result, left = self._call_with(execution, state, *stood_for)
        numbers = list(map(execution.number, left))
        return _Outcome(described(result, execution.number), described(stood_for, execution.number), numbers)

    def _call_with(self, execution: Execution, tensors: list[Tensor], args: Any, kwargs: Any) -> tuple[Any, list[Any]]:
        """Call the model with ``tensors`` in the place of its own; return its result, and what is in their place then.

        As ``torch.func.functional_call`` does, which looks for each module by its name.
        """
        self._hold(tensors)
        try:
            with execution.running():
                result = self._kept.model(*args, **kwargs)
            left = {place: owner[registry].get(name) for owner, registry, name, place in reversed(self._held)}
            return result, [left[place] for place in range(len(tensors))]
        finally:
            self._hold(self._tensors)

    def _hold(self, tensors: list[Tensor]) -> None:
        for owner, registry, name, place in self._held:
            owner[registry][name] = tensors[place]

    def _of_graph(self, execution: Execution, run: Callable[[Any, Any], Any], inputs: Any) -> _Outcome:
        """Run a graph, which does with the model's tensors what its nodes say; its own constants stay what they are."""
        for place, tensor in enumerate(self._tensors):
            execution.leaf(tensor, "state", place)
        stood_for = _inputs(execution, inputs)
        with fixed_seed(self._kinds), execution.running():
            result = run(*stood_for)
        numbers = list(map(execution.number, self._tensors))
        return _Outcome(described(result, execution.number), described(stood_for, execution.number), numbers)


def _holders(modules: Modules, tensors: list[Tensor]) -> list[tuple[dict[str, Any], str, str, int]]:
    """Return where modules hold tensors: attributes of a module, registry, name in that, and which of ``tensors`` it is."""
    places = {id(tensor): place for place, tensor in enumerate(tensors)}
    return [
        (vars(module), registry, name, places[id(tensor)])
        for registry in ("_parameters", "_buffers")
        for _, module in modules
        for name, tensor in vars(module)[registry].items()
        if tensor is not None
    ]


def _inputs(execution: Execution, inputs: Any) -> Any:
    leaves, spec = pytree.tree_flatten(inputs)
    leaves = [execution.stand_in(v, "input", i) if isinstance(v, Tensor) else v for i, v in enumerate(leaves)]
    return pytree.tree_unflatten(leaves, spec)
