"""What operators do to tensors whose values nobody computes: the forms of their results, and which tensors they write to."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxprune.abstract.form import (
    Form,
    IncomparableError,
    Wrapping,
    alike,
    form_of_fake,
    operator_errors,
    repeats,
    storage,
)
from fxprune.graph.arguments import map_aggregate
from fxprune.torch_internals.operators import arguments_of, base_name, is_mutable, overload_name, returns_of
from fxprune.torch_internals.tensors import FakeTensorMode, pytree


@dataclasses.dataclass(frozen=True)
class Output:
    """One output of an operator: one of its arguments; or of this form, maybe in the memory of one of them; or plain.

    The ``offset`` is how far in memory it starts behind that argument.
    """

    argument: int | None = None
    form: Form | None = None
    shares: int | None = None
    plain: Any = None
    offset: int = 0


_MOST = 1 << 15  # effects to know at a time: those of a hundred networks
_aten = torch.ops.aten
_SAME = (_aten.detach.default, _aten.alias.default, _aten.clone.default)
# These give all elements of their argument in their order, if none is left out or repeated.
_SAME_IF_WHOLE = (
    _aten.slice.Tensor,
    _aten.expand.default,
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.as_strided.default,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Effect:
    """What a call of an operator does, whatever its operands hold.

    Attributes:
        func: the operator.
        frozen: its arguments but for the tensors.
        computed: the operator that says what is computed: of one that writes into its first argument the one that returns it.
        outputs: what it gives.
        spec: in which structure.
        source: the operand whose elements the result has; None if it computes some.
        written: the operands that it writes to.
        replaces: whether it leaves in its first operand what ``computed`` returns.
        is_plain: whether it is the same wherever it is called, however its operands lie in memory.
    """

    func: Any
    frozen: Any
    computed: Any
    outputs: list[Output]
    spec: pytree.TreeSpec
    source: int | None
    written: tuple[int, ...]
    replaces: bool
    is_plain: bool


class Propagation:
    """The effects of operators by the forms of their operands, found out once for each.

    They depend on nothing else, so what one capture has found out is known to all others, as FakeTensorMode does it, too.
    """

    def __init__(self) -> None:
        self._known: dict[Any, Effect] = {}
        # A fallback kernel would compute with real tensors, and is not asked whether the result's form depends on values.
        self._mode = FakeTensorMode(allow_fallback_kernels=False)
        self._mode.cache_enabled = False  # to keep what each operator inside another gives takes longer than to ask again
        self._wrapping = Wrapping(self._mode)

    def key(self, func: Any, frozen: Any, tensors: Sequence[Tensor], forms: Sequence[Form]) -> Any:
        """Return what decides what a call does: ``frozen`` stands for all among its arguments that is no tensor."""
        same = repeats(tensors)
        return (func, torch.get_default_dtype(), frozen, same, *forms)

    def known(self, key: Any) -> Effect | None:
        """Return what is known of calls of a key."""
        return self._known.get(key)

    def effect(self, key: Any, inputs: list[tuple[Tensor, Form]], args: Any, kwargs: Any) -> Effect:
        """Return what a call does; ``inputs`` are the tensors among its arguments."""
        if (known := self._known.get(key)) is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            func, _, frozen, *_ = key
            known = self._known[key] = self._effect(func, frozen, inputs, args, kwargs)
        return known

    def _effect(self, func: Any, frozen: Any, inputs: list[tuple[Tensor, Form]], args: Any, kwargs: Any) -> Effect:
        traits, forms = Traits.of(func), [form for _, form in inputs]
        namesake = traits.namesake
        outputs, spec = self._outputs(namesake or func, inputs, args, kwargs)
        source = _source(func, forms, outputs)
        # What an operator leaves in its first argument is what its namesake returns, if no conversion comes between.
        replaces = namesake is not None and alike(outputs[0].form, forms[0])
        if replaces:
            outputs = [Output(argument=0)]
        elif namesake is not None:
            outputs, spec = self._outputs(func, inputs, args, kwargs)
        places = {id(tensor): place for place, (tensor, _) in reversed(list(enumerate(inputs)))}
        targets = tuple(places[id(tensor)] for tensor in written(func, args, kwargs))
        is_plain = not (traits.ordered or traits.strided)
        return Effect(func, frozen, namesake or func, outputs, spec, source, targets, replaces, is_plain)

    def _outputs(
        self, func: Any, inputs: list[tuple[Tensor, Form]], args: Any, kwargs: Any
    ) -> tuple[list[Output], pytree.TreeSpec]:
        fake_of = {id(t): form.fake(self._wrapping) for t, form in inputs}
        fakes = [fake_of[id(t)] for t, _ in inputs]
        args, kwargs = map_aggregate((args, kwargs), lambda a: fake_of.get(id(a), a))
        with self._mode, operator_errors(func):
            result = func(*args, **kwargs)
        leaves, spec = pytree.tree_flatten(result)
        if any(form is not Form.of(fake) for fake, (_, form) in zip(fakes, inputs, strict=True)):
            raise IncomparableError(f"{func} changes the shape of its argument")
        outputs = []
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                outputs.append(Output(plain=leaf))
                continue
            same = [i for i, fake in enumerate(fakes) if fake is leaf]
            shares = [i for i, fake in enumerate(fakes) if storage(fake) == storage(leaf)]
            if same:
                outputs.append(Output(argument=same[0]))
            else:
                form, offset = form_of_fake(leaf), int(leaf.storage_offset())
                outputs.append(Output(form=form, shares=shares[0] if shares else None, offset=offset))
        return outputs, spec


PROPAGATION = Propagation()


def _source(func: Any, forms: list[Form], outputs: list[Output]) -> int | None:
    """Return which operand of a call its result has the values of; None if it computes some."""
    if func is _aten.copy_.default:
        return 1 if alike(forms[0], forms[1]) else None
    same = func in _SAME or (func in _SAME_IF_WHOLE and alike(outputs[0].form, forms[0]))
    return 0 if same else None


@dataclasses.dataclass(frozen=True)
class Traits:
    """What the name and the schema of an operator say.

    Attributes:
        ordered: its calls have to be told apart by their order: it draws numbers, or may keep state without saying so.
        raw: it gives memory that nobody has written to.
        strided: it sees how its argument lies in memory.
        shares: it writes to arguments, or returns what shares their memory.
        written: place and name of the arguments that it writes to.
        statistics: place and name of those that it writes to when it is told that it trains.
        training: the place of what tells it.
        namesake: the operator that returns what this one leaves in its first argument, if there is one.
    """

    ordered: bool
    raw: bool
    strided: bool
    shares: bool
    written: tuple[tuple[int, str], ...]
    statistics: tuple[tuple[int, str], ...]
    training: int
    namesake: Any

    @classmethod
    @functools.cache
    def of(cls, func: Any) -> Traits:
        """Return the traits of an operator."""
        arguments = arguments_of(func)
        names = [argument.name for argument in arguments]
        # Operators of other libraries may draw numbers or keep state without saying so.
        ordered = torch.Tag.nondeterministic_seeded in func.tags or func.namespace != "aten"
        return cls(
            ordered,
            "empty" in func.__name__,
            "as_strided" in func.__name__,
            any(argument.alias_info for argument in arguments),
            tuple((i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write),
            # The schemas of batch normalisation do not say that it updates its statistics.
            tuple((i, name) for i, name in enumerate(names) if name in ("running_mean", "running_var")),
            names.index("training") if "training" in names else len(names),
            None if ordered else _functional(func),
        )


def _functional(func: Any) -> Any:
    name = base_name(func)
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") and not name.endswith("__") else None
    found: Any = getattr(packet, overload_name(func), None)
    if found is None or is_mutable(found):
        return None
    if [str(r.type) for f in (func, found) for r in returns_of(f)] != ["Tensor", "Tensor"]:  # one that writes to a list
        return None
    return found if [a.name for a in arguments_of(found)] == [a.name for a in arguments_of(func)] else None


def written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors that a call writes to."""
    traits = Traits.of(func)
    places = traits.written
    if not places and not traits.statistics:
        return []
    if traits.statistics:
        trains = args[traits.training] if traits.training < len(args) else kwargs.get("training")
        places += traits.statistics if trains is not False else ()
    values = [args[place] if place < len(args) else kwargs.get(name) for place, name in places]
    return [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]
