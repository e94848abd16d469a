"""The symbolic values that a model's code computes with while it is traced."""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import math
import operator
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.proxy import TraceError
from torch.nn.utils import rnn

from fxprune.graph.metadata import IN_PLACE
from fxprune.torch_internals.tensors import pytree

# Attributes and methods that depend on the form of a tensor alone, not on its values.
_OF_FORM = ("shape", "size", "dtype", "device", "ndim", "dim", "numel", "layout", "is_cuda")


def is_form(node: fx.Node) -> bool:
    """Tell whether a node asks for the form of a tensor."""
    name = node.args[1] if node.target is getattr else node.target if node.op == "call_method" else None
    return name in _OF_FORM


def _augmented(operation: Callable[[Any, Any], Any], in_place: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], Any]:
    def record(self: fx.Proxy, other: Any) -> Any:
        tracer: Any = self.tracer
        if self.node in tracer.written:
            result = tracer.create_proxy("call_function", in_place, (self, other), {})
            tracer.written.add(result.node)
            return result
        result = operation(self, other)
        if isinstance(result, fx.Proxy):
            IN_PLACE.set(result.node, True)
        return result

    return record


Place = tuple[int, int]
"""One instruction of one call of the model's code."""


def _place(frame: FrameType) -> Place:
    return id(frame), frame.f_lasti


def _asking(question: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that asks the tracer of a symbolic value for the answer of ``question`` on the number behind it."""

    def ask(self: fx.Proxy, *args: Any, **kwargs: Any) -> Any:
        place = _place(sys._getframe(1))
        asked = (lambda value: question(value, *args, **kwargs)) if args or kwargs else question
        return cast(Any, self.tracer).decide(self, asked, place)

    return ask


class _Asking(fx.Proxy):
    """A symbolic value that asks its tracer when the code needs a number: a length, an index, a dtype."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and not hasattr(Tensor, name):
            raise AttributeError(name)  # a protocol, such as of numpy, which asks a tensor by another
        tracer: Any = self.tracer
        found = _Attribute(self, name)
        # Functions such as torch.finfo take no symbolic dtype.
        return tracer.decide(found, lambda value: value) if name == "dtype" and tracer.decisions is not None else found

    @classmethod
    def __torch_function__(cls, orig_method: Any, types: Any, args: Any = None, kwargs: Any = None) -> Any:
        """Record the call; torch has asked the symbolic values among its arguments for numbers before, in vain."""
        result: Any = super().__torch_function__(orig_method, types, args, kwargs)
        result.tracer.withdraw(_place(sys._getframe(1)))
        return result

    # Python calls these where it needs the number itself, and raises TypeError where one is missing.
    __len__, __index__, __int__ = _asking(len), _asking(operator.index), _asking(int)
    __float__, __complex__ = _asking(float), _asking(complex)
    __round__, __trunc__, __floor__, __ceil__ = _asking(round), _asking(math.trunc), _asking(math.floor), _asking(math.ceil)
    __array__ = _asking(np.asarray)

    def __format__(self, spec: str) -> str:
        return _asking(format)(self, spec) if spec else str(self)

    def __hash__(self) -> int:
        """Return the hash of a size or a dtype, by which code looks up in dicts and sets; that of a tensor is its identity."""
        of: Any = self.node.args[0] if self.node.target is operator.getitem else self.node
        return _asking(hash)(self) if is_form(of) else id(self)

    def __iter__(self) -> Iterator[fx.Proxy]:
        """Return the elements, as many as the code has names for; torch.fx would disassemble all of the code each time."""
        asking, parts = sys._getframe(1), cast(Any, self)
        code, at = asking.f_code.co_code, asking.f_lasti
        if code[at] == _UNPACK and code[at - 2] != dis.EXTENDED_ARG:
            return (parts[i] for i in range(code[at + 1]))
        return self.tracer.iter(self)


_UNPACK = dis.opmap["UNPACK_SEQUENCE"]


class _Attribute(_Asking, fx.proxy.Attribute):
    """An attribute or a method of a symbolic value."""


class Proxy(_Asking):
    """A symbolic value whose ``x += y`` becomes ``x = x + y`` in the graph, on a node marked as in-place.

    Both give the same result, or the graph would fail its check. In place needs less memory, so the mark lets
    :mod:`fxprune.passes.in_place` bring it back. An input is written to in place, as the caller sees that.
    """

    __iadd__ = _augmented(operator.add, operator.iadd)
    __isub__ = _augmented(operator.sub, operator.isub)
    __imul__ = _augmented(operator.mul, operator.imul)
    __itruediv__ = _augmented(operator.truediv, operator.itruediv)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write into the view that an index gives; an index with tensors or masks gives a copy, and is refused."""
        parts = index if isinstance(index, tuple) else (index,)
        if not all(part is None or part is ... or (isinstance(part, int | slice) and type(part) is not bool) for part in parts):
            message = f"the code assigns to {self.node.format_node()} by an index of tensors"
            raise cast(Any, self.tracer).note(TraceError(message))
        part: Any = operator.getitem(self, index)
        part.fill_(value) if isinstance(value, int | float) else part.copy_(value)


@contextlib.contextmanager
def functions_of_proxies() -> Iterator[None]:
    """Let torch.finfo and torch.iinfo refuse a symbolic dtype, and ``torch.zeros(a, b)`` and the like take symbolic sizes.

    The first take every object that defines ``__torch_function__`` and read its memory as that of a dtype, so they may give
    the limits of any other dtype: on Python 3.13 those of float8. The second take such objects in a tuple alone.
    """

    def refusing(limits: Any) -> Any:
        def of(*args: Any, **kwargs: Any) -> Any:
            for value in (*args, *kwargs.values()):
                if isinstance(value, fx.Proxy):
                    tracer: Any = value.tracer
                    raise tracer.note(TypeError(f"torch.{limits.__name__} takes a dtype, not a symbolic value"))
            return limits(*args, **kwargs)

        return of

    def of_sizes(make: Any) -> Any:
        @functools.wraps(make)
        def of(*sizes: Any, **kwargs: Any) -> Any:
            packed = len(sizes) > 1 and isinstance(sizes[0], fx.Proxy)
            return make(sizes, **kwargs) if packed else make(*sizes, **kwargs)

        return of

    makers = {make.__name__: of_sizes(make) for make in (torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn)}
    with patch.multiple(torch, finfo=refusing(torch.finfo), iinfo=refusing(torch.iinfo), **makers):
        yield


OF_VALUES: dict[str, Any] = {name: getattr(rnn, name) for name in rnn.__all__ if inspect.isfunction(getattr(rnn, name))}
"""Functions of torch that read values of their arguments: symbolic values have none, so the graph calls the functions."""


@contextlib.contextmanager
def calls_of_values() -> Iterator[None]:
    """Let :data:`OF_VALUES` become nodes within the context where they get symbolic values, by the names that torch has."""

    def recorded(function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            symbolic = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, fx.Proxy)]
            tracer: Any = symbolic[0].tracer if symbolic else None
            return tracer.create_proxy("call_function", function, args, kwargs) if symbolic else function(*args, **kwargs)

        return call

    with patch.multiple(rnn, **{name: recorded(function) for name, function in OF_VALUES.items()}):
        yield
