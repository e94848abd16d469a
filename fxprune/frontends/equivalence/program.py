"""Compares a graph with its model as programs: by the operators that they call, without computing any of them.

Both run on stand-ins: tensors without computed values. A dispatch mode sees every operator and gives its result a number, the
same for the same operator on arguments of the same numbers (value numbering). Each parameter, buffer and input has a number of
its own. So if graph and model end with the same numbers, they compute the same function, whatever the values are. If the
numbers differ, graph and model may still be equal, and real runs have to decide::

    h = linear(x, w, b)     number 4 = (linear, 1, 2, 3)
    y = relu(h)             number 5 = (relu, 4)            a graph of the model ends with number 5 as well

A stand-in is an ordinary tensor with the type, device, shape, strides and ``requires_grad`` of the real tensor, so that all
code, of the model and of torch, takes the path of a real run. (A FakeTensor has a type of its own, which code can ask for.)
Code that needs the values of a stand-in is noticed: operators that hand values to Python raise, and other ways to the memory
are locked.
"""

from __future__ import annotations

import collections
import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.func import functional_call

from fxprune.abstract.form import Form, IncomparableError
from fxprune.abstract.propagation import PROPAGATION
from fxprune.frontends.equivalence.numbering import Execution, Numbering
from fxprune.frontends.model.plain import PlainState
from fxprune.frontends.model.snapshot import Changes, ModelSnapshot
from fxprune.torch_internals.switches import accelerators, fixed_seed
from fxprune.torch_internals.tensors import tensors_in, with_tensors


def described(value: Any, leaf: Callable[[Tensor], Any]) -> Any:
    """Return a value in a form to compare by ``==``: with the types of containers, and ``leaf`` of each tensor."""
    if isinstance(value, Tensor):
        return Tensor, leaf(value)
    if isinstance(value, Mapping):
        kind = dict if isinstance(value, dict) else type(value)
        return kind, {key: described(part, leaf) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return np.ndarray, value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, list | tuple | collections.deque):
        return list if isinstance(value, list) else type(value), [described(part, leaf) for part in value]
    if hasattr(value, "__dict__") and not isinstance(value, type):
        return type(value), described(vars(value), leaf)
    return type(value), value


class Programs:
    """Compares graphs with one model, as programs; remembers the runs of the model."""

    def __init__(self, kept: ModelSnapshot) -> None:
        self._kept, self._tensors = kept, list(dict.fromkeys(kept.tensors.values()))
        self._kinds = accelerators(self._tensors)
        self._numbering = Numbering(PROPAGATION)
        self._runs: list[tuple[Any, tuple[Any, Changes] | None]] = []

    def same(self, run: Callable[[Any, Any], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Changes | None:
        """Compare a graph with the model on inputs of these forms; graph, model and inputs stay as they are.

        Args:
            run: runs the graph, which holds the model's tensors, on ``args`` and ``kwargs``.
            args: positional inputs.
            kwargs: keyword inputs.

        Returns:
            The attributes, besides tensors, that the model's code changes; None if the programs differ or cannot be compared.
        """
        known = self._of_model((args, kwargs))
        if known is None:
            return None
        theirs, changes = known
        return changes if self._run(lambda execution: self._of_graph(execution, run, (args, kwargs))) == theirs else None

    def remembers(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
        """Tell whether what the model's code keeps in attributes from one call changes what the next call computes.

        The next call gets other inputs of these forms. None if that cannot be told from the operators.
        """
        first = self._run(lambda execution: self._of_calls(execution, [(args, kwargs)]))
        later = self._run(lambda execution: self._of_calls(execution, [(args, kwargs)] * 2))
        if first is None or later is None:
            return None
        return bool(first[0] != later[0] or _grows(later[1]))

    def _of_calls(self, execution: Execution, calls: list[Any]) -> Any:
        """Run the model's code in several calls; return what the last computes, and the lengths of plain state after each."""
        lengths = [self._kept.plain.lengths()]
        with self._kept.untouched():
            for place, inputs in enumerate(calls, start=-len(calls)):
                execution.begin_again()
                result = self._call(execution, _inputs(execution, inputs, place))
                lengths.append(self._kept.plain.lengths())
            return described(result, execution.number), lengths

    def _of_model(self, inputs: Any) -> tuple[Any, Changes] | None:
        try:
            forms = described(inputs, lambda tensor: (Form.of(tensor), tensor.storage_offset()))
        except IncomparableError:
            return None
        key = [module.__dict__["training"] for _, module in self._kept.modules], forms
        for known, found in self._runs:
            if known == key:
                return found
        changes = Changes()
        outcome = self._run(lambda execution: self._of_code(execution, changes, inputs))
        self._runs.append((key, None if outcome is None else (outcome, changes)))
        return self._runs[-1][1]

    def _run(self, run: Callable[[Execution], Any]) -> Any:
        """Return the numbers of results, inputs and the model's tensors after ``run`` in a new execution, or None."""
        execution = Execution(self._numbering)
        try:
            return run(execution)
        except IncomparableError:
            return None
        finally:
            if execution.leaks():
                with fixed_seed(self._kinds):
                    execution.mend_leaks()

    def _of_code(self, execution: Execution, changes: Changes, inputs: Any) -> Any:
        """Run the model's code, and return the numbers of results, inputs and tensors."""
        stood_for = _inputs(execution, inputs)
        writes, forms = noting_writes(self._kept.model, stood_for, changes), changes.forms.noting(stood_for)
        with self._kept.untouched(changes), writes, forms:
            return described(self._call(execution, stood_for), execution.number)

    def _call(self, execution: Execution, stood_for: Any) -> Any:
        """Call the model with stand-ins as its parameters and buffers, which the code may write to or replace."""
        stand_ins = {tensor: execution.stand_in(tensor, "state", place) for place, tensor in enumerate(self._tensors)}
        state = {name: stand_ins[tensor] for name, tensor in self._kept.tensors.items()}
        tensors = tensors_in(stood_for)
        with fixed_seed(self._kinds), execution.running():
            # All names are there: left to itself, the call does not put back the tensors of a module with two names.
            result = functional_call(self._kept.model, state, *stood_for, tie_weights=False)
        left = {tensor: state[name] for name, tensor in reversed(self._kept.tensors.items())}  # under its first name
        return result, tensors, [left[tensor] for tensor in self._tensors]

    def _of_graph(self, execution: Execution, run: Callable[[Any, Any], Any], inputs: Any) -> Any:
        """Run a graph on the model's tensors, which get numbers without stand-ins: only the nodes of the graph use them."""
        for place, tensor in enumerate(self._tensors):
            execution.leaf(tensor, "state", place)
        stood_for = _inputs(execution, inputs)
        tensors = tensors_in(stood_for)
        with fixed_seed(self._kinds), execution.running():
            result = run(*stood_for)
        return described((result, tensors, self._tensors), execution.number)


@contextlib.contextmanager
def noting_writes(model: nn.Module, inputs: Any, changes: Changes) -> Iterator[None]:
    """Note which inputs have other items or attributes after the context; writes to their tensors are compared instead."""
    plain = PlainState(tensors_in(inputs))
    for name, value in inspect.signature(model.forward).bind(*inputs[0], **inputs[1]).arguments.items():
        plain.add(name, value)
    yield
    plain.restore(changes.inputs, changes.inputs)


def _inputs(execution: Execution, inputs: Any, *name: Any) -> Any:
    places = itertools.count()
    return with_tensors(inputs, lambda tensor: execution.stand_in(tensor, "input", next(places), *name))


def _grows(lengths: list[dict[str, int]]) -> bool:
    """Tell whether a list or dict has grown in each of two calls."""
    before, between, after = lengths
    return any(before[name] < between[name] < after[name] for name in before)
