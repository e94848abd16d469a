"""Settings of the whole process, each switched in one place.

All threads share a setting. Each setting is a context that many threads may be in at a time: the first thread to enter sets it,
the last to leave puts it back. If each thread saved and restored the setting alone, the second of two threads would save the
value that the first has set, and restore that value for good.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import transformer
from torch.utils import checkpoint

from fxprune.torch_internals.interrupts import interrupts_wait

# -- switches ------------------------------------------------------------------------------------------------------------


def shared(switch: Callable[[], AbstractContextManager[Any]]) -> Callable[[], contextlib._GeneratorContextManager[None]]:
    """Return a context that threads share for a context of one thread: it holds from the first entry to the last exit."""
    lock, count, held = threading.Lock(), 0, contextlib.ExitStack()

    @contextlib.contextmanager
    @functools.wraps(switch)
    def entered() -> Iterator[None]:
        nonlocal count
        with interrupts_wait():
            with lock:
                if not count:
                    held.enter_context(switch())
                count += 1
            try:
                yield
            finally:
                with lock:
                    count -= 1
                    if not count:
                        held.close()

    return entered


@shared
@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Switch the garbage collector off, which would scan objects that are all in use over and over."""
    enabled = gc.isenabled()
    gc.disable()
    yield
    if enabled:
        gc.enable()


@shared
@contextlib.contextmanager
def deeper() -> Iterator[None]:
    """Let calls nest four times as deep: tracing and copying take several calls of Python where the model takes one."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(4 * before)
    yield
    sys.setrecursionlimit(before)


@shared
@contextlib.contextmanager
def no_fast_path() -> Iterator[None]:
    """Switch off the fast path of nn.MultiheadAttention, a fused operator that some modules call in eval mode."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@shared
def attention_as_products() -> AbstractContextManager[None]:
    """Compute attention by matrix products, not by fused kernels, which apply dropout inside and whose work is not counted."""
    return sdpa_kernel(SDPBackend.MATH)


@shared
@contextlib.contextmanager
def no_mkldnn() -> Iterator[None]:
    """Switch off oneDNN's fused kernels of recurrent layers, if torch has them, and the warnings of oneDNN's other flags."""
    is_there = torch.backends.mkldnn.is_available()
    with quiet(), torch.backends.mkldnn.flags(enabled=False) if is_there else contextlib.nullcontext():
        yield


is_autocast_on = torch._C._is_any_autocast_enabled
"""Tell whether autocast is on for any device, which costs a tenth of asking for each."""


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    """Switch autocast off for this thread, on every type of device that it is on for."""
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps", "xpu") if is_autocast_on() else ():
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def defaults() -> tuple[torch.dtype, str]:
    """Return the type and the device of tensors that operators make if they are not told another."""
    return torch.get_default_dtype(), torch._C._get_default_device()


def attention_kernels() -> tuple[bool, ...]:
    """Return which kernels attention may take, on any device: how its result lies in memory depends on them."""
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled(), cuda.math_sdp_enabled()


@shared
def masks_unseen() -> AbstractContextManager[Any]:
    """Stop nn.Transformer from reading a mask to see whether it is the causal mask.

    The answer only chooses a kernel, but the read cannot be exported. Without this the export of transformers fails.
    """
    return patch.object(transformer, "_detect_is_causal_mask", lambda mask, is_causal=None, size=None: bool(is_causal))


@shared
@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Log nothing, around calls of torch that are expected to fail."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(before)


@shared
def unprinted() -> AbstractContextManager[Any]:
    """Let torch.export print nothing: of a model that it cannot export it prints all of the graph so far."""
    from torch.export import _trace  # only where something is exported: it takes long to import

    return patch.object(_trace, "print", lambda *_, **__: None, create=True)


@shared
@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Let code that ``torch.compile`` wraps run as it is written.

    ``torch.cond``, ``while_loop`` and ``scan`` compile themselves. Where that fails under a mode, torch remembers the failure,
    and they fail in the process from then on. As long as nothing has loaded the compiler, there is nothing to switch.
    """
    if "torch._dynamo" in sys.modules:
        # Symbolic tracing looks into compiled code as well: by default torch refuses to.
        with torch.compiler.set_stance("force_eager"), torch._dynamo.config.patch(error_on_nested_fx_trace=False):
            yield
    else:
        yield


@contextlib.contextmanager
def quiet(category: type[Warning] = Warning) -> Iterator[None]:
    """Hide warnings of a category, and those that another thread hides at the same time."""
    with _saved_filters():
        warnings.simplefilter("ignore", category)
        yield


_saved_filters = shared(warnings.catch_warnings)


class _Watching(threading.local):
    """The functions that this thread calls when a tensor or a ``training`` flag is read or written, and for own backwards."""

    read: Callable[[Tensor], None] | None = None
    flag: Callable[[nn.Module, FrameType], None] | None = None
    write: Callable[[nn.Module, FrameType], None] | None = None
    backward: Callable[[str, CodeType], None] | None = None


_WATCHING = _Watching()


@contextlib.contextmanager
def watching_reads(watch: Callable[[Tensor], None]) -> Iterator[None]:
    """Call ``watch`` with each tensor whose ``tolist`` or ``numpy`` this thread's code calls, which no operator shows."""
    with _reads_replaced(), patch.object(_WATCHING, "read", watch):
        yield


@shared
def _reads_replaced() -> AbstractContextManager[Any]:
    def telling(read: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: Tensor, **options: Any) -> Any:
            if _WATCHING.read is not None:
                _WATCHING.read(tensor)
            return read(tensor, **options)

        return call

    base = torch._C.TensorBase
    return patch.multiple(Tensor, tolist=telling(base.tolist), numpy=telling(base.numpy))


@contextlib.contextmanager
def watching_backwards(watch: Callable[[str, CodeType], None]) -> Iterator[None]:
    """Call ``watch`` with name and code of each autograd.Function that this thread calls, and of each hook on a tensor."""
    with _backwards_replaced(), patch.object(_WATCHING, "backward", watch):
        yield


@shared
@contextlib.contextmanager
def _backwards_replaced() -> Iterator[None]:
    function = torch.autograd.Function
    apply, register = vars(function)["apply"], Tensor.register_hook

    def applied(cls: Any, *args: Any, **kwargs: Any) -> Any:
        # Operators of torch.library, and torch's loops and branches, have such functions too, and stay calls in graphs.
        if _WATCHING.backward is not None and not cls.__module__.startswith(("torch._library.", "torch._higher_order_ops.")):
            _WATCHING.backward(cls.__qualname__, cls.forward.__code__)
        return apply.__get__(None, cls)(*args, **kwargs)

    def registered(tensor: Tensor, hook: Any) -> Any:
        if _WATCHING.backward is not None:
            _WATCHING.backward("register_hook", sys._getframe(1).f_code)
        return register(tensor, hook)

    with patch.object(function, "apply", classmethod(applied)), patch.object(Tensor, "register_hook", registered):
        yield


@contextlib.contextmanager
def watching_checkpoints(watch: Callable[[CodeType | None], None]) -> Iterator[None]:
    """Call ``watch`` with the code of each function that is called by ``torch.utils.checkpoint``, by a thread that is alone."""
    start = checkpoint._checkpoint_without_reentrant_generator

    def telling(function: Any, *args: Any, **kwargs: Any) -> Any:
        called = function.forward if isinstance(function, nn.Module) else function
        watch(getattr(called, "__code__", None))
        return start(function, *args, **kwargs)

    with patch.object(checkpoint, "_checkpoint_without_reentrant_generator", telling):
        yield


class _TellingFlag:
    """A data descriptor in place of ``training`` on nn.Module: stores the flag as before, and tells which code reads it.

    ``training`` is a plain attribute of the instance, so a read shows on the class alone. If torch makes it something else,
    every capture fails.
    """

    def __get__(self, module: nn.Module | None, owner: type[nn.Module]) -> object:
        if module is None:
            raise AttributeError("training")
        if _WATCHING.flag is not None:
            _WATCHING.flag(module, sys._getframe(1))
        try:
            return module.__dict__["training"]
        except KeyError:
            raise AttributeError(f"{type(module).__name__!r} object has no attribute 'training'") from None

    def __set__(self, module: nn.Module, value: bool) -> None:
        if _WATCHING.write is not None:
            _WATCHING.write(module, sys._getframe(1))
        module.__dict__["training"] = value


@contextlib.contextmanager
def watching_modes(
    read: Callable[[nn.Module, FrameType], None], write: Callable[[nn.Module, FrameType], None] | None = None
) -> Iterator[None]:
    """Call ``read`` or ``write`` with each module whose ``training`` flag this thread's code reads or writes, and its frame."""
    with _flag_replaced(), patch.multiple(_WATCHING, flag=read, write=write):
        yield


def modes_unwatched() -> AbstractContextManager[Any]:
    """Let this thread read ``training`` flags without a call of ``watch``."""
    return patch.object(_WATCHING, "flag", None)


@shared
def _flag_replaced() -> AbstractContextManager[Any]:
    return patch.object(nn.Module, "training", _TellingFlag(), create=True)  # a plain attribute of each module


def is_watched() -> bool:
    """Tell whether a mode of this thread, or a hook on all modules, sees calls of torch and may change their results."""
    modes = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    return modes > 0 or bool(torch.nn.modules.module._has_any_global_hook())


# -- one thread at a time ------------------------------------------------------------------------------------------------

_ALONE = threading.RLock()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let one thread at a time be in this context, which it may enter again.

    The lock is for state of the process that :func:`shared` cannot share:

    - random states, which are put back after a run;
    - methods of nn.Module, which torch.fx and torch.export replace while they trace: the call of a module in another thread
      would be traced too;
    - fake tensor modes, the code of graphs and facts of operators, which are numbered and cached without locks;
    - results that depend on a switch of another thread, as those of attention without its fast path.

    So captures, analyses, shrinks and single runs of models wait for each other. Work on graphs and plans does not wait.
    """
    with interrupts_wait(), _ALONE:
        yield


# -- random states -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def own_random_numbers(tensors: Iterable[Tensor]) -> Iterator[list[str]]:
    """Put all random states back afterwards, those on the devices of ``tensors`` as well.

    Yields a list that names afterwards the generators besides torch's that were used.
    """
    used: list[str] = []
    with fixed_seed(accelerators(tensors)):
        python, numpy = random.getstate(), np.random.get_state()
        try:
            yield used
        finally:
            if random.getstate() != python:
                used.append("random")
            if not all(map(np.array_equal, np.random.get_state(), numpy)):
                used.append("numpy.random")
            random.setstate(python)
            np.random.set_state(numpy)


def accelerators(tensors: Iterable[Tensor]) -> set[str]:
    """Return the types of the devices with a generator of their own that tensors are on."""
    return {t.device.type for t in tensors} - {"cpu", "meta"}


@contextlib.contextmanager
def fixed_seed(kinds: set[str]) -> Iterator[None]:
    """Seed torch's generators with 0, on the CPU and on these types of devices, and put their states back afterwards."""
    with alone(), contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind in kinds:
            # Seeding touches every device of a kind, whether the model is on it or not.
            devices = list(range(torch.get_device_module(kind).device_count()))
            stack.enter_context(torch.random.fork_rng(devices=devices, device_type=kind))
            torch.get_device_module(kind).manual_seed_all(0)
        torch.default_generator.manual_seed(0)  # torch.manual_seed queues a call for every device that is not there
        yield
