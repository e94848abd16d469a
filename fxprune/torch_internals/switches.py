"""Settings of the whole process, each switched in one place.

All threads share them. Each stands here once, as a context that many threads may be in at a time: the first to enter it sets
it, the last to leave it puts it back. If each saved and restored it alone, the second of two threads would save what the first
had set, and restore that for good.
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
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import transformer

# -- switches ------------------------------------------------------------------------------------------------------------


def shared(switch: Callable[[], AbstractContextManager[Any]]) -> Callable[[], contextlib._GeneratorContextManager[None]]:
    """Make of a context that switches something one that threads share: it holds from the first entry to the last exit."""
    lock, count, held = threading.Lock(), 0, contextlib.ExitStack()

    @contextlib.contextmanager
    @functools.wraps(switch)
    def entered() -> Iterator[None]:
        nonlocal count
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
    """Hold the garbage collector off, which would go through objects that are all in use over and over."""
    enabled = gc.isenabled()
    gc.disable()
    yield
    if enabled:
        gc.enable()


@shared
@contextlib.contextmanager
def no_fast_path() -> Iterator[None]:
    """Switch off the fast path of nn.MultiheadAttention: another operator, in eval mode alone, that not all modules take."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@shared
def attention_as_products() -> AbstractContextManager[None]:
    """Compute attention by matrix products, not by fused kernels, which drop elements inside and which nothing counts."""
    return sdpa_kernel(SDPBackend.MATH)


@shared
@contextlib.contextmanager
def no_mkldnn() -> Iterator[None]:
    """Switch off oneDNN's fused kernels of recurrent layers, where this torch has any, and the warnings of its other flags."""
    is_there = torch.backends.mkldnn.is_available()
    with quiet(), torch.backends.mkldnn.flags(enabled=False) if is_there else contextlib.nullcontext():
        yield


@shared
def masks_unseen() -> AbstractContextManager[None]:
    """Let nn.Transformer not look into a mask to see whether it is the causal one.

    That only chooses a kernel, but cannot be exported. Without the name the export of transformers fails.
    """
    return _replaced(transformer, "_detect_is_causal_mask", lambda mask, is_causal=None, size=None: bool(is_causal))


@shared
@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Log nothing: what torch logs when it fails is no news where the failure is an answer."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(before)


@contextlib.contextmanager
def quiet(category: type[Warning] = Warning) -> Iterator[None]:
    """Hide warnings of a category; while another thread hides some, those stay hidden as well."""
    with _saved_filters():
        warnings.simplefilter("ignore", category)
        yield


_saved_filters = shared(warnings.catch_warnings)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give a class or module another attribute; one that it inherits comes back when the other goes."""
    inherits, own = name not in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    yield
    if inherits:
        delattr(owner, name)
    else:
        setattr(owner, name, own)


class _Watching(threading.local):
    """What this thread is told of."""

    read: Callable[[Tensor], None] | None = None
    flag: Callable[[nn.Module, FrameType], None] | None = None


_WATCHING = _Watching()


@contextlib.contextmanager
def _watched(name: str, watch: Callable[..., None] | None) -> Iterator[None]:
    before = getattr(_WATCHING, name)
    setattr(_WATCHING, name, watch)
    try:
        yield
    finally:
        setattr(_WATCHING, name, before)


@contextlib.contextmanager
def watching_reads(watch: Callable[[Tensor], None]) -> Iterator[None]:
    """Call ``watch`` with each tensor whose ``tolist`` or ``numpy`` this thread's code calls, which no operator shows."""
    with _reads_replaced(), _watched("read", watch):
        yield


@shared
@contextlib.contextmanager
def _reads_replaced() -> Iterator[None]:
    def telling(read: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: Tensor, **options: Any) -> Any:
            if _WATCHING.read is not None:
                _WATCHING.read(tensor)
            return read(tensor, **options)

        return call

    base = torch._C.TensorBase
    with _replaced(Tensor, "tolist", telling(base.tolist)), _replaced(Tensor, "numpy", telling(base.numpy)):
        yield


class _TellingFlag:
    """A data descriptor that stands for ``training`` on nn.Module: stores as before, and tells who reads.

    ``training`` is a plain attribute, so the only place to stand is the class, as torch.fx does for calls. If torch makes it
    something else, every capture fails.
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
        module.__dict__["training"] = value


@contextlib.contextmanager
def watching_modes(watch: Callable[[nn.Module, FrameType], None]) -> Iterator[None]:
    """Call ``watch`` with each module whose ``training`` flag this thread's code reads, and the frame of that code."""
    with _flag_replaced(), _watched("flag", watch):
        yield


def modes_unwatched() -> AbstractContextManager[None]:
    """Tell nobody of what reads the flag within the context."""
    return _watched("flag", None)


@shared
def _flag_replaced() -> AbstractContextManager[None]:
    return _replaced(nn.Module, "training", _TellingFlag())


def is_watched() -> bool:
    """Tell whether a mode of this thread, or a hook on all modules, sees what torch computes, and may change it."""
    modes = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    return modes > 0 or bool(torch.nn.modules.module._has_any_global_hook())


# -- what no two threads can do at a time --------------------------------------------------------------------------------

_ALONE = threading.RLock()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let one thread at a time be in such a context; it may enter further ones.

    Locked is the work on what torch holds once for the process, and that a count cannot share:

    - random states, which are put back after a run;
    - methods of nn.Module, which torch.fx and torch.export replace while they trace, so that a module that another thread calls
      would be traced;
    - fake tensor modes and the code of graphs, which torch numbers and caches without locks, and what is known of operators;
    - numbers that a switch of another thread would show in, as those of attention without its fast path.

    So captures, analyses, shrinks and single runs of models follow each other. What a thread does to graphs and plans does not.
    """
    with _ALONE:
        yield


# -- random states -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def own_random_numbers(tensors: Iterable[Tensor]) -> Iterator[list[str]]:
    """Leave all random states as they were, on the devices of ``tensors`` as well.

    Yields a list that names, afterwards, those besides torch's that were used.
    """
    used: list[str] = []
    with fixed_seed(accelerators(tensors)):
        python, numpy = random.getstate(), np.random.get_state()
        try:
            yield used
        finally:
            if random.getstate() != python:
                used.append("random")
            if _differs(np.random.get_state(), numpy):
                used.append("numpy.random")
            random.setstate(python)
            np.random.set_state(numpy)


def _differs(a: Any, b: Any) -> bool:
    return any(not np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def accelerators(tensors: Iterable[Tensor]) -> set[str]:
    """Return the types of the devices with a generator of their own that tensors are on."""
    return {t.device.type for t in tensors} - {"cpu", "meta"}


@contextlib.contextmanager
def fixed_seed(kinds: set[str]) -> Iterator[None]:
    """Seed torch's generators the same each time, on the CPU and on these types of devices, and put them back afterwards."""
    with alone(), contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind in kinds:
            # Seeding touches every device of a kind, whether the model is on it or not.
            devices = list(range(torch.get_device_module(kind).device_count()))
            stack.enter_context(torch.random.fork_rng(devices=devices, device_type=kind))
            torch.get_device_module(kind).manual_seed_all(0)
        torch.default_generator.manual_seed(0)  # torch.manual_seed queues a call for every device that is not there
        yield
