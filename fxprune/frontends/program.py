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

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from fxprune.frontends.numbering import Execution, Numbering
from fxprune.frontends.standins import PROPAGATION, Form, IncomparableError
from fxprune.frontends.untouched import Changes, accelerators, fixed_seed, untouched


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
    """What a run came to, by numbers: the results, the inputs as it left them, and the state."""

    results: Any
    inputs: Any
    state: dict[str, int]


class Programs:
    """Comparisons of graphs with one model, as programs. What was found out about the model and its layers is kept."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        tensors = [*model.parameters(), *model.buffers()]
        self._place = {id(tensor): index for index, tensor in enumerate(tensors)}
        self._kinds = accelerators(tensors)
        self._numbering = Numbering(PROPAGATION)
        self._runs: list[tuple[Any, tuple[_Outcome, Changes] | None]] = []

    def same(self, run: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Changes | None:
        """Tell whether a graph and its model are the same program on inputs of these forms; neither changes, nor do the inputs.

        Args:
            run: runs the graph when called with ``args`` and ``kwargs``, as two arguments; shares the model's tensors.
            args: positional inputs.
            kwargs: keyword inputs.

        Returns:
            What the model's code tried to change besides tensors; None if the programs are different or cannot be compared.
        """
        known = self._of_model((args, kwargs))
        if known is None:
            return None
        (theirs, changes), (ours, _) = known, self._run(run, (args, kwargs)) or (None, None)
        if ours is None or (ours.results, ours.inputs) != (theirs.results, theirs.inputs):
            return None
        return changes if all(ours.state[f"gm.{name}"] == number for name, number in theirs.state.items()) else None

    def _of_model(self, inputs: Any) -> tuple[_Outcome, Changes] | None:
        try:
            forms = described(inputs, lambda tensor: (Form.of(tensor), tensor.storage_offset()))
        except IncomparableError:
            return None
        key = [module.__dict__["training"] for module in self._model.modules()], forms
        for known, outcome in self._runs:
            if known == key:
                return outcome
        outcome = self._run(self._model, inputs)
        self._runs.append((key, outcome))
        return outcome

    def _run(self, module: nn.Module, inputs: Any) -> tuple[_Outcome, Changes] | None:
        """Run the model, or a graph of it, on stand-ins; None if that fails."""
        execution = Execution(self._numbering)
        found: tuple[_Outcome, Changes] | None
        try:
            found = self._outcome(execution, module, inputs)
        except Exception:  # code fails on stand-ins as it likes; if it does on tensors as well, a real run will say so
            found = None
        if execution.leaks():
            with fixed_seed(self._kinds):
                execution.mend_leaks()
        return found

    def _outcome(self, execution: Execution, module: nn.Module, inputs: Any) -> tuple[_Outcome, Changes]:
        state, stood_for = self._state(execution, module), _inputs(execution, inputs)
        is_model = module is self._model
        watch = untouched(module) if is_model else contextlib.nullcontext(Changes())
        called = stood_for if is_model else (stood_for, {})
        with fixed_seed(self._kinds), watch as changes, execution.running():
            result = functional_call(module, state, *called)
        number = execution.number
        numbers = {name: number(tensor) for name, tensor in state.items()}
        return _Outcome(described(result, number), described(stood_for, number), numbers), changes

    def _state(self, execution: Execution, module: nn.Module) -> dict[str, Tensor]:
        """Return stand-ins for parameters and buffers; the graph's own constants stay what they are."""
        place, tensors = self._place, itertools.chain(module.named_parameters(), module.named_buffers())
        return {name: execution.stand_in(t, "state", place[id(t)]) for name, t in tensors if id(t) in place}


def _inputs(execution: Execution, inputs: Any) -> Any:
    leaves, spec = pytree.tree_flatten(inputs)
    leaves = [execution.stand_in(v, "input", i) if isinstance(v, Tensor) else v for i, v in enumerate(leaves)]
    return pytree.tree_unflatten(leaves, spec)
