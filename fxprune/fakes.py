"""Tensors without values for one run of a graph: stand-ins for real tensors, and what operators make of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch

_MOST = 1 << 15  # results to know at a time: those of a hundred networks
# Type, sizes, strides, place in the memory, device.
_Form = tuple[torch.dtype, torch.Size, tuple[int, ...], int, torch.device]


class Fakes:
    """The fake tensors of one run.

    The form of an operator's result depends on the forms of its operands and on nothing else. Layers repeat, and asking
    FakeTensorMode takes long even where it knows the answer: so it is asked once, and further results are made like the first,
    in all runs.
    """

    # By operator and operands the form of the result, and which operand it is a view of; no form if it is that operand.
    _known: ClassVar[dict[Any, tuple[_Form | None, Any]]] = {}

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.mode.cache_enabled = False  # to keep what each operator inside another gives takes longer than to ask again
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}
        self._origins: dict[int, Tensor] = {}  # the real tensor, by the memory of its twin

    def like(self, leaf: Any) -> Any:
        """Return a new fake tensor like a tensor, the hint of a symbolic number, and anything else as it is."""
        if isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool):
            return leaf.node.hint
        if not isinstance(leaf, Tensor):
            return leaf
        # A dynamic batch size is analysed at the example's.
        sizes, strides = ([int(getattr(getattr(n, "node", None), "hint", n)) for n in ns] for ns in (leaf.shape, leaf.stride()))
        return self._make((leaf.dtype, torch.Size(sizes), tuple(strides), 0, leaf.device), inference=False)

    def of(self, leaf: Any) -> Any:
        """Return fake tensors in place of real ones, the same for the same, and anything else as it is."""
        if type(leaf) in (tuple, list):
            return type(leaf)(map(self.of, leaf))
        if not isinstance(leaf, Tensor) or isinstance(leaf, FakeTensor):
            return leaf
        if id(leaf) not in self._twins:
            plain = type(leaf) in (Tensor, nn.Parameter) and leaf.layout is torch.strided
            # The real tensor is kept with its twin, so that no other can take its identity.
            twin = self.like(leaf) if plain else self.mode.from_tensor(leaf)
            self._twins[id(leaf)] = (leaf, twin)
            self._origins[twin.untyped_storage()._cdata] = leaf
        return self._twins[id(leaf)][1]

    def origin(self, memory: int) -> Tensor | None:
        """Return the real tensor whose stand-in has this memory, if there is one."""
        return self._origins.get(memory)

    def call(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what an operator makes of its operands; real tensors among them are stood in for."""
        args, kwargs = self.of(args), {name: self.of(value) for name, value in kwargs.items()}
        given = (func, torch.get_default_dtype(), tuple(kwargs), *args, *kwargs.values())
        tensors = list(_tensors(given))
        key = _key(given) if tensors else None
        if key is not None and (known := self._known.get(key)) is not None:
            form, place = known
            if form is None:
                return tensors[place]
            base = tensors[place] if place is not None else None
            return self._make(form, torch.is_inference_mode_enabled() if base is None else base.is_inference(), base)
        result = func(*args, **kwargs)
        if key is not None and isinstance(result, FakeTensor) and (not func._schema.is_mutable or key == _key(given)):
            self._remember(key, result, tensors)
        return result

    def _remember(self, key: Any, result: FakeTensor, tensors: list[FakeTensor]) -> None:
        memory, form = result.untyped_storage()._cdata, _form(result)
        places = [i for i, tensor in enumerate(tensors) if tensor.untyped_storage()._cdata == memory]
        if form is None or len(places) > 1:
            return  # operands that share memory do not tell which of them the result is
        place = places[0] if places else None
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[key] = (None if place is not None and result is tensors[place] else form, place)

    def _make(self, form: _Form, inference: bool, base: Tensor | None = None) -> FakeTensor:
        """Return a new fake tensor, in its own memory or in that of another.

        A parameter's stand-in is no inference tensor, as it is none, nor is a view of one.
        """
        dtype, sizes, strides, offset, device = form
        with no_dispatch(), torch.inference_mode(inference):
            tensor = torch.empty_strided(sizes, strides, dtype=dtype, device="meta")
            if base is not None:
                tensor.set_(base.untyped_storage(), offset, sizes, strides)
            return FakeTensor(self.mode, tensor, device)


def has_hints(tensor: Tensor) -> bool:
    """Tell whether all sizes of a tensor are known for the example; those that depend on values need not be."""
    return all(getattr(getattr(size, "node", None), "hint", size) is not None for size in tensor.shape)


def _tensors(value: Any) -> Iterator[FakeTensor]:
    for leaf in value:
        if isinstance(leaf, FakeTensor):
            yield leaf
        elif type(leaf) in (tuple, list):
            yield from _tensors(leaf)


def _form(tensor: FakeTensor) -> _Form | None:
    """Return the form of a fake tensor; None if there is more to it."""
    dtype = tensor.dtype
    if tensor.constant is not None or tensor.layout is not torch.strided or dtype.is_complex or tensor.is_quantized:
        return None
    return dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset()), tensor.fake_device


_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format, OpOverload)


def _key(value: Any) -> Any:
    """Return what tells arguments apart, so far as results depend on them; None if that cannot be said."""
    if isinstance(value, FakeTensor):
        return _form(value)
    if type(value) in (tuple, list):
        parts = tuple(map(_key, value))
        return None if None in parts else parts
    # Python takes 1, 1.0 and True for equal.
    return (type(value), value) if type(value) in _PLAIN else None
