"""What operators do to tensors whose values nobody computes: the forms of their results, and which tensors they write to."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from fxprune.abstract.form import FakeMode, Form, IncomparableError, alike, operator_errors, repeats, storage
from fxprune.torch_internals.operators import OpOverload, arguments_of, base_name, is_mutable, overload_name, returns_of
from fxprune.torch_internals.switches import attention_kernels, defaults, is_autocast_on
from fxprune.torch_internals.tensors import FakeTensor, pytree


@dataclasses.dataclass(frozen=True)
class Output:
    """One output of a call: one of its operands; or of this form, maybe in the memory of one of them; or plain.

    The ``offset`` is how far in memory it starts behind that operand.
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
# Results without tensors that nobody can change.
UNCHANGING = frozenset([int, float, complex, bool, str, type(None), torch.Size, torch.dtype, torch.device, torch.layout])


@dataclasses.dataclass(frozen=True, eq=False)
class Effect:
    """What a call does, whatever its operands hold.

    Attributes:
        outputs: what it gives.
        spec: in which structure.
        func: the operator; None of calls of other functions, of which nothing below is known.
        frozen: its arguments but for the tensors.
        computed: the operator that says what is computed: of one that writes into its first argument the one that returns it.
        source: the operand whose elements the result has; None if it computes some.
        written: the operands that it writes to.
        replaces: whether it leaves in its first operand what ``computed`` returns.
        is_plain: whether it is the same wherever it is called, however its operands lie in memory.
    """

    outputs: list[Output]
    spec: pytree.TreeSpec
    func: Any = None
    frozen: Any = None
    computed: Any = None
    source: int | None = None
    written: tuple[int, ...] = ()
    replaces: bool = False
    is_plain: bool = False

    @classmethod
    def of(cls, result: Any, operands: Sequence[Tensor]) -> Effect:
        """Return the effect of a call that gave ``result``; raises IncomparableError if it could not be given once more."""
        leaves, spec = pytree.tree_flatten(result, is_leaf=lambda part: type(part) is torch.Size)
        return cls([_output(leaf, operands) for leaf in leaves], spec)

    def result(self, operand: Callable[[int], Any], make: Callable[[Form, Tensor | None, int], Tensor]) -> Any:
        """Return what the call gives.

        Args:
            operand: returns the operand at a place.
            make: makes a tensor of a form, in the memory of an operand, if it is given one, and at an offset behind that.
        """
        found: list[Any] = []
        for output in self.outputs:
            if (form := output.form) is not None:
                found.append(make(form, None if output.shares is None else operand(output.shares), output.offset))
            else:
                found.append(output.plain if output.argument is None else operand(output.argument))
        return found[0] if self.spec.is_leaf() else pytree.tree_unflatten(found, self.spec)


def _output(leaf: Any, operands: Sequence[Tensor]) -> Output:
    if not isinstance(leaf, Tensor):
        if type(leaf) not in UNCHANGING:
            raise IncomparableError(f"a result of type {type(leaf).__name__}")
        return Output(plain=leaf)
    if (place := _place(leaf, operands)) is not None:
        return Output(argument=place)
    form, memory = Form.of(leaf), storage(leaf)
    shares = next((place for place, operand in enumerate(operands) if storage(operand) == memory), None)
    return Output(form=form, shares=shares, offset=int(leaf.storage_offset()))


def _place(tensor: Tensor, tensors: Sequence[Tensor]) -> int | None:
    return next((place for place, other in enumerate(tensors) if other is tensor), None)


class Propagation:
    """The effects of calls by the forms of their operands, found out once for each, of operators and of other functions.

    They depend on nothing else that :meth:`key` does not hold, so what one capture has found out is known to all others and
    to all analyses. At most ``most`` effects are known at a time; tests call :meth:`clear` to start without any.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._known: dict[Any, Effect] = {}

    def clear(self) -> None:
        """Forget all effects."""
        self._known.clear()

    def key(self, call: Any, given: Any, tensors: Sequence[Tensor], forms: Sequence[Form]) -> Any:
        """Return what decides on what a call does; None if that cannot be said, and no effect is known then.

        Args:
            call: the operator, or what tells another function from all others.
            given: its arguments without the tensors, as :func:`frozen` returns them.
            tensors: the tensors among its arguments.
            forms: their forms.
        """
        if is_autocast_on():
            return None
        kernels = None if type(call) is OpOverload and call is not _ATTENTION else attention_kernels()
        return (call, given, defaults(), kernels, repeats(tensors), *forms)

    def known(self, key: Any) -> Effect | None:
        """Return what is known of calls of a key."""
        return self._known.get(key)

    def remember(self, key: Any, effect: Effect) -> None:
        """Keep the effect of calls of a key, unless that is None, or they are of an operator of another library.

        The fake implementation of such an operator is its author's, and may change.
        """
        is_torchs = type(effect.func) is not OpOverload or effect.func.namespace == "aten"
        if key is not None and is_torchs:
            if len(self._known) >= self._most:
                self._known.clear()
            self._known[key] = effect

    def effect(
        self, func: Any, frozen: Any, inputs: list[tuple[Tensor, Form]], args: Any, kwargs: Any, mode: FakeMode
    ) -> Effect:
        """Return what a call of an operator does.

        Args:
            func: the operator.
            frozen: its arguments but for the tensors.
            inputs: the tensors among its arguments.
            args: its positional arguments.
            kwargs: its keyword arguments.
            mode: makes the fake tensors that the operator is called on if its effect is not known.

        Raises:
            IncomparableError: it fails on fake tensors, changes the form of an operand, or gives a tensor of another kind.
        """
        key = self.key(func, frozen, [tensor for tensor, _ in inputs], [form for _, form in inputs])
        if (known := self._known.get(key)) is None:
            known = self._effect(func, frozen, inputs, args, kwargs, mode)
            self.remember(key, known)
        return known

    def _effect(
        self, func: Any, frozen: Any, inputs: list[tuple[Tensor, Form]], args: Any, kwargs: Any, mode: FakeMode
    ) -> Effect:
        traits, first = Traits.of(func), inputs[0][1] if inputs else None
        namesake, found = traits.namesake, _run(func, inputs, args, kwargs, mode)
        # What an operator leaves in its first argument is what its namesake returns, if no conversion comes between.
        replaces = namesake is not None and alike(first, _run(namesake, inputs, args, kwargs, mode).outputs[0].form)
        tensors = [tensor for tensor, _ in inputs]
        targets = tuple([place for t in written(func, args, kwargs) if (place := _place(t, tensors)) is not None])
        source = _source(func, [form for _, form in inputs], found.outputs)
        is_plain = not (traits.ordered or traits.strided)
        return Effect(found.outputs, found.spec, func, frozen, namesake or func, source, targets, replaces, is_plain)


def _run(func: Any, inputs: list[tuple[Tensor, Form]], args: Any, kwargs: Any, mode: FakeMode) -> Effect:
    fake_of = {id(tensor): mode.make(form) for tensor, form in inputs}
    fakes = [fake_of[id(tensor)] for tensor, _ in inputs]
    memories = [*map(storage, fakes)]
    args, kwargs = map_aggregate((args, kwargs), lambda a: fake_of.get(id(a), a))
    with mode.without_kernels(), operator_errors(func):
        result = func(*args, **kwargs)
    if [*map(Form.of, fakes)] != [form for _, form in inputs] or [*map(storage, fakes)] != memories:
        raise IncomparableError(f"{func} changes the form or the memory of its argument")
    if any(type(leaf) is not FakeTensor for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)):
        raise IncomparableError("an operator made a tensor of its own")
    return Effect.of(result, fakes)


_ATTENTION = _aten.scaled_dot_product_attention.default


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
    @functools.lru_cache(maxsize=1 << 12)
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
