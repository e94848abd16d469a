"""Tensors without values for one run of a graph: stand-ins for real tensors, and what operators make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fxprune.abstract.form import Form, IncomparableError, Wrapping, frozen
from fxprune.abstract.propagation import PROPAGATION, Effect, Output, Traits
from fxprune.graph.arguments import map_aggregate
from fxprune.torch_internals.operators import OpOverload, is_mutable
from fxprune.torch_internals.tensors import FakeTensor, FakeTensorMode, contiguous_strides, memory_of, pytree, undispatched

_MOST = 1 << 15  # results to know at a time: those of a hundred networks
# Type, sizes, strides, place in the memory, device.
_Form = tuple[torch.dtype, torch.Size, tuple[int, ...], int, torch.device]


class Fakes:
    """The fake tensors of one run.

    The form of an operator's result depends on the forms of its operands and on nothing else. Layers repeat, and asking
    FakeTensorMode takes long even where it knows the answer: so it is asked once, and further results are made like the first,
    in all runs. What a capture has asked it is not asked again.
    """

    # By operator and operands the form of the result, and which operand it is a view of; no form if it is that operand.
    _known: ClassVar[dict[Any, tuple[_Form | None, Any]]] = {}

    def __init__(self) -> None:
        self.mode = _Mode(self.make)
        self.mode.cache_enabled = False  # to keep what each operator inside another gives takes longer than to ask again
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}
        self._origins: dict[int, Tensor] = {}  # the real tensor, by the memory of its twin
        self._wrapping = Wrapping(self.mode)

    def like(self, leaf: Any) -> Any:
        """Return a new fake tensor like a tensor, the hint of a symbolic number, and anything else as it is."""
        if isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool):
            return leaf.node.hint
        if not isinstance(leaf, Tensor):
            return leaf
        # A dynamic batch size is analysed at the example's.
        sizes, strides = ([int(getattr(getattr(n, "node", None), "hint", n)) for n in ns] for ns in (leaf.shape, leaf.stride()))
        return self.make((leaf.dtype, torch.Size(sizes), tuple(strides), 0, leaf.device), inference=False)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> FakeTensor:
        """Return a new fake tensor, contiguous."""
        return self.make((dtype, torch.Size(shape), contiguous_strides(shape), 0, device), inference=False)

    def of(self, leaf: Any) -> Any:
        """Return fake tensors in place of real ones, the same for the same, and anything else as it is."""
        if type(leaf) in (tuple, list):
            return type(leaf)(map(self.of, leaf))
        if not isinstance(leaf, Tensor) or isinstance(leaf, FakeTensor):
            return leaf
        if id(leaf) not in self._twins:
            plain = type(leaf) in _REAL and leaf.layout is torch.strided
            # The real tensor is kept with its twin, so that no other can take its identity.
            twin = self.like(leaf) if plain else self.mode.from_tensor(leaf)
            self._twins[id(leaf)] = (leaf, twin)
            self._origins[memory_of(twin)] = leaf
        return self._twins[id(leaf)][1]

    def origin(self, memory: int) -> Tensor | None:
        """Return the real tensor whose stand-in has this memory, if there is one."""
        return self._origins.get(memory)

    def call(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what an operator makes of its operands; real tensors among them are stood in for."""
        key, tensors = self._key(func, args, kwargs)
        if tensors and key is not None and (known := self._known.get(key)) is not None:
            form, place = known
            base = None if place is None else self.of(tensors[place])
            if form is None:
                return base
            return self.make(form, torch.is_inference_mode_enabled() if base is None else base.is_inference(), base)
        args, kwargs = self.of(args), {name: self.of(value) for name, value in kwargs.items()}
        result = func(*args, **kwargs)
        is_new = key is not None and isinstance(result, FakeTensor)
        # Nothing is said of an operator that gives its operands another form.
        if tensors and is_new and (not is_mutable(func) or key == self._key(func, args, kwargs)[0]):
            self._remember(key, result, [self.of(tensor) for tensor in tensors])
        return result

    def _key(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[Tensor]]:
        """Return what tells calls apart, so far as results depend on it, None if that cannot be said; and the tensors."""
        tensors: list[Tensor] = []
        parts = [_key(value, tensors) for value in args]
        parts += [_key(value, tensors) for value in kwargs.values()]
        key = None if None in parts else (func, torch.get_default_dtype(), tuple(kwargs), *parts)
        return key, tensors

    def _remember(self, key: Any, result: FakeTensor, tensors: list[FakeTensor]) -> None:
        memory, form = memory_of(result), _form(result)
        places = [i for i, tensor in enumerate(tensors) if memory_of(tensor) == memory]
        if form is None or len(places) > 1:
            return  # operands that share memory do not tell which of them the result is
        place = places[0] if places else None
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[key] = (None if place is not None and result is tensors[place] else form, place)

    def make(self, form: _Form, inference: bool, base: Tensor | None = None) -> FakeTensor:
        """Return a new fake tensor, in its own memory or in that of another.

        A parameter's stand-in is no inference tensor, as it is none, nor is a view of one.
        """
        if inference is not torch.is_inference_mode_enabled():
            with torch.inference_mode(inference):
                return self.make(form, inference, base)
        dtype, sizes, strides, offset, device = form
        guard = undispatched()  # as no_dispatch() does
        tensor = torch.empty_strided(sizes, strides, dtype=dtype, device="meta")
        if base is not None:
            tensor.set_(base.untyped_storage(), offset, sizes, strides)
        fake = self._wrapping.wrap(tensor, device)
        del guard
        return fake


_NOTHING: Mapping[str, Any] = {}
_PLACEHOLDER = torch.empty(0)


class _Mode(FakeTensorMode):
    """FakeTensorMode, but for operators of which a capture in this process has found out what they give."""

    def __init__(self, make: Callable[[_Form, bool, Tensor | None], FakeTensor]) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._make = make

    def dispatch(
        self, func: OpOverload, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] = _NOTHING
    ) -> Any:
        """Return what an operator gives; operators are asked for that others consist of, too."""
        tensors: list[FakeTensor] = []
        effect = None if Traits.of(func).strided else _effect(func, args, kwargs, tensors)
        if effect is None:
            return super().dispatch(func, types, args, kwargs)
        return pytree.tree_unflatten([self._made(output, tensors) for output in effect.outputs], effect.spec)

    def _made(self, output: Output, tensors: list[FakeTensor]) -> Any:
        """Return one of the results of an operator on ``tensors``."""
        if output.argument is not None:
            return tensors[output.argument]
        if output.form is None:
            return output.plain
        base = None if output.shares is None else tensors[output.shares]
        form = output.form
        offset = output.offset
        if base is not None:  # whose elements may be of another size
            offset += int(base.storage_offset()) * base.element_size() // form.dtype.itemsize
        made = (form.dtype, torch.Size(form.size), form.stride, offset, form.device)
        return self._make(made, torch.is_inference_mode_enabled() if base is None else base.is_inference(), base)


def _effect(func: OpOverload, args: Any, kwargs: Any, tensors: list[FakeTensor]) -> Effect | None:
    """Return what a call on fake tensors, which are added to ``tensors``, does; None if no capture has found that out."""

    def plain(leaf: Any) -> Any:
        if not isinstance(leaf, FakeTensor):
            return leaf
        tensors.append(leaf)
        return _PLACEHOLDER

    try:
        others = frozen(map_aggregate((tuple(args), dict(kwargs)), plain), places := list[Tensor]())
    except IncomparableError:
        return None
    forms = [Form.of_parts(*form[1:3], form[0], form[4]) for tensor in tensors if (form := _form(tensor)) is not None]
    if not len(places) == len(tensors) == len(forms):  # there is more to one of them
        return None
    return PROPAGATION.known(PROPAGATION.key(func, others, tensors, forms))


def has_hints(tensor: Tensor) -> bool:
    """Tell whether all sizes of a tensor are known for the example; those that depend on values need not be."""
    return all(getattr(getattr(size, "node", None), "hint", size) is not None for size in tensor.shape)


def _form(tensor: Tensor) -> _Form | None:
    """Return the form of a fake tensor, or of the stand-in of a real one; None if there is more to it."""
    dtype = tensor.dtype
    if tensor.layout is not torch.strided or dtype.is_complex or tensor.is_quantized:
        return None
    if not isinstance(tensor, FakeTensor):
        return (dtype, tensor.shape, tensor.stride(), 0, tensor.device) if type(tensor) in _REAL else None
    return (
        None
        if tensor.constant is not None
        else (dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset()), tensor.fake_device)
    )


_REAL = frozenset([Tensor, nn.Parameter])
_COMPARED_BY_VALUE = frozenset(
    [int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format, OpOverload]
)


def _key(value: Any, tensors: list[Tensor]) -> Any:
    """Return what tells arguments apart, so far as results depend on them, None if that cannot be said; collect tensors."""
    kind = type(value)
    if kind in _COMPARED_BY_VALUE:
        return kind, value  # Python takes 1, 1.0 and True for equal
    if isinstance(value, Tensor):
        tensors.append(value)
        return _form(value)
    if kind is tuple or kind is list:
        parts = tuple([_key(part, tensors) for part in value])
        return None if None in parts else parts
    return None
