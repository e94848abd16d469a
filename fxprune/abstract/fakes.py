"""Tensors without values for one run of a graph: stand-ins for real tensors, and what operators make of them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.abstract.form import FakeMode, Form, IncomparableError, frozen
from fxprune.abstract.propagation import PROPAGATION, Effect, Traits
from fxprune.graph.metadata import DESCRIBED
from fxprune.graph.pickling import Description
from fxprune.torch_internals.operators import OpOverload
from fxprune.torch_internals.tensors import FakeTensor, contiguous_strides, hint, memory_of, pytree


def give_examples(gm: fx.GraphModule) -> None:
    """Let the inputs of a graph that was pickled have example values again."""
    nodes = [n for n in gm.graph.find_nodes(op="placeholder") if DESCRIBED.get(n) is not None and "val" not in n.meta]
    if not nodes:  # making a mode takes long
        return
    mode = FakeMode()

    def fake(described: Description) -> Tensor:
        return mode.make(Form(*dataclasses.astuple(described)))

    for node in nodes:
        node.meta["val"] = pytree.tree_map_only(Description, fake, DESCRIBED[node])


class Fakes:
    """The fake tensors of one run.

    Layers repeat, and asking FakeTensorMode takes long: so it is asked once, and further results are made like the first, in
    all runs. What a capture has asked is not asked again.
    """

    def __init__(self) -> None:
        self.mode = _Mode()
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}
        self._origins: dict[int, Tensor] = {}  # the real tensor, by the memory of its twin

    def like(self, leaf: Any) -> Any:
        """Return a new fake tensor like a tensor, the hint of a symbolic number, and anything else as it is."""
        if not isinstance(leaf, Tensor):
            return hint(leaf)
        # A dynamic batch size is analysed at the example's.
        sizes, strides = ([int(hint(n)) for n in ns] for ns in (leaf.shape, leaf.stride()))
        return self._twin(Form(tuple(sizes), tuple(strides), leaf.dtype, leaf.device))

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> FakeTensor:
        """Return a new fake tensor, contiguous."""
        return self._twin(Form(shape, contiguous_strides(shape), dtype, device))

    def _twin(self, form: Form) -> FakeTensor:
        with torch.inference_mode(False):  # as a parameter is none, nor is a view of one
            return self.mode.make(form)

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
        tensors: list[Tensor] = []
        effect, given, forms = _looked_up(func, args, kwargs, tensors)
        if effect is None and forms:
            with contextlib.suppress(IncomparableError):
                effect = PROPAGATION.effect(func, given, list(zip(tensors, forms, strict=True)), args, kwargs, self.mode)
        if effect is None:  # only the call itself can tell
            return func(*self.of(args), **{name: self.of(value) for name, value in kwargs.items()})
        return effect.result(lambda place: self.of(tensors[place]), self.mode.behind)


_NOTHING: Mapping[str, Any] = {}


class _Mode(FakeMode):
    """FakeTensorMode, but for operators of which is known what they give."""

    def dispatch(
        self, func: OpOverload, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] = _NOTHING
    ) -> Any:
        """Return what an operator gives; operators are asked for that others consist of, too."""
        tensors: list[Tensor] = []
        effect, *_ = _looked_up(func, args, kwargs, tensors)
        if effect is None or not all(type(tensor) is FakeTensor for tensor in tensors):
            return super().dispatch(func, types, args, kwargs)
        return effect.result(tensors.__getitem__, self.behind)

    def behind(self, form: Form, base: Tensor | None, offset: int) -> Tensor:
        """Return a new fake tensor, in its own memory or at an offset behind the start of another."""
        if base is None:
            return self.make(form)
        offset += int(base.storage_offset()) * base.element_size() // form.dtype.itemsize
        with torch.inference_mode(base.is_inference()):
            return self.make(form, base, offset)


def examples_of(node: fx.Node) -> list[Tensor]:
    """Return the example values of the tensors that a node reads and gives, as far as it carries them."""
    return [t for n in (node, *node.all_input_nodes) for t in pytree.tree_leaves(n.meta.get("val")) if isinstance(t, Tensor)]


def has_hints(tensor: Tensor) -> bool:
    """Tell whether all sizes of a tensor are known for the example; those that depend on values need not be."""
    return all(hint(size) is not None for size in tensor.shape)


_REAL = frozenset([Tensor, nn.Parameter])


def _looked_up(func: OpOverload, args: Any, kwargs: Any, tensors: list[Tensor]) -> tuple[Effect | None, Any, list[Form]]:
    """Return what is known of a call, its arguments without the tensors, and the forms of these, which go to ``tensors``.

    There are no forms if there is more to one of the tensors, or to the call than the forms of its operands.
    """
    if Traits.of(func).strided:  # where in its memory a tensor starts is part of the result
        return None, None, []
    try:
        given = frozen((args, kwargs), tensors)
        forms = [*map(Form.of, tensors)]
    except IncomparableError:
        return None, None, []
    for tensor in tensors:
        if type(tensor) is FakeTensor and tensor.constant is not None:
            return None, None, []
    return PROPAGATION.known(PROPAGATION.key(func, given, tensors, forms)), given, forms
