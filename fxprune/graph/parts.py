"""The modules that a captured graph holds: containers of parameters, lowered leaf modules, and branches by mode."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from fxprune.graph.masks import MaskLoading
from fxprune.torch_internals.operators import REGIONS

Graph = TypeVar("Graph", bound=fx.GraphModule)
_CONTAINERS = (dict, set, list)  # isinstance is faster with a tuple than with a union


class Container(MaskLoading):
    """Holds parameters, buffers, submodules and the ``training`` flag of a part of the model; computes nothing."""


class StatefulContainer(Container):
    """A container of a module with extra state in its ``state_dict``; computes nothing with it, but keeps and loads it.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html, ``get_extra_state``.
    """

    def __init__(self, extra: Any) -> None:
        super().__init__()
        self._extra = extra

    def get_extra_state(self) -> Any:
        """Return the extra state of the module as it was captured, or loaded since."""
        return self._extra

    def set_extra_state(self, state: Any) -> None:
        """Take loaded extra state in."""
        self._extra = state


def has_extra_state(module: nn.Module) -> bool:
    """Tell whether a module has extra state in its ``state_dict``."""
    return type(module).get_extra_state is not nn.Module.get_extra_state


class Lowered(Container):
    """Stands in for a leaf module whose computation was written out as graph nodes.

    It keeps the module's tensors under their names, and the state that :meth:`restore` makes the module from again. ``calls``
    has one entry for each way in which the graph called the module: the arguments, with ``Slot`` values in place of nodes.
    So ``lstm(x, (h, c))`` and ``lstm(y, (h, c))`` are one entry, ``((Slot("0"), (Slot("1"), Slot("2"))), {})``.
    """

    _leaf_type: type[nn.Module]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]

    @classmethod
    def of(cls, module: nn.Module) -> Lowered:
        """Return the stand-in for ``module``, which does not change; tensors are shared."""
        lowered = cls.__new__(cls)
        lowered.__dict__.update(_shell(module, cls.of), _leaf_type=type(module), calls=[])
        return lowered

    def restore(self) -> nn.Module:
        """Return a module of the original class with the present tensors."""
        module = self._leaf_type.__new__(self._leaf_type)
        shell = _shell(self, lambda child: cast(Lowered, child).restore())
        del shell["_leaf_type"], shell["calls"]
        module.__setstate__(shell)
        for name, parameter in list(module._parameters.items()):
            # Recurrent modules keep a second list of their weights, which follows assignments.
            setattr(module, name, parameter)
        return module

    def extra_repr(self) -> str:
        """Return the name of the original class."""
        return self._leaf_type.__name__


def clone(module: nn.Module, convert: Callable[[nn.Module], nn.Module] | None = None) -> nn.Module:
    """Return a module of the same class and configuration with the same tensors; submodules are converted, or else cloned."""
    cloned = type(module).__new__(type(module))
    cloned.__setstate__(_shell(module, convert or clone))
    return cloned


def clone_below(module: nn.Module, known: dict[int, Any]) -> None:
    """Clone each module below ``module`` once; graphs are copied with all they hold.

    ``known`` takes each clone by the ``id`` of its original, as the memo of ``copy.deepcopy`` does.
    """

    def cloned(child: nn.Module) -> nn.Module:
        if id(child) not in known:
            is_graph = isinstance(child, fx.GraphModule)
            known[id(child)] = copy.deepcopy(child, known) if is_graph else clone(child, cloned)
        found: nn.Module = known[id(child)]
        return found

    for child in module._modules.values():
        if child is not None:
            cloned(child)


def shared_copy(gm: Graph) -> Graph:
    """Return a copy of a graph with modules of its own that holds the same parameters and buffers."""
    known: dict[int, Any] = {id(tensor): tensor for tensor in (*gm.parameters(), *gm.buffers())}
    clone_below(gm, known)  # no deep copy is needed: passes replace attributes of modules, and write into none
    return copy.deepcopy(gm, known)


def _shell(module: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> dict[str, Any]:
    """Return the module's state as for pickling, with registries of its own and every submodule converted."""
    shell = dict(module.__getstate__())
    for key, value in shell.items():
        if key.startswith("_") and isinstance(value, _CONTAINERS):
            shell[key] = value.copy()
    shell["_modules"] = {name: None if child is None else convert(child) for name, child in module._modules.items()}
    return shell


class Slot(str):
    """The place of a graph node in stored call arguments, numbered in order of first appearance."""

    __slots__ = ()


def fill(arguments: Any, find: Callable[[Slot], Any]) -> Any:
    """Return stored call arguments with ``find(slot)`` in place of each slot."""
    return map_aggregate(arguments, lambda leaf: find(leaf) if isinstance(leaf, Slot) else leaf)


def within(inside: str, node: fx.Node | None) -> str:
    """Return the prefix of the names of nodes in the graph that ``node`` runs; ``inside`` is the one of the node itself."""
    assert node is not None
    return f"{inside}{node.name}."


def region_of(gm: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, tuple[Any, ...]] | None:
    """Return the graph that a node runs within a switch of torch, and what it is given; None unless it is the node's alone."""
    if node.target not in REGIONS:
        return None
    place = next(place for place, a in enumerate(node.args) if isinstance(a, fx.Node))
    read = node.args[place]
    assert isinstance(read, fx.Node)
    alone = len(read.users) == 1 and len(gm.graph.find_nodes(op="get_attr", target=read.target)) == 1
    region = gm.get_submodule(str(read.target))
    return (region, node.args[place + 1 :]) if alone and isinstance(region, fx.GraphModule) else None


class ByMode(nn.Module):
    """A part of the model that differs by mode: computes ``in_train`` while training, else ``in_eval``.

    Both branches are GraphModules from ``(tensors, sizes)`` to a list of tensors and hold no state of their own.
    """

    _is_impure = True  # a branch may update a buffer, so dead-code elimination must not go by the users alone

    def __init__(self, in_train: fx.GraphModule, in_eval: fx.GraphModule) -> None:
        super().__init__()
        self.in_train = in_train
        self.in_eval = in_eval

    def branches(self, node: str) -> tuple[tuple[str, fx.GraphModule], tuple[str, fx.GraphModule]]:
        """Return both branches, each with the prefix of its nodes' names where the node called ``node`` calls this module."""
        return (f"{node}.in_train.", self.in_train), (f"{node}.in_eval.", self.in_eval)

    def forward(self, tensors: list[Tensor], sizes: list[int]) -> list[Tensor]:
        """Run the branch of the current mode."""
        if self.training:
            return self.in_train(tensors, sizes)  # type: ignore[no-any-return]
        return self.in_eval(tensors, sizes)  # type: ignore[no-any-return]
