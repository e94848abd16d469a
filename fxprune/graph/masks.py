"""Where parameters and masks live in a graph's module tree, and how they are renamed there.

The names are those of ``state_dict``: dotted paths. A parameter that is tied has several names and one object; a masked
parameter ``w`` is stored as the parameter ``w_orig`` and the buffer ``w_mask``.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import PruningTypeError, UnknownParameterError
from fxprune.graph.metadata import MASKED
from fxprune.graph.paths import parameter_names, split, value_at

ORIG = "_orig"
MASK = "_mask"
FLAG = torch.int8
"""The dtype of flags in a graph's buffers, of masks of zeros and ones and of keep vectors.

An average of integers is cut to an integer, so that ``AveragedModel(use_buffers=True)`` leaves zeros and ones. Differences have
a sign: averaged in uint8, ``0 - 1`` is 255. The product with a float is faster than that of bool.
"""


def is_binary(mask: Tensor) -> bool:
    """Tell whether every element of ``mask`` is 0 or 1; yes for a mask on the meta device, which has no elements."""
    if mask.is_meta or mask.dtype == torch.bool or mask.numel() == 0:
        return True
    if mask.dtype == FLAG:  # the usual case, without a second tensor of the mask's size
        least, greatest = mask.aminmax()
        return int(least) >= 0 and int(greatest) <= 1
    return bool(((mask == 0) | (mask == 1)).all())


def fault_of(mask: Tensor, parameter: Tensor) -> str:
    """Return why a mask of the right shape cannot multiply a parameter; an empty string if it can."""
    if mask.layout is not torch.strided:
        return f"has the layout {mask.layout}; give it as a dense tensor: mask.to_dense()"
    if mask.is_meta and not parameter.is_meta:
        return "is on the meta device, where it has no values; the parameter has some"
    if mask.is_complex() and not (parameter.is_complex() or mask.is_meta) and bool(mask.imag.any()):
        return f"has complex values, but the parameter is of dtype {parameter.dtype}"
    return ""


class MaskLoading(nn.Module):
    """Mixin that lets a state_dict with masks of any dtype load without loss.

    Masks are stored in one byte an element. A user's own mask of other values than 0 and 1 does not fit there: when such a
    mask arrives, the buffer takes the parameter's dtype first.
    """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        widen_masks(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def widen_masks(owner: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give masks of one byte an element their parameter's dtype where the arriving values need it."""
    for name, mask in list(owner._buffers.items()):
        orig = owner._parameters.get(name.removesuffix(MASK) + ORIG) if name.endswith(MASK) else None
        incoming = state_dict.get(prefix + name)
        if orig is None or mask is None or not isinstance(incoming, Tensor):
            continue
        if mask.dtype in (FLAG, torch.uint8) and incoming.shape == mask.shape and not is_binary(incoming):
            owner._buffers[name] = torch.empty_like(mask, dtype=orig.dtype)


@dataclasses.dataclass(frozen=True)
class Masked:
    """A masked parameter: its dotted ``names`` (several if tied), the ``orig`` Parameter and its ``masks``.

    ``masks`` holds every buffer that multiplies the parameter, by the ending of the buffer's name: ``"_mask"`` has the
    parameter's shape; ``"_mask0"``, ``"_mask1"`` ... are of a single dimension each and broadcast.
    """

    names: tuple[str, ...]
    orig: nn.Parameter
    masks: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    @property
    def by_axis(self) -> dict[int, Tensor]:
        """The masks of a single dimension each, by dimension; those of a plan."""
        return {int(ending.removeprefix(MASK)): mask for ending, mask in self.masks.items() if ending != MASK}

    @property
    def mask(self) -> Tensor:
        """The product of the masks, in a shape that broadcasts to the parameter's."""
        return functools.reduce(torch.mul, self.masks.values())


def base_names(root: nn.Module, parameter: nn.Parameter) -> tuple[str, ...]:
    """Return the names that ``parameter`` has without a mask."""
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


def find_masked(root: nn.Module, name: str) -> Masked | None:
    """Return the masked parameter called ``name``; None if no masked parameter has that name."""
    path, last = split(name)
    try:
        owner = root.get_submodule(path)
    except AttributeError:
        return None
    orig, masks = owner._parameters.get(last + ORIG), _masks_of(owner, last)
    if orig is None or not masks:
        return None
    return Masked(tuple(n.removesuffix(ORIG) for n in parameter_names(root, orig)), orig, masks)


def _masks_of(owner: nn.Module, base: str) -> dict[str, Tensor]:
    endings = (MASKED.get(owner) or {}).get(base, ())
    return {e: mask for e in sorted(endings) if (mask := owner._buffers.get(base + e)) is not None}


def all_masked(root: nn.Module) -> list[Masked]:
    """Return every masked parameter of the graph once, in the order of ``named_parameters``."""
    if not any(name.endswith(ORIG) for module in root.modules() for name in module._parameters):
        return []
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    found = []
    for parameter, every in names.items():
        path, last = split(every[0])
        if last.endswith(ORIG) and (masks := _masks_of(root.get_submodule(path), last.removesuffix(ORIG))):
            found.append(Masked(tuple(n.removesuffix(ORIG) for n in every), parameter, masks))
    return found


def find_parameter(root: nn.Module, name: str) -> nn.Parameter:
    """Return the parameter called ``name``, masked or not.

    Raises:
        PruningTypeError: if ``name`` is not a string.
        UnknownParameterError: if the graph has no such parameter; the message lists the closest names.
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


def unmaskable(gm: fx.GraphModule) -> dict[str, str]:
    """Return by name the nodes that read a parameter for whose masks its module has no names left, and why."""
    owners: dict[nn.Parameter, str] = {}
    readers: dict[str, nn.Module] = {}
    for path, module in gm.named_modules(remove_duplicate=False):
        names = vars(module).keys() | module._parameters.keys() | module._buffers.keys() | module._modules.keys()
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            wanted = (name + ORIG, *(f"{name}{MASK}{dim}" for dim in range(parameter.dim())))
            if taken := [each for each in wanted if each in names]:
                owners[parameter] = f"cannot be masked, as the name {taken[0]!r} is taken by another attribute of its module"
        readers[path] = module
    found: dict[str, str] = {}
    for node in gm.graph.nodes if owners else ():
        value = value_at(gm, str(node.target)) if node.op == "get_attr" else None
        read = [value] if node.op == "get_attr" else readers[str(node.target)].parameters() if node.op == "call_module" else []
        found.update((node.name, owners[parameter]) for parameter in read if parameter in owners)
    return found


def _unknown(root: nn.Module, name: str) -> str:
    message = f"the graph has no parameter named {name!r}"
    if name in dict(root.named_buffers(remove_duplicate=False)):
        return f"{message}: that is a buffer; only parameters can be pruned"
    known = [base for parameter in root.parameters() for base in base_names(root, parameter)]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"; close to it are {', '.join(close)}" if close else f"; it has {len(known)} parameters"
    return f"{message}{hint} (see named_parameters())"


Held = Iterable[tuple[nn.Module, str]]
"""The modules that hold a parameter, each with the attribute; see :func:`fxprune.graph.paths.holders`."""


def register_masks(held: Held, masks: Mapping[str, Tensor]) -> None:
    """Put masks, by their endings, beside a parameter, and rename the parameter to ``<name>_orig`` unless it is masked."""
    for owner, attribute in held:
        masked = MASKED.setdefault(owner, {})
        base = attribute.removesuffix(ORIG)
        if base == attribute or base not in masked:
            base = attribute
            rename(owner, attribute, attribute + ORIG)
        for ending, mask in masks.items():
            owner.register_buffer(base + ending, mask)
        masked[base] = [*masked.get(base, ()), *masks]  # a new list, as copies of the module share the old one
        if not isinstance(owner, MaskLoading):
            owner.register_load_state_dict_pre_hook(widen_masks)


def replace_mask(held: Held, mask: Tensor, ending: str) -> None:
    """Put ``mask`` in place of the parameter's mask with this ending."""
    for owner, attribute in held:
        owner._buffers[attribute.removesuffix(ORIG) + ending] = mask


def unregister_masks(held: Held) -> None:
    """Give a parameter its own name back and drop its masks; its values do not change."""
    for owner, attribute in held:
        base = attribute.removesuffix(ORIG)
        rename(owner, attribute, base)
        masked = MASKED[owner]
        for ending in masked.pop(base):
            del owner._buffers[base + ending]
        if not masked:
            MASKED.pop(owner)


def rename(owner: nn.Module, old: str, new: str) -> None:
    """Give a parameter of a module another name at the same place of the order, by which an optimizer's state finds it."""
    renamed = {new if key == old else key: value for key, value in owner._parameters.items()}
    owner._parameters.clear()
    owner._parameters.update(renamed)
