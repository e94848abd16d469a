"""Value numbering: gives numbers to the results of operators instead of computing them.

A dispatch mode sees every operator and gives its result a number, the same for the same operator on arguments of the same
numbers. A write gives new numbers to all tensors that share the memory::

    y = relu(x)    x is 1, y is 2 = (relu, 1)
    v = x[0]       v is 3 = (select, 1)
    x.add_(y)      write 4 = (add_, 1, 2); now x is 5 = (1 after 4) and v is 6 = (3 after 4)
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.abstract.form import FakeMode, Form, IncomparableError, frozen, operator_errors, storage
from fxprune.abstract.propagation import Effect, Propagation, Traits, written
from fxprune.frontends.equivalence.values import Memory, OfTensors, OperatorCall, Value
from fxprune.torch_internals.interrupts import let_interrupts_in
from fxprune.torch_internals.operators import TorchDispatchMode, arguments_of, below_autograd, composite_kernel
from fxprune.torch_internals.switches import uncompiled, watching_reads
from fxprune.torch_internals.tensors import memory_of, pytree, read_numpy

_aten = torch.ops.aten
# Composite operators that get one number each. Any other gets the numbers of the operators that it consists of: some of those
# draw random numbers.
_LINEAR = frozenset(
    [_aten.linear.default, _aten.matmul.default, _aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default]
)
# Norms, whose last argument chooses a kernel, with the defaults of all arguments. True stands for an argument without a
# default: each call gives it, and the choice of a kernel is replaced by it.
_NORMS = {
    op: tuple(argument.default_value if argument.has_default_value() else True for argument in arguments_of(op))
    for op in (_aten.batch_norm.default, _aten.layer_norm.default, _aten.group_norm.default)
}
# A constant of more bytes gets its number by its address, not by its values.
_LARGE = 1 << 26


class NumberingError(RuntimeError):
    """A bug of this package in value numbering, which must not pass for a difference between programs."""


class Numbering:
    """The numbers of values, shared by all runs to be compared."""

    def __init__(self, propagation: Propagation) -> None:
        self._numbers: dict[Any, int] = {}
        self._kept: dict[int, torch.UntypedStorage] = {}
        self.propagation, self.mode = propagation, FakeMode()

    def of(self, *key: Any) -> int:
        """Return the number of ``key``; a new key gets the next number."""
        return self._numbers.setdefault(key, len(self._numbers) + 1)

    def equate(self, key: tuple[Any, ...], number: int) -> None:
        """Give a new ``key`` the number of an equal value."""
        self._numbers[key] = number

    def address(self, tensor: Tensor) -> int:
        """Return the address of the elements of ``tensor``; its memory stays allocated, so no other tensor gets the address."""
        self._kept[memory_of(tensor)] = tensor.untyped_storage()
        return tensor.data_ptr()


class Execution(TorchDispatchMode):
    """One run of a program, in which operators on stand-ins and leaves are noted, not computed.

    A leaf is a parameter, buffer or input, known by name. A stand-in is a tensor without values, for a leaf or for a result.
    All other tensors are constants: operators on constants alone are computed, and code may read the results.
    """

    def __init__(self, numbering: Numbering) -> None:
        super().__init__()
        self._numbering = numbering
        self._effects = numbering.propagation
        self._values = OfTensors()  # of stand-ins
        self._leaves: dict[int, Value] = {}  # of the real tensors of leaves, by id
        self._all_leaves: list[Value] = []  # a real tensor has another value in each call of the code
        self._constants = OfTensors()
        self._memories: dict[int, Memory] = {}  # of leaves and constants, by storage
        self._fresh: dict[int, torch.UntypedStorage] = {}  # made by computed calls
        self._draws = 0  # the number of random draws so far
        self._devices: dict[torch.device, None] = {}
        self._generators: list[Tensor] = []
        self._tape: list[OperatorCall] = []
        self._refusals: list[str] = []
        self._bug: NumberingError | None = None

    def leaf(self, real: Tensor, *name: Any) -> Value:
        """Make ``real`` the leaf ``name``, such as ``("input", 0)``; operators on it are noted, not computed."""
        form, memory = _form_in_memory(real), self._memory_of(real)
        value = Value(self._numbering.of("leaf", name, form, real.storage_offset()), form, memory, 0, real)
        self._leaves[id(real)] = value
        self._all_leaves.append(value)
        self._devices.setdefault(real.device)
        return value

    def stand_in(self, real: Tensor, *name: Any) -> Tensor:
        """Return a stand-in for ``real``, which becomes the leaf ``name``."""
        value = self.leaf(real, *name)
        tensor = value.form.stand_in().requires_grad_(real.requires_grad)
        if isinstance(real, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=real.requires_grad)
        value.address = storage(tensor)
        self._values[tensor] = value
        return tensor

    def begin_again(self) -> None:
        """Prepare for another call of the code: leaves that are made now have the values from before the last call."""
        self._draws, self._memories = 0, {}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Note operators within the context, which holds the code of the program and nothing else.

        Raises:
            IncomparableError: the code fails; or an operator cannot be noted, even if the code catches that error.
            NumberingError: the numbering fails, even if the code catches that error.
        """
        with (
            torch.no_grad(),
            below_autograd(),
            uncompiled(),
            watching_reads(lambda tensor: self._noting_failures(self._check_is_known, tensor)),
        ):
            for device in {torch.device("cpu"): None, **self._devices}:
                torch.rand((), device=device)  # after a draw, a call of manual_seed changes the state, whatever the seed
            self._generators = self._random_states()
            try:
                with self:
                    yield
            except NumberingError:
                raise
            except Exception as error:  # the code may raise any error; if it fails on real tensors too, a real run says so
                self._refusals.append(f"the code fails: {error}")
        if self._bug is not None:
            raise self._bug
        if self._refusals:
            raise IncomparableError(self._refusals[0])

    def _noting_failures(self, do: Callable[..., Any], *args: Any) -> Any:
        """Return ``do(*args)``; note a failure, as the code of the program may catch the error and go on."""
        try:
            return do(*args)
        except IncomparableError as error:
            self._refusals.append(str(error))  # the error itself would keep tensors alive
            raise
        except Exception as error:
            self._bug = NumberingError(f"a bug of fxprune, in comparing the graph with its model: {error!r}")
            raise self._bug from error

    def number(self, tensor: Tensor) -> int:
        """Return the number of the current elements of ``tensor``."""
        return self._now(self._value(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kernel = None if func in _LINEAR or func in _NORMS else composite_kernel(func)
        if kernel is not None:
            with self:  # its own errors are errors of the code, which may catch them
                return kernel(*args, **kwargs)
        return self._noting_failures(self._follow, func, args, kwargs)

    def _follow(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of an operator; on stand-ins and leaves it is a stand-in."""
        let_interrupts_in()
        if (defaults := _NORMS.get(func)) is not None:
            args = (*args[: len(defaults) - 1], *defaults[min(len(args), len(defaults) - 1) :])
        elif func is _aten.detach_.default:
            return args[0]  # a matter of autograd alone; torch.tensor calls it
        tensors: list[Tensor] = []
        others = frozen((args, kwargs), tensors)
        values: list[Any] = [*map(self._known, tensors)]
        effect = None
        if None not in values and (values or Traits.of(func).raw):  # as nearly always
            effect = self._effects.known(self._effects.key(func, others, tensors, [value.form for value in values]))
        if effect is None or not effect.is_plain:
            return self._call(func, others, tensors, args, kwargs)
        return self._results(effect, tensors, self._do(effect, values))

    def _call(self, func: Any, others: Any, tensors: list[Tensor], args: Any, kwargs: Any) -> Any:
        traits, targets = Traits.of(func), written(func, args, kwargs)
        if not all(self._has_value(t) or storage(t) in self._fresh for t in targets):
            raise IncomparableError(f"{func} writes to a tensor that is no parameter, buffer or input")
        if traits.strided and not _strides_alike(func, args, kwargs):
            raise IncomparableError(f"{func} sees how its argument lies in memory, which numbers do not say")
        # The operator is computed if it reads constants alone, and neither random numbers nor memory without values.
        if not (traits.ordered or traits.raw or any(map(self._is_unknown, tensors))):
            return self._compute(func, args, kwargs, bool(targets))
        if traits.strided and targets:
            return self._restride(func, args, kwargs, others)
        place = self._place() if traits.ordered else 0
        values = [self._value(t) for t in tensors]
        inputs = [(tensor, value.form) for tensor, value in zip(tensors, values, strict=True)]
        effect = self._effects.effect(func, others, inputs, args, kwargs, self._numbering.mode)
        return self._results(effect, tensors, self._do(effect, values, place))

    def _results(self, effect: Effect, tensors: list[Tensor], made: list[Value | None]) -> Any:
        new = filter(None, made)
        return effect.result(tensors.__getitem__, lambda *_: self._stand_in_of(next(new)))

    def _place(self) -> int:
        """Return the place of a random draw in the order of all draws."""
        if not all(map(torch.equal, self._generators, self._random_states())):
            raise IncomparableError("the model seeds a generator")
        self._draws += 1
        return self._draws

    def _restride(self, func: Any, args: Any, kwargs: Any, others: Any) -> Tensor:
        """Give a stand-in other strides that leave its elements in place."""
        result: Tensor = args[0]
        value = self._values.get(result)
        if value is None or value.real is not None:
            raise IncomparableError(f"{func} changes a parameter, buffer, input or constant")
        with operator_errors(func):
            func(*args, **kwargs)
        self._tape.append(OperatorCall(func, others, [value], [None]))
        value.form = Form.of(result)
        return result

    def _do(self, effect: Effect, values: list[Value], place: int = 0) -> list[Value | None]:
        """Number the writes and results of a call; return the values of its results, None for an operand among them.

        ``place`` is the place of the call in the order of random draws, 0 if it draws none.
        """
        of, now = self._numbering.of, list(map(self._now, values))
        # The order in which random numbers fill a tensor depends on its strides.
        forms = [value.form for value in values] if place else []
        number = of(effect.computed, effect.frozen, *now, place, *forms)
        if effect.source is not None:
            self._numbering.equate(("output", number, 0), now[effect.source])
        for index in effect.written:
            values[index].memory.written = of("write", number, index)
        if effect.replaces:
            first = values[0]
            first.number, first.written = of("output", number, 0), first.memory.written
        made: list[Value | None] = []
        for index, output in enumerate(effect.outputs):
            if output.form is None:
                made.append(None)
                continue
            memory = Memory() if output.shares is None else values[output.shares].memory
            made.append(Value(of("output", number, index), output.form, memory, memory.written))
        self._tape.append(OperatorCall(effect.func, effect.frozen, values, made))
        return made

    def _stand_in_of(self, value: Value) -> Tensor:
        tensor = value.form.stand_in()
        value.address = storage(tensor)
        self._values[tensor] = value
        return tensor

    # -- constants ---------------------------------------------------------------------------------------------------

    def _compute(self, func: Any, args: Any, kwargs: Any, writes: bool) -> Any:
        with operator_errors(func):
            result = func(*args, **kwargs)
        if writes:
            self._constants = OfTensors()
        elif not Traits.of(func).shares:
            self._fresh |= {storage(t): t.untyped_storage() for t in pytree.tree_leaves(result) if isinstance(t, Tensor)}
        return result

    def _random_states(self) -> list[Tensor]:
        others = [device for device in self._devices if device.type != "cpu"]
        return [torch.get_rng_state(), *(torch.get_device_module(d).get_rng_state(d) for d in others)]

    # -- tensors -----------------------------------------------------------------------------------------------------

    def _has_value(self, tensor: Tensor) -> bool:
        return tensor in self._values or id(tensor) in self._leaves

    def _is_unknown(self, tensor: Tensor) -> bool:
        if self._has_value(tensor):
            return True
        with operator_errors("a read of memory"):  # a constant may share the memory of a stand-in unseen
            tensor.data_ptr()
        memory = self._memories.get(storage(tensor))
        return memory is not None and bool(memory.written)

    def _check_is_known(self, tensor: Tensor) -> None:
        if self._is_unknown(tensor):
            raise IncomparableError("the code reads a tensor without values")

    def _known(self, tensor: Tensor) -> Value | None:
        """Return the value of a stand-in or of a leaf, None for a constant."""
        value = self._values.get(tensor)
        if value is None:
            return self._leaves.get(id(tensor))
        if value.address != storage(tensor):
            raise IncomparableError("a tensor was given other data")
        return value

    def _memory_of(self, real: Tensor) -> Memory:
        return self._memories.setdefault(storage(real), Memory(0, real.untyped_storage()))

    def _now(self, value: Value) -> int:
        written = value.memory.written
        return value.number if written == value.written else self._numbering.of("after", value.number, written)

    def _value(self, tensor: Tensor) -> Value:
        value = self._known(tensor) or self._constants.get(tensor)
        if value is None:
            # Form and offset are part of the key: they say which part of the memory a write changes.
            form = _form_in_memory(tensor)
            number = self._numbering.of("constant", form, tensor.storage_offset(), self._content(tensor))
            self._constants[tensor] = value = Value(number, form, self._memory_of(tensor), 0, tensor)
        return value

    def _content(self, tensor: Tensor) -> Any:
        """Return a key of the elements of a constant: a hash, or the address for a large constant."""
        with operator_errors("a read of memory"):
            if tensor.numel() * tensor.element_size() > _LARGE:
                return self._numbering.address(tensor)
            elements = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            return hashlib.sha256(read_numpy(elements).data).digest()

    # -- leaks -------------------------------------------------------------------------------------------------------

    def mend_leaks(self) -> None:
        """Compute the values of stand-ins that are still in use, as in a cache of the model's code."""
        gc.collect()
        if not self.leaks():
            return
        env: dict[Value, Tensor] = {v: v.real.detach().clone() for v in self._all_leaves if v.real is not None}
        with torch.no_grad():
            for entry in self._tape:
                entry.run(env)
        for tensor, value in self._values.items():
            left = env.get(value, value.real)
            assert left is not None
            tensor.data = left.data

    def leaks(self) -> bool:
        """Tell whether stand-ins are still in use, or constants were written to."""
        return len(self._values) > 0 or any(value.memory.written for _, value in self._constants.items())


def _form_in_memory(real: Tensor) -> Form:
    """Return the form of a real tensor; raises IncomparableError for a tensor without memory or of another class."""
    if type(real) not in (Tensor, nn.Parameter):
        raise IncomparableError(f"a tensor of type {type(real).__name__}")
    if real.is_meta:
        raise IncomparableError("a tensor on the meta device, which has no memory")
    return Form.of(real)


def _strides_alike(func: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether ``as_strided`` leaves every element in place: only strides of dimensions of size one differ."""
    arguments = dict(zip((argument.name for argument in arguments_of(func)), args, strict=False)) | kwargs
    tensor, size, stride = args[0], arguments.get("size"), arguments.get("stride")
    offset = arguments.get("storage_offset")
    if size is None or stride is None or tuple(size) != tuple(tensor.shape) or offset not in (None, tensor.storage_offset()):
        return False
    return all(n == 1 or old == new for n, old, new in zip(size, tensor.stride(), stride, strict=True))
