"""Value numbering: notes what operators do to tensors whose values nobody computes.

A dispatch mode sees every operator and gives its result a number, the same for the same operator on arguments of the same
numbers. A write gives all that shares the memory new numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import unittest.mock
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.frontends.replay import Noted, Replayed, identity, is_plain_call, sharing
from fxprune.frontends.standins import (
    Form,
    IncomparableError,
    Output,
    Outputs,
    Propagation,
    Traits,
    alike,
    frozen,
    storage,
    written,
)
from fxprune.frontends.values import Memory, OfTensors, Step, Value

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
# Above so many bytes, a constant is told by its memory instead of its values.
_LARGE = 1 << 26


@dataclasses.dataclass(eq=False)
class _Call:
    """An operator, its arguments, all of them that are no tensors, the tensors, and its place among random draws or 0."""

    func: Any
    args: Any
    kwargs: Any
    frozen: Any
    tensors: list[Tensor]
    values: list[Value]
    place: int


class Numbering:
    """The numbers of values, the same for the same in all runs to be compared."""

    def __init__(self, propagation: Propagation) -> None:
        self._numbers: dict[Any, int] = {}
        self._kept: dict[int, torch.UntypedStorage] = {}
        self.propagation = propagation
        self.calls: dict[Any, Noted] = {}  # what calls of modules did

    def of(self, *key: Any) -> int:
        """Return the number of ``key``, the same each time."""
        return self._numbers.setdefault(key, len(self._numbers) + 1)

    def equate(self, key: tuple[Any, ...], number: int) -> None:
        """Give ``key`` the number of something else that is always the same, before it is asked for."""
        self._numbers[key] = number

    def address(self, tensor: Tensor) -> int:
        """Return the address of the elements of ``tensor``, which nothing else takes from now on."""
        memory = tensor.untyped_storage()
        self._kept[memory._cdata] = memory
        return tensor.data_ptr()


class Execution(TorchDispatchMode):
    """A run on stand-ins, within the context.

    Calls on constants alone are computed, as real ones: their results are constants, and code may look at them.
    """

    def __init__(self, numbering: Numbering) -> None:
        super().__init__()
        self._numbering = numbering
        self._values = OfTensors()  # of stand-ins
        self._leaves: dict[int, Value] = {}  # of the tensors that they stand for, which code may still hold
        self._constants = OfTensors()
        self._memories: dict[int, Memory] = {}  # of real tensors
        self._fresh: dict[int, torch.UntypedStorage] = {}  # made by computed calls
        self._draws = 0
        self._devices: dict[torch.device, None] = {}
        self._generators: list[Tensor] = []
        self._tape: list[Step | Replayed] = []
        self._inside = False  # a call of a module that is being noted

    def stand_in(self, real: Tensor, *name: Any) -> Tensor:
        """Return a stand-in for ``real``, a tensor that ``name`` tells from all others."""
        if type(real) not in (Tensor, nn.Parameter):
            raise IncomparableError(f"a tensor of type {type(real).__name__}")
        form, memory = Form.of(real), self._memory_of(real)
        value = Value(self._numbering.of("leaf", name, form, real.storage_offset()), form, memory, 0, real)
        tensor = form.stand_in().requires_grad_(real.requires_grad)
        if isinstance(real, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=real.requires_grad)
        value.address = storage(tensor)
        self._values[tensor] = self._leaves[id(real)] = value
        self._devices.setdefault(real.device)
        return tensor

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Within the context, operators are noted instead of computed."""

        def tolist(tensor: Tensor) -> Any:
            if self._is_unknown(tensor):
                raise IncomparableError("tolist() of a tensor without values")
            return torch._C.TensorBase.tolist(tensor)

        called = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._call_module(called, module, args, kwargs)

        with (
            torch.no_grad(),
            unittest.mock.patch.object(Tensor, "tolist", tolist),
            unittest.mock.patch.object(nn.Module, "__call__", call),
        ):
            for device in {torch.device("cpu"): None, **self._devices}:
                torch.rand((), device=device)  # now no seed gives the state that the generator is in
            self._generators = self._random_states()
            with self:
                yield

    def number(self, tensor: Tensor) -> int:
        """Return the number of what ``tensor`` holds now."""
        return self._now(self._value(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors: list[Tensor] = []
        others = frozen((args, kwargs), tensors)
        traits, targets = Traits.of(func), written(func, args, kwargs)
        if not all(self._has_value(t) or self._is_fresh(t) for t in targets):
            raise IncomparableError(f"{func} writes to a tensor that is no parameter, buffer or input")
        if traits.strided and not _strides_alike(func, args, kwargs):
            raise IncomparableError(f"{func} sees how its argument lies in memory, which numbers do not say")
        # Memory that nobody has written to is as unknown as a stand-in's.
        if not (traits.ordered or traits.raw or any(map(self._is_unknown, tensors))):
            return self._compute(func, args, kwargs, bool(targets))
        if traits.strided and targets:
            return self._restride(func, args, kwargs, others)
        place = self._place() if traits.ordered else 0
        call = _Call(func, args, kwargs, others, tensors, [self._value(t) for t in tensors], place)
        outputs, spec, number = self._note(call, targets)
        pairs = [self._result(output, index, number, call) for index, output in enumerate(outputs)]
        self._tape.append(Step(func, others, call.values, [value for _, value in pairs]))
        return pytree.tree_unflatten([result for result, _ in pairs], spec)

    def _place(self) -> int:
        """Return the place of a random draw among all."""
        if not all(map(torch.equal, self._generators, self._random_states())):
            raise IncomparableError("the model seeds a generator")
        self._draws += 1
        return self._draws

    def _restride(self, func: Any, args: Any, kwargs: Any, others: Any) -> Tensor:
        """Let a result have other strides where they make no difference to its elements."""
        result: Tensor = args[0]
        value = self._values.get(result)
        if value is None or value.real is not None:
            raise IncomparableError(f"{func} changes a parameter, buffer, input or constant")
        self._tape.append(Step(func, others, [value], [None]))
        func(*args, **kwargs)
        value.form = Form.of(result)
        return result

    def _note(self, call: _Call, targets: list[Tensor]) -> tuple[list[Output], pytree.TreeSpec, int]:
        """Give the call a number, and the memory that it writes to."""
        now = [self._now(value) for value in call.values]
        namesake = Traits.of(call.func).namesake
        # Which number of a random draw goes where depends on how tensors lie in memory.
        forms = [value.form for value in call.values] if call.place else []
        number = self._numbering.of(namesake or call.func, call.frozen, *now, call.place, *forms)
        outputs, spec = self._outputs(call, namesake or call.func)
        if (source := _source(call, outputs)) is not None:
            self._numbering.equate(("output", number, 0), now[source])
        # What an operator leaves in its first argument is what its namesake returns, if no conversion comes between.
        replaces = namesake is not None and alike(outputs[0].form, call.values[0].form)
        if namesake is not None:
            outputs, spec = ([Output(argument=0)], spec) if replaces else self._outputs(call, call.func)
        for target in targets:
            index = next(i for i, t in enumerate(call.tensors) if t is target)
            call.values[index].memory.written = self._numbering.of("write", number, index)
        if replaces:
            value = call.values[0]
            value.number, value.written = self._numbering.of("output", number, 0), value.memory.written
        return outputs, spec, number

    def _outputs(self, call: _Call, func: Any) -> Outputs:
        inputs = [(t, v.form) for t, v in zip(call.tensors, call.values, strict=True)]
        return self._numbering.propagation.outputs(func, call.frozen, inputs, call.args, call.kwargs)

    def _result(self, output: Output, index: int, number: int, call: _Call) -> tuple[Any, Value | None]:
        """Return one result of a call, and its value if it is new."""
        if output.argument is not None:
            return call.tensors[output.argument], None
        if output.form is None:
            return output.plain, None
        memory = Memory() if output.shares is None else call.values[output.shares].memory
        result = output.form.stand_in()
        value = Value(self._numbering.of("output", number, index), output.form, memory, memory.written)
        value.address = storage(result)
        self._values[result] = value
        return result, value

    # -- calls of modules --------------------------------------------------------------------------------------------

    def _call_module(self, called: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module; one of torch's own, called as one was before, does to the same what that did."""
        tensors: list[Tensor] = []
        key = None if self._inside or not is_plain_call() else identity(module, args, kwargs, tensors)
        values = [self._known(tensor) for tensor in tensors]
        if key is None or any(value is None for value in values):
            return called(module, *args, **kwargs)
        operands = [value for value in values if value is not None]
        key = (*key, *((self._now(v), v.form) for v in operands), sharing(operands))
        noted = self._numbering.calls.get(key)
        if noted is not None:
            return self._replay(noted, tensors, operands)
        before, start, draws = list(map(Value.state, operands)), len(self._tape), self._draws
        self._inside = True
        try:
            result = called(module, *args, **kwargs)
        finally:
            self._inside = False
        if draws == self._draws:  # the place of a draw is another each time
            noted = Noted.of(self._tape[start:], result, tensors, operands, before, self._values)
            if noted is not None:
                self._numbering.calls[key] = noted
        return result

    def _replay(self, noted: Noted, tensors: list[Tensor], operands: list[Value]) -> Any:
        made: list[Value] = []
        results: list[Any] = []
        memories = [value.memory for value in operands]
        noted.write(operands)
        for output in noted.outputs:
            if output.form is None:
                results.append(output.plain if output.operand is None else tensors[output.operand])
                continue
            if output.memory == len(memories):
                memories.append(Memory(output.last))
            result = output.form.stand_in()
            value = Value(output.number, output.form, memories[output.memory], output.written, address=storage(result))
            self._values[result] = value
            made.append(value)
            results.append(result)
        self._tape.append(Replayed(noted, operands, made))
        return pytree.tree_unflatten(results, noted.spec)

    # -- constants ---------------------------------------------------------------------------------------------------

    def _compute(self, func: Any, args: Any, kwargs: Any, writes: bool) -> Any:
        result = func(*args, **kwargs)
        if writes:
            self._constants.clear()
        elif not Traits.of(func).shares:
            storages = [t.untyped_storage() for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
            self._fresh |= {storage._cdata: storage for storage in storages}
        return result

    def _random_states(self) -> list[Tensor]:
        others = [device for device in self._devices if device.type != "cpu"]
        return [torch.get_rng_state(), *(torch.get_device_module(d).get_rng_state(d) for d in others)]

    # -- tensors -----------------------------------------------------------------------------------------------------

    def _has_value(self, tensor: Tensor) -> bool:
        return tensor in self._values or id(tensor) in self._leaves

    def _is_fresh(self, tensor: Tensor) -> bool:
        return storage(tensor) in self._fresh

    def _is_unknown(self, tensor: Tensor) -> bool:
        if self._has_value(tensor):
            return True
        tensor.data_ptr()  # fails for what shares the memory of a stand-in behind the dispatcher's back
        memory = self._memories.get(storage(tensor))
        return memory is not None and bool(memory.written)

    def _known(self, tensor: Tensor) -> Value | None:
        """Return the value of a stand-in, or of what one stands for."""
        return self._value(tensor) if self._has_value(tensor) else None

    def _memory_of(self, real: Tensor) -> Memory:
        return self._memories.setdefault(storage(real), Memory(0, real.untyped_storage()))

    def _now(self, value: Value) -> int:
        written = value.memory.written
        return value.number if written == value.written else self._numbering.of("after", value.number, written)

    def _value(self, tensor: Tensor) -> Value:
        value = self._values.get(tensor)
        if value is not None and value.address != storage(tensor):
            raise IncomparableError("a tensor was given other data")
        value = value or self._leaves.get(id(tensor)) or self._constants.get(tensor)
        if value is None:
            if tensor.numel() * tensor.element_size() > _LARGE:
                content: Any = self._numbering.address(tensor)
            else:
                content = hashlib.sha256(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()).digest()
            # Where it lies in its memory says what a write to it writes to.
            form = Form.of(tensor)
            number = self._numbering.of("constant", form, tensor.storage_offset(), content)
            self._constants[tensor] = value = Value(number, form, self._memory_of(tensor), 0, tensor)
        return value

    # -- leaks -------------------------------------------------------------------------------------------------------

    def mend_leaks(self) -> None:
        """Give stand-ins that are still in use, in a cache of the model's code for one, what a real run had left there."""
        gc.collect()
        if not self.leaks():
            return
        env: dict[Value, Tensor] = {v: v.real.detach().clone() for v in self._leaves.values() if v.real is not None}
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


def _source(call: _Call, outputs: list[Output]) -> int | None:
    """Return which argument of a call its result has the values of; None if it computes some."""
    if call.func is _aten.copy_.default:
        return 1 if alike(call.values[0].form, call.values[1].form) else None
    same = call.func in _SAME or (call.func in _SAME_IF_WHOLE and alike(outputs[0].form, call.values[0].form))
    return 0 if same else None


def _strides_alike(func: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether new strides leave every element of a tensor where it is, as those of dimensions of size one do."""
    arguments = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    tensor, size, stride = args[0], arguments.get("size"), arguments.get("stride")
    offset = arguments.get("storage_offset")
    if size is None or stride is None or tuple(size) != tuple(tensor.shape) or offset not in (None, tensor.storage_offset()):
        return False
    return all(n == 1 or old == new for n, old, new in zip(size, tensor.stride(), stride, strict=True))
