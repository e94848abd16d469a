"""Where parameters and masks live in a graph's module tree, and how they are renamed there.

The names are those of ``state_dict``: dotted paths. A parameter that is tied has several names and one object; a masked
parameter ``w`` is stored as the parameter ``w_orig`` and the buffer ``w_mask``.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import PruningTypeError, UnknownParameterError
from fxprune.modules import MASK, ORIG, Container, MaskLoading, widen_masks
from fxprune.tree import all_modules


def join(path: str, name: str) -> str:
    """Return the dotted name of ``name`` inside the module at ``path`` (empty for the root)."""
    return f"{path}.{name}" if path else name


def split(name: str) -> tuple[str, str]:
    """Return the module path and the last part of a dotted name."""
    path, _, last = name.rpartition(".")
    return path, last


def value_at(root: nn.Module, target: str) -> Any:
    """Return what a get_attr node of that ``target`` reads from ``root``, or None if there is nothing."""
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part, None)
    return value


def modules_by_path(root: nn.Module) -> dict[str, nn.Module]:
    """Return every module below ``root`` by each of its dotted paths, parents first; ``root`` itself has the empty one."""
    found: dict[str, nn.Module] = {}
    waiting = [("", root)]
    while waiting:
        path, module = waiting.pop()
        found[path] = module
        if module._modules:
            start = path and f"{path}."
            waiting += [(start + name, child) for name, child in reversed(module._modules.items()) if child is not None]
    return found


def parameters_by_name(root: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter by each of its dotted names, in the order of ``named_parameters``."""
    return {
        f"{path}.{name}" if path else name: parameter
        for path, module in modules_by_path(root).items()
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def ensure_container(root: nn.Module, path: str) -> nn.Module:
    """Return the module at ``path``, making containers on the way where there is none."""
    module = root
    for part in path.split(".") if path else ():
        child = module._modules.get(part)
        if child is None:
            child = Container()
            child.train(module.training)
            module.add_module(part, child)
        module = child
    return module


# On each module that holds masked parameters, the endings of their masks by attribute name: a model may have names of this
# form of its own.
_MASKED = "_fxprune_masked"


def _widen_masks(owner: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    widen_masks(owner, state_dict, prefix)


@dataclasses.dataclass(frozen=True)
class Masked:
    """A masked parameter: its dotted ``names`` (several if tied), the ``orig`` Parameter and its ``masks``.

    ``masks`` holds by the ending of its name every buffer that multiplies the parameter: ``"_mask"`` for one of the
    parameter's shape, ``"_mask0"``, ``"_mask1"`` ... for those of single dimensions, which broadcast.
    """

    names: tuple[str, ...]
    orig: nn.Parameter
    masks: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """The first of the names."""
        return self.names[0]

    @property
    def mask(self) -> Tensor:
        """The product of the masks, in a shape that broadcasts to the parameter's."""
        return functools.reduce(torch.mul, self.masks.values())


def parameter_names(root: nn.Module, parameter: nn.Parameter) -> tuple[str, ...]:
    """Return every dotted name under which ``parameter`` is registered."""
    return tuple(name for name, p in root.named_parameters(remove_duplicate=False) if p is parameter)


def base_names(root: nn.Module, parameter: nn.Parameter) -> tuple[str, ...]:
    """Return the names of ``parameter`` as they are when it is not masked."""
    names = parameter_names(root, parameter)
    masked = [n.removesuffix(ORIG) for n in names if n.endswith(ORIG) and find_masked(root, n.removesuffix(ORIG))]
    return tuple(masked) or names


def check_prunable(name: str, parameter: nn.Parameter) -> None:
    """Raise PruningTypeError if ``parameter`` has a dtype that cannot be multiplied by a mask and trained."""
    if not (parameter.is_floating_point() or parameter.is_complex()):
        raise PruningTypeError(
            f"parameter {name!r} of shape {tuple(parameter.shape)} has dtype {parameter.dtype}; only floating-point and "
            "complex parameters can be pruned"
        )


def owners(root: nn.Module, parameter: nn.Parameter) -> Iterator[tuple[nn.Module, str]]:
    """Yield each (module, attribute) that holds ``parameter``; a module registered twice comes once."""
    for module in root.modules():
        for attribute, value in module._parameters.items():
            if value is parameter:
                yield module, attribute


def holders(root: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Return each (module, attribute) that holds a parameter or buffer, by the tensor's ``id``."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in dict.fromkeys(modules_by_path(root).values()):
        for attribute, value in (*module._parameters.items(), *module._buffers.items()):
            found.setdefault(id(value), []).append((module, attribute))
    return found


def buffers_of(root: nn.Module) -> list[Tensor]:
    """Return every buffer, as often as it is held."""
    return [buffer for _, module in all_modules(root) for buffer in module._buffers.values() if buffer is not None]


def own_buffers(root: nn.Module, shared: Iterable[Tensor]) -> None:
    """Put copies in place of buffers that are ``shared`` with others.

    Buffers in one memory stay so; one in the memory of a parameter stays as it is.
    """
    foreign = {id(tensor) for tensor in shared}
    modules = [module for _, module in all_modules(root)]
    found = [(m, name, b) for m in modules for name, b in m._buffers.items() if b is not None and id(b) in foreign]
    taken = {_memory(parameter) for module in modules for parameter in module._parameters.values() if parameter is not None}
    users = Counter(map(_memory, {id(buffer): buffer for _, _, buffer in found}.values()))
    copies: dict[int, Any] = {}
    with torch.inference_mode(False), torch.no_grad():
        for module, attribute, buffer in found:
            if (memory := _memory(buffer)) in taken:
                continue
            if id(buffer) not in copies:
                alone = users[memory] == 1 and buffer.layout is torch.strided and buffer.is_contiguous()
                copies[id(buffer)] = buffer.detach().clone() if alone else copy.deepcopy(buffer.detach(), copies)
            module._buffers[attribute] = copies[id(buffer)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def find_masked(root: nn.Module, name: str) -> Masked | None:
    """Return the masked parameter that ``name`` means, or None if no parameter of that name is masked."""
    path, last = split(name)
    try:
        owner = root.get_submodule(path)
    except AttributeError:
        return None
    orig, endings = owner._parameters.get(last + ORIG), vars(owner).get(_MASKED, {}).get(last, ())
    masks = {e: mask for e in sorted(endings) if (mask := owner._buffers.get(last + e)) is not None}
    if orig is None or not masks:
        return None
    return Masked(tuple(n.removesuffix(ORIG) for n in parameter_names(root, orig)), orig, masks)


def all_masked(root: nn.Module) -> list[Masked]:
    """Return every masked parameter of the graph, each tied one once, in the order of ``named_parameters``."""
    first: dict[nn.Parameter, str] = {}
    for name, parameter in parameters_by_name(root).items():
        first.setdefault(parameter, name)
    found = (find_masked(root, name.removesuffix(ORIG)) for name in first.values() if name.endswith(ORIG))
    return [masked for masked in found if masked is not None]


def graph_module(module: object) -> fx.GraphModule:
    """Return ``module``, or raise PruningTypeError if it is not a graph."""
    if not isinstance(module, fx.GraphModule):
        raise PruningTypeError(
            f"expected a torch.fx.GraphModule, got {type(module).__name__}; make one with fxprune.capture(model, inputs)"
        )
    return module


def find_parameter(root: nn.Module, name: str) -> nn.Parameter:
    """Return the parameter called ``name``, masked or not.

    Raises:
        PruningTypeError: if ``name`` is not a string.
        UnknownParameterError: if there is none; the message lists the closest names.
    """
    if not isinstance(name, str):
        raise PruningTypeError(f"the graph has no parameter named {name!r}: a name is a dotted path, a str")
    masked = find_masked(root, name)
    if masked is not None:
        return masked.orig
    if name.endswith(ORIG) and (stored := find_masked(root, name.removesuffix(ORIG))) is not None:
        raise UnknownParameterError(f"{name!r} is where a masked parameter is stored; its name is {stored.name!r}")
    try:
        return root.get_parameter(name)
    except AttributeError:
        raise UnknownParameterError(_unknown(root, name)) from None


def _unknown(root: nn.Module, name: str) -> str:
    message = f"the graph has no parameter named {name!r}"
    if name in dict(root.named_buffers(remove_duplicate=False)):
        return f"{message}: that is a buffer; only parameters can be pruned"
    known = [base for parameter in root.parameters() for base in base_names(root, parameter)]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"; close to it are {', '.join(close)}" if close else f"; it has {len(known)} parameters"
    return f"{message}{hint} (see named_parameters())"


def register_mask(root: nn.Module, parameter: nn.Parameter, mask: Tensor, ending: str = MASK) -> None:
    """Put ``mask`` beside ``parameter``, wherever it is held, and rename it to ``<name>_orig`` unless it is so already."""
    for owner, attribute in list(owners(root, parameter)):
        masked: dict[str, list[str]] = vars(owner).setdefault(_MASKED, {})
        base = attribute.removesuffix(ORIG)
        if base == attribute or base not in masked:
            base = attribute
            _rename(owner, attribute, attribute + ORIG)
        owner.register_buffer(base + ending, mask)
        masked[base] = [*masked.get(base, ()), ending]  # another list, as copies of the module share the present one
        if not isinstance(owner, MaskLoading):
            owner.register_load_state_dict_pre_hook(_widen_masks)


def replace_mask(root: nn.Module, parameter: nn.Parameter, mask: Tensor, ending: str = MASK) -> None:
    """Put ``mask`` in place of the one that ``parameter`` has now."""
    for owner, attribute in owners(root, parameter):
        owner._buffers[attribute.removesuffix(ORIG) + ending] = mask


def unregister_mask(root: nn.Module, parameter: nn.Parameter) -> None:
    """Give ``parameter`` its own name back and drop its masks; its values stay as they are."""
    for owner, attribute in list(owners(root, parameter)):
        base = attribute.removesuffix(ORIG)
        _rename(owner, attribute, base)
        masked: dict[str, list[str]] = vars(owner)[_MASKED]
        for ending in masked.pop(base):
            del owner._buffers[base + ending]
        if not masked:
            del vars(owner)[_MASKED]


def _rename(owner: nn.Module, old: str, new: str) -> None:
    # The order of parameters is that of an optimizer's state, so the entry keeps its place.
    renamed = {new if key == old else key: value for key, value in owner._parameters.items()}
    owner._parameters.clear()
    owner._parameters.update(renamed)


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is registered."""
    for module in list(root.modules()):
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new


# GraphModule.meta is what torch.fx carries through deepcopy and pickle.
_METHODS = "fxprune.methods"


def methods_of(gm: fx.GraphModule) -> dict[str, Any]:
    """Return the record of pruning methods by parameter name (the first of its names), as kept in ``gm.meta``."""
    record: dict[str, Any] = gm.meta.setdefault(_METHODS, {})
    return record


def forget_methods(gm: fx.GraphModule) -> None:
    """Drop the record of pruning methods."""
    gm.meta.pop(_METHODS, None)
