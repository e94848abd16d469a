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

import itertools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from fxprune.frontends.numbering import Execution, Numbering
from fxprune.frontends.standins import Propagation
from fxprune.frontends.untouched import Changes, fixed_seed, untouched

Alike = Callable[[Any, Any, Callable[[Tensor, Tensor], bool]], bool]


def same_program(
    run: nn.Module,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    alike: Alike,
    propagation: Propagation | None = None,
) -> Changes | None:
    """Tell whether a graph and its model are the same program on inputs of these forms; neither changes, nor do the inputs.

    Args:
        run: runs the graph when called with ``args`` and ``kwargs``, as two arguments; shares the model's tensors.
        model: the model.
        args: positional inputs.
        kwargs: keyword inputs.
        alike: tells whether two results have the same structure, given what tells whether two tensors are the same.
        propagation: what operators give, from comparisons before this one.

    Returns:
        What the model's code tried to change besides tensors; None if the programs are different or cannot be compared.
    """
    numbering = Numbering(propagation or Propagation())
    ours, theirs = Execution(numbering), Execution(numbering)
    try:
        changes = _compare(ours, theirs, run, model, (args, kwargs), alike)
    except Exception:  # code fails on stand-ins as it likes; if it does on tensors as well, a real run will say so
        changes = None
    with fixed_seed(model):
        ours.mend_leaks()
        theirs.mend_leaks()
    return changes


def _compare(ours: Execution, theirs: Execution, run: nn.Module, model: nn.Module, inputs: Any, alike: Alike) -> Changes | None:
    place = {id(tensor): index for index, tensor in enumerate([*model.parameters(), *model.buffers()])}
    our_state, theirs_state = _state(ours, run, place), _state(theirs, model, place)
    our_inputs, their_inputs = _inputs(ours, inputs), _inputs(theirs, inputs)
    with fixed_seed(model), ours.running():
        our_result = functional_call(run, our_state, our_inputs)
    with fixed_seed(model), untouched(model) as changes, theirs.running():
        their_result = functional_call(model, theirs_state, *their_inputs)

    def same(a: Tensor, b: Tensor) -> bool:
        return ours.number(a) == theirs.number(b)

    kept = all(same(our_state[f"gm.{name}"], tensor) for name, tensor in theirs_state.items())
    return changes if kept and alike(our_inputs, their_inputs, same) and alike(our_result, their_result, same) else None


def _state(execution: Execution, module: nn.Module, place: dict[int, int]) -> dict[str, Tensor]:
    """Return stand-ins for parameters and buffers; the graph's own constants stay what they are."""
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    return {name: execution.stand_in(t, "state", place[id(t)]) for name, t in tensors if id(t) in place}


def _inputs(execution: Execution, inputs: Any) -> Any:
    leaves, spec = pytree.tree_flatten(inputs)
    leaves = [execution.stand_in(v, "input", i) if isinstance(v, Tensor) else v for i, v in enumerate(leaves)]
    return pytree.tree_unflatten(leaves, spec)
