"""What operators do to tensors whose values nobody computes: the forms of their results, and which tensors they write to."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree as pytree

from fxprune.dumps import map_aggregate


class IncomparableError(Exception):
    """The program depends on what tensors without values do not have, or does what value numbering does not follow."""


@contextlib.contextmanager
def operator_errors(func: Any) -> Iterator[None]:
    """Raise as IncomparableError the errors of an operator that runs within the context, and of nothing else there."""
    try:
        yield
    except Exception as error:  # whatever an operator raises where values are missing or operands do not fit
        raise IncomparableError(f"{func} fails: {error}") from error


class Form:
    """What there is to know about a tensor without its values. There is one of each, so that ``is`` tells forms apart."""

    __slots__ = ("__weakref__", "device", "dtype", "size", "stride")
    _known: ClassVar[weakref.WeakValueDictionary[Any, Form]] = weakref.WeakValueDictionary()

    def __init__(self, size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.size, self.stride, self.dtype, self.device = size, stride, dtype, device

    @classmethod
    def of(cls, tensor: Tensor) -> Form:
        """Return the form of ``tensor``; raises IncomparableError if it is not an ordinary dense tensor."""
        unusual = tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg()
        if unusual or tensor.is_meta:
            raise IncomparableError(f"a tensor that is not in plain memory: {tensor.layout}, {tensor.device}")
        return cls.of_parts(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)

    @classmethod
    def of_parts(cls, *parts: Any) -> Form:
        """Return the form of these sizes, strides, type and device."""
        form = cls._known.get(parts)
        if form is None:
            form = cls._known[parts] = cls(*parts)
        return form

    def fake(self, wrapping: Wrapping) -> FakeTensor:
        """Return a fake tensor of this form; much faster than to convert one."""
        return wrapping.wrap(torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta"), self.device)

    def stand_in(self) -> Tensor:
        """Return a tensor of this form whose memory Python cannot get at."""
        try:
            tensor = torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)
        except RuntimeError as error:
            raise IncomparableError(f"no memory for a tensor of {self.size}") from error
        torch._C._set_throw_on_mutable_data_ptr(tensor)
        return tensor


class Wrapping:
    """Makes fake tensors of tensors on the meta device; all that are on one device have the same state."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self._states: dict[torch.device, dict[str, Any]] = {}  # the attributes of fake tensors

    def wrap(self, tensor: Tensor, device: torch.device) -> FakeTensor:
        """Return the fake tensor on a device that a tensor on the meta device makes."""
        state = self._states.get(device)
        if state is None:
            first = FakeTensor(self.mode, tensor, device)
            self._states[device] = dict(vars(first))
            return first
        fake = Tensor._make_subclass(FakeTensor, tensor, False, dispatch_device=True, device_for_backend_keys=device)
        torch._C._set_throw_on_mutable_data_ptr(fake)
        vars(fake).update(state)
        return fake


def alike(a: Form | None, b: Form) -> bool:
    """Tell whether tensors of these forms can hold the same values; how they lie in memory does not matter."""
    return a is not None and (a.size, a.dtype, a.device) == (b.size, b.dtype, b.device)


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
                form, offset = _form_of_fake(leaf), int(leaf.storage_offset())
                outputs.append(Output(form=form, shares=shares[0] if shares else None, offset=offset))
        return outputs, spec


PROPAGATION = Propagation()


def repeats(things: Sequence[Any]) -> tuple[int, ...]:
    """Return for each of ``things`` the place where it comes first, if one comes twice; else nothing."""
    ids = [*map(id, things)]
    return () if len(set(ids)) == len(ids) else tuple(map(ids.index, ids))


def _source(func: Any, forms: list[Form], outputs: list[Output]) -> int | None:
    """Return which operand of a call its result has the values of; None if it computes some."""
    if func is _aten.copy_.default:
        return 1 if alike(forms[0], forms[1]) else None
    same = func in _SAME or (func in _SAME_IF_WHOLE and alike(outputs[0].form, forms[0]))
    return 0 if same else None


def _form_of_fake(fake: Tensor) -> Form:
    if not isinstance(fake, FakeTensor):
        raise IncomparableError("an operator made a tensor of its own")
    return Form.of(fake)


def storage(tensor: Tensor) -> int:
    """Return the address of the storage of ``tensor``, the same for all that share memory."""
    if tensor.layout is not torch.strided:
        raise IncomparableError(f"a tensor that has no storage: {tensor.layout}")
    address: int = tensor.untyped_storage()._cdata
    return address


_SEQUENCES = (tuple, list, torch.Size, immutable_list)
_TENSORS = (Tensor, nn.Parameter)
_PLAIN = (torch.dtype, torch.layout, torch.device, torch.memory_format)


def frozen(value: Any, tensors: list[Any]) -> Any:
    """Return a hashable form of arguments, without the tensors, which are added to ``tensors``."""
    kind = type(value)
    if kind in _SEQUENCES:
        found: list[Any] = [kind]
        for part in value:  # with what most of them are at hand
            if type(part) is int:
                found.append((int, part))
            elif type(part) is Tensor:
                tensors.append(part)
                found.append(Tensor)
            else:
                found.append(frozen(part, tensors))
        return tuple(found)
    if kind in _TENSORS:
        tensors.append(value)
        return Tensor
    if kind in (bool, int, str):
        return kind, value
    if value is None or value is ... or kind in _PLAIN:
        return value
    if kind in (float, complex):
        return kind, repr(value)  # 0.0 == -0.0
    if kind in (dict, immutable_dict):
        return (kind, *[(k, frozen(v, tensors)) for k, v in value.items()])
    if kind is slice:
        return (kind, *[frozen(v, tensors) for v in (value.start, value.stop, value.step)])
    raise IncomparableError(f"an argument of type {kind.__name__}")


def thawed(value: Any, tensors: Iterator[Any]) -> Any:
    """Return the arguments that a frozen form is of, with the next of ``tensors`` at each place of one."""
    if value is Tensor:
        return next(tensors)
    if type(value) is not tuple:
        return value
    kind, *parts = value
    if kind in _SEQUENCES:
        return kind([thawed(part, tensors) for part in parts])
    if kind is slice:
        return slice(*[thawed(part, tensors) for part in parts])
    if kind in (dict, immutable_dict):
        return {key: thawed(part, tensors) for key, part in parts}
    return kind(*parts)


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
        arguments = func._schema.arguments
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
    name = func._schema.name.partition("::")[2]
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") and not name.endswith("__") else None
    found: Any = getattr(packet, func._overloadname, None)
    if found is None or found._schema.is_mutable:
        return None
    if [str(r.type) for f in (func, found) for r in f._schema.returns] != ["Tensor", "Tensor"]:  # one that writes to a list
        return None
    return found if [a.name for a in found._schema.arguments] == [a.name for a in func._schema.arguments] else None


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
