"""The module classes that a captured graph is made of.

``CapturedModule`` is the GraphModule itself; ``Container`` holds parameters under their original names; ``Lowered`` stands
in for a leaf module whose computation was written out as nodes; ``ByMode`` holds two versions of a computation, one for
train and one for eval mode.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import PythonCode

from fxprune.dumps import dump, load
from fxprune.tree import all_modules

ORIG = "_orig"
MASK = "_mask"


def is_binary(mask: Tensor) -> bool:
    """Tell whether every element of ``mask`` is 0 or 1; a mask on the meta device has no elements that could say no."""
    if mask.is_meta or mask.dtype == torch.bool or mask.numel() == 0:
        return True
    if mask.dtype == torch.uint8:  # no other tensor of that size for what is asked most often
        return int(mask.max()) <= 1
    return bool(((mask == 0) | (mask == 1)).all())


class MaskLoading(nn.Module):
    """Mixin that lets a state_dict with masks of any dtype load without loss.

    Masks are stored in one byte an element. A mask that is not of zeros and ones (a user's own) does not fit there, so
    when one arrives the buffer takes the parameter's dtype first.
    """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        widen_masks(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def widen_masks(owner: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Give masks of one byte an element their parameter's dtype where the arriving values need it."""
    for name, mask in list(owner._buffers.items()):
        orig = owner._parameters.get(name.removesuffix(MASK) + ORIG) if name.endswith(MASK) else None
        incoming = state_dict.get(prefix + name)
        if orig is None or mask is None or not isinstance(incoming, Tensor):
            continue
        if mask.dtype == torch.uint8 and incoming.shape == mask.shape and not is_binary(incoming):
            owner._buffers[name] = torch.empty_like(mask, dtype=orig.dtype)


class Container(MaskLoading):
    """Holds parameters, buffers and submodules under their original names; computes nothing.

    It also carries a live ``training`` flag for the part of the model that it stands for.
    """


class Lowered(Container):
    """Stands in for a leaf module whose computation was written out as graph nodes.

    It keeps the module's tensors under their names and everything else that :meth:`restore` needs to make the module
    again. ``calls`` has one entry for each way in which the graph called the module: its arguments with ``Slot`` values
    in place of nodes.
    """

    _leaf_type: type[nn.Module]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]

    @classmethod
    def of(cls, module: nn.Module) -> Lowered:
        """Return the stand-in for ``module``, which itself stays as it is; tensors are shared."""
        lowered = cls.__new__(cls)
        lowered.__dict__.update(_shell(module, cls.of))
        lowered.__dict__["_leaf_type"] = type(module)
        lowered.__dict__["calls"] = []
        return lowered

    def restore(self) -> nn.Module:
        """Return a module of the original class with the tensors that this one holds now."""
        module = self._leaf_type.__new__(self._leaf_type)
        shell = _shell(self, lambda child: cast(Lowered, child).restore())
        for key in ("_leaf_type", "calls"):
            del shell[key]
        module.__setstate__(shell)
        for name, parameter in list(module._parameters.items()):
            # Recurrent modules keep a second list of their weights, which follows assignments.
            setattr(module, name, parameter)
        return module

    def extra_repr(self) -> str:
        """Name the class of the module that this one stands for."""
        return self._leaf_type.__name__


def clone(module: nn.Module) -> nn.Module:
    """Return a module of the same class, configuration and tensors (shared), whose submodules are clones as well."""
    return _clone(module, clone)


def _clone(module: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> nn.Module:
    cloned = type(module).__new__(type(module))
    cloned.__setstate__(_shell(module, convert))
    return cloned


def clone_below(module: nn.Module, known: dict[int, Any]) -> None:
    """Clone what is below a module, graphs with what they hold excepted, each once.

    Args:
        module: the module.
        known: takes each clone, by the ``id`` of the module that it is made of, as the memo of ``copy.deepcopy`` does.
    """

    def cloned(child: nn.Module) -> nn.Module:
        if id(child) not in known:
            graph = isinstance(child, fx.GraphModule)
            known[id(child)] = copy.deepcopy(child, known) if graph else _clone(child, cloned)
        found: nn.Module = known[id(child)]
        return found

    for child in module._modules.values():
        if child is not None:
            cloned(child)


def bare_copy(module: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Return a copy with the module's tensors, mode and converted submodules, and no other attribute.

    The copy is of the module's class if that computes something, else a :class:`Container`.
    """
    copied: nn.Module
    if isinstance(module, fx.GraphModule):
        copied = CapturedModule(nn.Module(), fx.Graph(), type(module).__name__)
    elif isinstance(module, ByMode):
        copied = ByMode(module.in_train, module.in_eval)
    else:
        copied = Container()
    for name, parameter in module._parameters.items():
        copied.register_parameter(name, parameter)
    for name, buffer in module._buffers.items():
        copied.register_buffer(name, buffer, persistent=name not in module._non_persistent_buffers_set)
    for name, child in module._modules.items():
        copied._modules[name] = None if child is None else convert(child)
    copied.training = module.training
    return copied


_CONTAINERS = (dict, set, list)


def _shell(module: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> dict[str, Any]:
    """Return the module's state as for pickling, with registries of its own and every submodule converted."""
    shell = dict(module.__getstate__())
    for key, value in shell.items():
        if isinstance(value, _CONTAINERS) and key.startswith("_"):
            shell[key] = value.copy()
    shell["_modules"] = {name: None if child is None else convert(child) for name, child in module._modules.items()}
    return shell


class Slot(str):
    """The place of a graph node in stored call arguments, numbered in order of first appearance."""

    __slots__ = ()


class ByMode(nn.Module):
    """Computes ``in_train`` while training and ``in_eval`` otherwise: a part of the model that differs by mode.

    Both branches are GraphModules from ``(tensors, sizes)`` to a list of tensors and hold no state of their own.
    """

    _is_impure = True  # a branch may update a buffer, so dead-code elimination must not judge by the users alone

    def __init__(self, in_train: fx.GraphModule, in_eval: fx.GraphModule) -> None:
        super().__init__()
        self.in_train = in_train
        self.in_eval = in_eval

    def branches(self, node: str) -> tuple[tuple[str, fx.GraphModule], tuple[str, fx.GraphModule]]:
        """Return both branches, each with what its nodes' names start with where ``node`` of a graph calls this."""
        return (f"{node}.in_train.", self.in_train), (f"{node}.in_eval.", self.in_eval)

    def forward(self, tensors: list[Tensor], sizes: list[int]) -> list[Tensor]:
        """Run the branch of the current mode."""
        if self.training:
            return self.in_train(tensors, sizes)  # type: ignore[no-any-return]
        return self.in_eval(tensors, sizes)  # type: ignore[no-any-return]


class CapturedModule(MaskLoading, fx.GraphModule):
    """An ordinary ``torch.fx.GraphModule`` that pickles its graph as it is.

    torch.fx pickles the generated code and traces it again on loading, which would freeze the live ``training`` flags that
    the graph reads.

    ``example`` are the inputs that the graph was captured with, positional and by name; None in a graph that was pickled.
    """

    example: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def recompile(self) -> PythonCode:
        """Make the code of ``forward`` anew from the graph; within :func:`compiled_later`, when it is asked for."""
        if not _COMPILES_LATER.get():
            return super().recompile()
        vars(self).pop("_code", None)
        type(self).forward = _Forward()  # type: ignore[assignment] # each graph has a class of its own
        return _NO_CODE

    def compile_put_off(self) -> None:
        """Make the code if there is none for the graph yet."""
        if not is_compiled(self):
            super().recompile()

    @property
    def code(self) -> str:
        """The code of ``forward``."""
        self.compile_put_off()
        return super().code

    __jit_ignored_attributes__ = ("example",)  # TorchScript wants to know the type of what is annotated
    __jit_unused_properties__ = [*fx.GraphModule.__jit_unused_properties__, "code"]  # noqa: RUF012

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the state and a flat list of the nodes."""
        state = {k: v for k, v in self.__dict__.items() if k not in _DERIVED}
        with _quiet_specs():
            graph = pickle.dumps((dump(self.graph), self.graph._codegen))
        return _rebuild, (state, type(self).__name__, graph)

    def __deepcopy__(self, memo: dict[int, Any]) -> CapturedModule:
        """Copy state and graph; torch.fx would lose second names and which buffers are persistent."""
        with compiled_later():
            copied = CapturedModule(nn.Module(), fx.Graph(), type(self).__name__)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy({k: v for k, v in self.__dict__.items() if k not in _DERIVED}, memo))
        with _quiet_specs():
            copied.graph = copy.deepcopy(self.graph)
        copied.example = self.example
        return copied


class _Forward:
    """Stands for the ``forward`` of a graph without code, and makes it when somebody asks for it."""

    def __get__(self, gm: CapturedModule | None, owner: type[CapturedModule]) -> Any:
        if gm is None:
            return self
        gm.compile_put_off()
        return gm.forward


_COMPILES_LATER: contextvars.ContextVar[bool] = contextvars.ContextVar("fxprune_compiles_later", default=False)
_NO_CODE = PythonCode("", {}, None)


@contextlib.contextmanager
def compiled_later() -> Iterator[None]:
    """Make no code for graphs that are set within the context before somebody calls them."""
    token = _COMPILES_LATER.set(True)
    try:
        yield
    finally:
        _COMPILES_LATER.reset(token)


def is_compiled(gm: fx.GraphModule) -> bool:
    """Tell whether there is code of the graph that was set last."""
    return "_code" in vars(gm)


def compile_all(gm: fx.GraphModule) -> None:
    """Make the code that was put off, of a graph and of those in it, unless it still is to be made later."""
    for _, module in all_modules(gm) if not _COMPILES_LATER.get() else ():
        if isinstance(module, CapturedModule):
            module.compile_put_off()


# What recompile() makes of the graph; and the example, which is of no use elsewhere.
_DERIVED = ("_graph", "_code", "_in_spec", "_out_spec", "example")


@contextlib.contextmanager
def _quiet_specs() -> Iterator[None]:
    """Hide what torch says about its own TreeSpec class when one is pickled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _rebuild(state: dict[str, Any], class_name: str, graph: bytes) -> CapturedModule:
    gm = CapturedModule(nn.Module(), fx.Graph(), class_name)
    gm.__dict__.update(state)
    with _quiet_specs():
        gm.graph = load(*pickle.loads(graph))
    return gm
