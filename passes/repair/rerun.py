"""Rerun: check a node that runs several operators by running it on fake tensors of the sizes that are left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.abstract.counters import READS_VALUE, Counters, number
from fxprune.abstract.fakes import Fakes
from fxprune.analysis.steps import Step
from fxprune.passes.repair.numbers import Numbers, differ
from fxprune.passes.repair.picks import picks_from_less
from fxprune.rules import find_rule
from fxprune.rules.call import bound_arguments
from fxprune.rules.labels import Label
from fxprune.rules.registry import op_card
from fxprune.torch_internals.operators import OpOverload, TorchDispatchMode, is_composite, is_mutable
from fxprune.torch_internals.switches import no_fast_path, unlogged
from fxprune.torch_internals.tensors import DynamicOutputShapeException, marked_like, pytree

# What a tensor that code makes of numbers, such as ``torch.tensor(x.shape[1])``, is given to.
_MADE_OF_NUMBERS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)


class Rerun(TorchDispatchMode):
    """Runs nodes of a graph on fake tensors of the sizes that are left, and notes the calls that the analysis would see."""

    def __init__(self, gm: fx.GraphModule, numbers: Numbers) -> None:
        super().__init__()
        self.interpreter, self.numbers = fx.Interpreter(gm, garbage_collect_values=False), numbers
        self.fakes, self.counters = Fakes(), Counters()
        self.calls: list[tuple[OpOverload, dict[str, Any], list[tuple[int, ...]]]] = []
        self.steps: Sequence[Step] = ()

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if find_rule(func) is None and is_composite(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func in READS_VALUE and (counter := self.counters.now(args[0])) is not None:
            return number(counter)
        # Real tensors are stood in for: a module in train mode counts its calls.
        try:
            result = self.fakes.call(func, args, kwargs)
        except DynamicOutputShapeException:  # as many as there were for the example
            result = self._as_analysed(func, args)
        shapes = [tuple(r.shape) for r in pytree.tree_leaves(result) if isinstance(r, Tensor)]
        if is_mutable(func):
            self.counters.written(func, args, kwargs)
        if shapes or is_mutable(func):
            self.calls.append((func, bound_arguments(func, args, kwargs), shapes))
        return result

    def _as_analysed(self, func: OpOverload, args: tuple[Any, ...]) -> Tensor:
        """Return a result of the size that the call had in the analysis, without the positions that are gone."""
        (label,) = self.steps[len(self.calls)].results
        (first, *_) = (leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor))
        dtype = torch.long if func is torch.ops.aten.nonzero.default else first.dtype
        return self.fakes.empty(self.numbers.kept.shape(label), dtype, first.device)

    def comes_out_right(self, node: fx.Node, steps: Sequence[Step]) -> bool:
        """Tell whether every operator that a node runs gets the sizes that it needs, given the node's calls as analysed."""
        self.calls, self.steps = [], steps
        try:
            args, kwargs = self._present(node, steps)
            # Sizes that do not fit are an answer here, and torch would print them.
            with unlogged(), no_fast_path(), torch.inference_mode(), self.fakes.mode, self:
                result = getattr(self.interpreter, node.op)(node.target, args, kwargs)
        except Exception:
            return False
        return (
            not _differ_in_numbers(self.numbers.before(node), result)
            and len(self.calls) == len(steps)
            and all(_is_right(step, found, self.numbers) for step, found in zip(steps, self.calls, strict=True))
        )

    def _present(self, node: fx.Node, steps: Sequence[Step]) -> Any:
        """Return the arguments that a node is given now."""
        given = [pair for step in steps if step.call is not None for pair in step.call.given()]

        def stand_in(leaf: Any) -> Any:
            if not isinstance(leaf, Label):
                return leaf
            # A tensor that was passed through has another label since; a tensor of its shape stands in for it.
            alike = [t for label, t in given if label is leaf] or [t for label, t in given if label.shape == leaf.shape]
            like = alike[0] if alike else torch.empty(0)
            return marked_like(self.fakes.empty(self.numbers.kept.shape(leaf), like.dtype, like.device), like)

        return pytree.tree_map(stand_in, self.numbers.now((node.args, node.kwargs)))


def _is_right(step: Step, found: tuple[OpOverload, dict[str, Any], list[tuple[int, ...]]], numbers: Numbers) -> bool:
    op, arguments, shapes = found
    call = step.call
    assert call is not None
    if op is not call.op or shapes != [numbers.kept.shape(label) for label in step.results]:
        return False
    if picks_from_less(call, numbers.kept) or (op in _MADE_OF_NUMBERS and not torch.equal(call["self"], arguments["self"])):
        return False
    wanted = call.arguments | op_card(call.op).arguments_left(call, step.results, numbers.kept)
    # A shape says what it is, -1 in it included: that of the result is the one wanted.
    return not any(differ(wanted[name], value) for name, value in arguments.items() if name not in ("shape", "size"))


def _differ_in_numbers(before: Any, now: Any) -> bool:
    """Tell whether a plain number among the results of a node has changed."""
    pairs = zip(pytree.tree_leaves(before), pytree.tree_leaves(now), strict=False)
    return any(isinstance(old, bool | int | float) and old != new for old, new in pairs)
