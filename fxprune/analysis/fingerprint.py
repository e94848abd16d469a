"""Whether an analysis still holds: a fingerprint of all that it depends on, kept with the analysis on the graph.

An analysis depends on the nodes, the configuration of the modules that they call, the forms of all tensors and the memory that
they share, the values of counters and index tables, the example inputs and the rules. It reads no weight. So the analysis of a
graph is also that of the masked graph without its masks: ``mask`` and ``shrink`` use it again. A graph with code that a
fingerprint cannot describe, such as a user's own function, has no fingerprint and is analysed each time.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.abstract.form import IncomparableError, frozen
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.operators import runs_own_code
from fxprune.analysis.sources import exact_values, named_tensors
from fxprune.graph.captured import CapturedModule
from fxprune.graph.metadata import ANALYSIS, WHOLE
from fxprune.graph.parts import ByMode
from fxprune.graph.paths import value_at
from fxprune.rules.registry import version
from fxprune.torch_internals.switches import is_watched
from fxprune.torch_internals.tensors import hint, memory_of, pytree


def remember(gm: fx.GraphModule, base: fx.GraphModule, deps: Dependencies) -> None:
    """Keep the analysis of ``base``, a graph or a copy of it without its masks, on the graph."""
    mark = fingerprint(base) if isinstance(gm, CapturedModule) else None
    ANALYSIS.pop(gm)
    if mark is not None:
        ANALYSIS.set(gm, (mark, deps.about(None)))  # without the graph, which would hold itself


def recall(gm: fx.GraphModule, base: fx.GraphModule) -> Dependencies | None:
    """Return the analysis kept on a graph, about ``base``; None if there is none, or if it may not hold for ``base``."""
    kept = ANALYSIS.get(gm)
    return None if kept is None or kept[0] != fingerprint(base) else kept[1].about(base)


def fingerprint(gm: fx.GraphModule) -> Any:
    """Return a value that is equal for two graphs only if their analyses are; None if the graph runs unknown code."""
    if is_watched():
        return None
    reader = _Reader()
    try:
        tensors = [(name, reader.tensor(tensor)) for name, tensor in named_tensors(gm)]
        return _settings(), WHOLE.get(gm), tensors, reader.graph(gm)
    except IncomparableError:
        return None


def _settings() -> tuple[Any, ...]:
    autocast = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
    deterministic = torch.are_deterministic_algorithms_enabled()
    return version(), torch.get_default_dtype(), torch.get_default_device(), deterministic, *autocast


# Functions and methods that read the values of a tensor without an operator.
_READ_VALUES = frozenset(["tolist", "numpy", "data_ptr", "__array__", "__dlpack__"])
_PLACEHOLDER = torch.empty(0)  # for nodes in arguments


class _Reader:
    """Describes graphs, modules and tensors as values that compare; an object met a second time is its number."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def _number(self, identity: int) -> tuple[int, bool]:
        """Return the number of an object, and whether it is met for the first time."""
        count = len(self._numbers)
        number = self._numbers.setdefault(identity, count)
        return number, number == count

    def graph(self, gm: fx.GraphModule) -> Any:
        """Describe a graph whose nodes are run one by one."""
        return tuple([(n.name, n.op, self._target(gm, n), self._arguments(n), _example(n)) for n in gm.graph.nodes])

    def _arguments(self, node: fx.Node) -> Any:
        names, tensors = list[str](), list[Any]()

        def placeholder(argument: fx.Node) -> Any:
            names.append(argument.name)
            return _PLACEHOLDER

        plain = frozen(fx.map_arg((node.args, node.kwargs), placeholder), tensors)
        if len(tensors) != len(names):
            raise IncomparableError(f"node {node.name!r} holds a tensor")
        return plain, tuple(names)

    def _target(self, gm: fx.GraphModule, node: fx.Node) -> Any:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", None)
        if node.op == "call_module":
            return name, self._module(gm.get_submodule(str(name)))
        if node.op == "get_attr":
            value = value_at(gm, str(name))
            return name, self.tensor(value) if isinstance(value, Tensor) else frozen(value, [])
        if name in _READ_VALUES or runs_own_code(node):
            raise IncomparableError(f"node {node.name!r} runs code that may read anything")
        return node.target

    def _module(self, module: nn.Module) -> Any:
        number, is_new = self._number(id(module))
        if not is_new:
            return number
        state = vars(module)
        if any(key.endswith("_hooks") and hooks for key, hooks in state.items() if "state_dict" not in key):
            raise IncomparableError("a hook runs code of its own")
        if isinstance(module, ByMode):
            return ByMode, module.training, self.graph(module.in_train), self.graph(module.in_eval)
        if not type(module).__module__.startswith("torch.nn.") or isinstance(module, fx.GraphModule):
            raise IncomparableError(f"{type(module).__name__} runs code of its own")
        own = [(key, self._attribute(value)) for key, value in state.items() if not key.endswith(_OF_MODULES)]
        tensors = [(k, self.tensor(t)) for r in ("_parameters", "_buffers") for k, t in state[r].items() if t is not None]
        return type(module), *own, *tensors, *[(k, self._module(m)) for k, m in module._modules.items() if m is not None]

    def _attribute(self, value: Any) -> Any:
        if callable(value) and str(getattr(value, "__module__", "")).partition(".")[0] in ("torch", "_operator"):
            return value  # such as the activation of a transformer's layer
        tensors = list[Any]()
        return frozen(value, tensors), *map(self.tensor, tensors)

    def tensor(self, tensor: Tensor) -> Any:
        """Describe a tensor, with its values if the analysis may read them."""
        number, is_new = self._number(id(tensor))
        if not is_new:
            return number
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_quantized:
            raise IncomparableError("a tensor of an unusual kind")
        if tensor.is_conj() or tensor.is_neg():
            raise IncomparableError("a tensor that stands for another one")
        memory, _ = self._number(memory_of(tensor))
        place = memory, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
        return type(tensor), tensor.dtype, tensor.device, tensor.requires_grad, place, _values(tensor)


# Ends of the names of attributes that ``_module`` describes or checks by itself.
_OF_MODULES = ("_parameters", "_buffers", "_modules", "_hooks", "_hooks_with_kwargs", "_hooks_always_called", "_buffers_set")


def _values(tensor: Tensor) -> Any:
    values = exact_values(tensor)
    if values is not None:
        return hashlib.sha256(values.contiguous().numpy().tobytes()).digest()
    return repr(tensor.item()) if tensor.numel() == 1 and not tensor.is_meta else None


def _example(node: fx.Node) -> Any:
    """Describe the example value of a node."""
    return tuple(map(_form, pytree.tree_leaves(node.meta["val"]))) if "val" in node.meta else None


def _form(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        sizes, strides = tuple(map(hint, leaf.shape)), tuple(map(hint, leaf.stride()))
        return leaf.dtype, sizes, strides, leaf.device
    return frozen(hint(leaf), [])
