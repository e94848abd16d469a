"""Forms: what there is to know about a tensor without its values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from fxprune.torch_internals.tensors import FakeTensor, FakeTensorMode, fake_like, lock_memory, memory_of, undispatched


class IncomparableError(Exception):
    """The program depends on what tensors without values do not have, or does what value numbering does not follow."""


@contextlib.contextmanager
def operator_errors(func: Any) -> Iterator[None]:
    """Raise as IncomparableError the errors of an operator that runs within the context, and of nothing else there."""
    try:
        yield
    except Exception as error:  # whatever an operator raises where values are missing or operands do not fit
        raise IncomparableError(f"{func} fails: {error}") from error


class Form(NamedTuple):
    """The form of a tensor: all that is known about a tensor without values, but for where in its memory it starts.

    Example:
        >>> Form.of(torch.zeros(2, 3))
        Form(size=(2, 3), stride=(3, 1), dtype=torch.float32, device=device(type='cpu'))
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Form:
        """Return the form of ``tensor``; raises IncomparableError if it is not an ordinary dense tensor."""
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
            raise IncomparableError(f"a tensor that is not in plain memory: {tensor.layout}, {tensor.dtype}")
        return tuple.__new__(cls, (tensor.shape, tensor.stride(), tensor.dtype, tensor.device))  # the fastest way

    def on_meta(self) -> Tensor:
        """Return a tensor of this form on the meta device."""
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")

    def stand_in(self) -> Tensor:
        """Return a tensor of this form whose memory Python cannot get at."""
        try:
            tensor = torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)
        except RuntimeError as error:
            raise IncomparableError(f"no memory for a tensor of {self.size}") from error
        if tensor.is_meta:
            raise IncomparableError("a tensor on the meta device, which has no memory")
        lock_memory(tensor)
        return tensor


def _of_grouped(
    one: Tensor, other: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Form:
    """Return the form of a grouped product, whose rows start at multiples of 16 bytes."""
    dtype = out_dtype or one.dtype
    stack: tuple[int, ...] = ()
    if one.dim() == other.dim():
        stack = tuple(one.shape[:1] if offs is None else offs.shape)
    size = (*stack, one.shape[-2], other.shape[-1])
    aligned = max(16 // dtype.itemsize, 1)
    row = -(-size[-1] // aligned) * aligned
    return Form(size, (size[-2] * row, row, 1)[3 - len(size) :], dtype, one.device)


def _of_covariance(observed: Tensor, **options: Any) -> Form:
    """Return the form of the covariances of the rows of a matrix, or of a single row."""
    size = (*observed.shape[:-1], *observed.shape[:-1])
    return Form(size, (len(observed), 1)[: len(size)], observed.dtype, observed.device)


_FORMS: dict[Any, Callable[..., Form]] = {
    torch.ops.aten._grouped_mm.default: _of_grouped,
    torch.ops.aten.cov.default: _of_covariance,
    torch.ops.aten.corrcoef.default: _of_covariance,
}


class FakeMode(FakeTensorMode):
    """A FakeTensorMode that makes fake tensors of forms, which is much faster than to convert tensors."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.cache_enabled = False  # to keep what each operator inside another gives takes longer than to ask again
        self._states: dict[torch.device, dict[str, Any]] = {}  # the attributes of fake tensors, the same for all on a device

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what an operator gives, also where torch needs values for that, or knows it of some dtypes alone."""
        if func in _FORMS:
            return self.make(_FORMS[func](*args, **kwargs or {}))
        return super().dispatch(func, types, args, kwargs or {})

    def make(self, form: Form, base: Tensor | None = None, offset: int = 0) -> FakeTensor:
        """Return a new fake tensor, in its own memory or at an offset in that of another fake tensor."""
        guard = undispatched()
        try:
            tensor = form.on_meta()
            if base is not None:
                tensor.set_(base.untyped_storage(), offset, form.size, form.stride)
            state = self._states.get(form.device)
            if state is None:
                fake = FakeTensor(self, tensor, form.device)
                self._states[form.device] = dict(vars(fake))
            else:
                fake = fake_like(state, tensor, form.device)
        finally:
            del guard  # an error that someone keeps would hold it
        return fake

    @contextlib.contextmanager
    def without_kernels(self) -> Iterator[None]:
        """Within the context, the mode is on, and an operator without a fake implementation fails.

        Its kernel would run on real tensors otherwise, and is not asked whether the form of its result depends on values.
        """
        before, self.allow_fallback_kernels = self.allow_fallback_kernels, False
        try:
            with self:
                yield
        finally:
            self.allow_fallback_kernels = before


def alike(a: Form | None, b: Form | None) -> bool:
    """Tell whether tensors of these forms can hold the same values; how they lie in memory does not matter."""
    return a is not None and b is not None and (a.size, a.dtype, a.device) == (b.size, b.dtype, b.device)


def repeats(things: Sequence[Any]) -> tuple[int, ...]:
    """Return for each of ``things`` the place where it comes first, if one comes twice; else nothing."""
    if len(things) < 2:
        return ()
    ids = [*map(id, things)]
    return () if len(set(ids)) == len(ids) else tuple(map(ids.index, ids))


def storage(tensor: Tensor) -> int:
    """Return the address of the storage of ``tensor``, the same for all that share memory."""
    if tensor.layout is not torch.strided:
        raise IncomparableError(f"a tensor that has no storage: {tensor.layout}")
    return memory_of(tensor)


_SEQUENCES = frozenset([tuple, list, torch.Size, immutable_list])
_MAPPINGS = frozenset([dict, immutable_dict])
_TENSORS = frozenset([Tensor, nn.Parameter, FakeTensor])
# No two of them are equal that differ: of numbers only integers are among them.
_AS_THEY_ARE = frozenset([int, str, type(None), type(...), torch.dtype, torch.layout, torch.device, torch.memory_format])


def frozen(value: Any, tensors: list[Any]) -> Any:
    """Return a hashable form of arguments, without the tensors, which are added to ``tensors``."""
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind in _TENSORS:
        tensors.append(value)
        return Tensor
    if kind in _SEQUENCES:
        return (kind, *[frozen(part, tensors) for part in value])
    if kind is bool:
        return kind, value
    if kind in (float, complex):
        return kind, repr(value)  # 0.0 == -0.0
    if kind in _MAPPINGS:
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
    if kind in _MAPPINGS:
        return {key: thawed(part, tensors) for key, part in parts}
    return kind(*parts)
