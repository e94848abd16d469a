"""Masks of single elements: put a multiplication by a mask between a parameter and everything that reads it.

``w`` becomes ``w = w_orig * w_mask``, what ``torch.nn.utils.prune.BasePruningMethod.apply_mask`` computes in a hook. A mask
of zeros and ones takes one byte an element; any other keeps the parameter's dtype.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from fxprune.algebra.axes import Flags
from fxprune.errors import PruningAssertionError, PruningTypeError, PruningValueError
from fxprune.graph.captured import as_editable
from fxprune.graph.masks import (
    FLAG,
    MASK,
    ORIG,
    Held,
    Masked,
    all_masked,
    check_prunable,
    fault_of,
    find_masked,
    find_parameter,
    is_binary,
    register_masks,
    replace_mask,
    unregister_masks,
)
from fxprune.graph.metadata import BAKED, LOWERED, MOVED, REMOVED
from fxprune.graph.paths import holders
from fxprune.passes.lower import lower, take_over
from fxprune.passes.raise_leaves import RaiseLeaves, readers
from fxprune.torch_internals.graphs import is_erased


def insert_masks(gm: fx.GraphModule, masks: Mapping[str, Tensor], *, own: bool = False) -> bool:
    """Mask parameters by masks of their shapes, in place; the graph is not recompiled. Returns whether anything changed.

    With ``own`` masks in int8 become buffers without a copy: they are zeros and ones, and nothing else holds them.
    """
    held = holders(as_editable(gm))
    parameters = {name: _maskable(gm, name, mask, held) for name, mask in masks.items()}
    first: dict[nn.Parameter, str] = {}
    for name, parameter in parameters.items():
        other = first.setdefault(parameter, name)
        if other != name and not masks[name].is_meta and not bool((masks[name] == masks[other]).all()):
            raise PruningValueError(f"{name!r} and {other!r} are one tied parameter, but their masks differ")
    compact = {
        name: masks[name] if own and masks[name].dtype == FLAG else compact_mask(masks[name], parameter)
        for name, parameter in parameters.items()
    }
    modified = lower(gm, parameters.values())
    return put_masks(gm, {name: {MASK: mask} for name, mask in compact.items()}) or modified


def put_masks(gm: fx.GraphModule, masks: Mapping[str, Mapping[str, Tensor]]) -> bool:
    """Multiply parameters, written out already, by masks; tell whether anything changed. The graph is not recompiled.

    The masks stand by name and ending, as in ``{"fc.weight": {"_mask0": mask}}``, and broadcast to the parameter's shape; see
    :class:`fxprune.graph.masks.Masked`. Of several names of one parameter the first counts.
    """
    held, reads, names = holders(gm), readers(gm), dict(gm.named_parameters(remove_duplicate=False))
    present = {name: masked for masked in all_masked(gm) for name in masked.names}
    modified, seen = False, set[nn.Parameter]()
    for name, given in masks.items():
        masked = present.get(name)
        parameter, old = (names[name], {}) if masked is None else (masked.orig, masked.masks)
        if parameter in seen:
            continue
        seen.add(parameter)
        for ending in given.keys() & old.keys():
            before, mask = old[ending], given[ending]
            if before.dtype != mask.dtype or before.is_meta or not torch.equal(before, mask):
                replace_mask(held[parameter], mask, ending)
                modified = True
        fresh = {ending: mask for ending, mask in given.items() if ending not in old}
        if fresh:
            register_masks(held[parameter], fresh)
            _multiply(gm.graph, reads.get(parameter, []), list(fresh), masked is not None)
            modified = True
    return modified


def _maskable(gm: fx.GraphModule, name: str, mask: Tensor, held: Mapping[Tensor | None, Held]) -> nn.Parameter:
    parameter = find_parameter(gm, name)
    check_prunable(name, parameter)
    if not isinstance(mask, Tensor):
        raise PruningTypeError(f"the mask of {name!r} must be a tensor, not {type(mask).__name__}")
    if mask.shape != parameter.shape:
        raise PruningAssertionError(
            f"the mask of {name!r} must have the parameter's shape {tuple(parameter.shape)}, got {tuple(mask.shape)}"
        )
    if fault := fault_of(mask, parameter):
        raise PruningTypeError(f"the mask of {name!r} {fault}")
    check_names(name, held[parameter], [MASK])
    return parameter


def check_names(name: str, held: Held, endings: Iterable[str]) -> None:
    """Raise PruningValueError if a parameter, not masked yet, cannot have masks: other attributes have the names."""
    for owner, attribute in held:
        is_free = attribute.removesuffix(ORIG) == attribute or find_masked(owner, attribute.removesuffix(ORIG)) is None
        taken = [attribute + ending for ending in (ORIG, *endings) if hasattr(owner, attribute + ending)] if is_free else []
        if taken:
            raise PruningValueError(
                f"parameter {name!r} cannot be masked: the name {taken[0]!r} is taken by another attribute of its module; give "
                "that another name"
            )


def compact_mask(mask: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return ``mask`` on the parameter's device, in int8 if it is of zeros and ones, else in the parameter's dtype."""
    binary = is_binary(mask)
    dtype = FLAG if binary else parameter.dtype
    mask = mask != 0 if binary else mask  # no cast from complex
    with torch.inference_mode(False):  # the mask takes part in training, wherever it was made
        return mask.detach().to(device=parameter.device, dtype=dtype, memory_format=torch.contiguous_format, copy=True)


def _multiply(graph: fx.Graph, reads: Sequence[fx.Node], endings: Sequence[str], is_masked: bool) -> None:
    """Multiply a parameter, where the graph reads it, by masks; one that ``is_masked`` has a product there already."""
    if is_masked:
        products = [user for orig in reads for user in orig.users if is_product(user)]
    elif reads:
        products, endings = [_insert_product(graph, reads, endings[0])], endings[1:]
    else:  # registered in the model but unused in this graph
        return
    for ending in endings:
        for product in products:
            _add_factor(graph, product, ending)


def _insert_product(graph: fx.Graph, reads: Sequence[fx.Node], ending: str) -> fx.Node:
    # A captured read gives its name and place back when the mask is removed.
    first = next((node for node in reads if not LOWERED.get(node)), reads[0])
    with graph.inserting_before(reads[0]):
        orig = graph.create_node("get_attr", f"{first.target}{ORIG}")
        factor = graph.create_node("get_attr", f"{first.target}{ending}")
        product = graph.call_function(operator.mul, (orig, factor))
    orig.meta.update(first.meta)
    for other in [node for node in reads if node is not first]:
        other.replace_all_uses_with(product)
        graph.erase_node(other)
    if first is not reads[0]:
        MOVED.set(product, True)
    take_over(first, product)
    return product


def _add_factor(graph: fx.Graph, product: fx.Node, ending: str) -> None:
    """Multiply the mask factor of a product by a further mask."""
    orig, present = product.args
    assert isinstance(orig, fx.Node)
    assert isinstance(present, fx.Node)
    with graph.inserting_after(present):
        factor = graph.create_node("get_attr", str(orig.target).removesuffix(ORIG) + ending)
    with graph.inserting_after(factor):
        both = graph.call_function(operator.mul, (present, factor))
    product.args = (orig, both)


def remove_masks(gm: fx.GraphModule, masked: list[Masked]) -> bool:
    """Bake masks and take them out of a graph, in place, and raise the leaf modules that are free of masks then.

    The Parameter objects stay. The graph is not recompiled. Returns whether there was a mask.
    """
    if removed := removed_positions(gm, masked):
        before = BAKED.get(gm) or {}
        BAKED.set(gm, {**before, **{at: flags | before.get(at, False) for at, flags in removed.items()}})
        if left := {at: flags for at, flags in (REMOVED.pop(gm) or {}).items() if at not in removed}:
            REMOVED.set(gm, left)
    for entry in masked:
        with torch.inference_mode(False), torch.no_grad():
            # As in torch: the Parameter stays, its values become a new tensor. A parameter in the same memory stays as it is.
            entry.orig.data = entry.orig.detach() * entry.mask.to(entry.orig.dtype)
    moved = _take_out(gm, masked)
    if masked:
        RaiseLeaves().rewrite(gm)
    _put_back(moved)
    return bool(masked)


def removed_positions(gm: fx.GraphModule, masked: Iterable[Masked]) -> dict[tuple[str, int], Flags]:
    """Return for every axis that a structured mask of these parameters is on a flag for each position that it removes."""
    found, on_meta = dict[tuple[str, int], Flags](), REMOVED.get(gm) or {}
    for entry in masked:
        for dim, mask in entry.by_axis.items():
            if not mask.is_meta:
                found[entry.name, dim] = (mask == 0).reshape(-1).cpu().numpy()
            elif (entry.name, dim) in on_meta:
                found[entry.name, dim] = on_meta[entry.name, dim]
    return found


def drop_structured_masks(gm: fx.GraphModule) -> None:
    """Take the masks of axes out of a graph, in place, without baking them; it is not recompiled, and nothing is raised."""
    structured = [entry for entry in all_masked(gm) if entry.by_axis]
    REMOVED.pop(gm)
    _put_back(_take_out(gm, structured))
    put_masks(gm, {entry.name: {MASK: entry.masks[MASK]} for entry in structured if MASK in entry.masks})


def _take_out(gm: fx.GraphModule, masked: list[Masked]) -> list[fx.Node]:
    """Let a graph read masked parameters themselves again; returns the reads that products had moved from their places."""
    held, reads = holders(gm), readers(gm)
    for entry in masked:
        unregister_masks(held[entry.orig])
    return [read for entry in masked for read in _erase_products(gm.graph, reads, entry)]


def _put_back(moved: list[fx.Node]) -> None:
    for read in moved:  # it was captured where it is used first
        if read.users and not is_erased(read):
            min(read.users).prepend(read)


def _erase_products(graph: fx.Graph, reads: Mapping[Tensor, list[fx.Node]], entry: Masked) -> list[fx.Node]:
    """Let the graph read a parameter itself again; returns the reads that products had moved from their places."""
    moved, factors = [], [factor for mask in entry.masks.values() for factor in reads.get(mask, ())]
    for orig in reads.get(entry.orig, ()):
        name = str(orig.target).removesuffix(ORIG)
        for product in [user for user in orig.users if is_product(user)]:
            factors += product.all_input_nodes[1:]
            with graph.inserting_before(orig):
                plain = graph.create_node("get_attr", name)
            plain.meta.update(orig.meta)
            if MOVED.pop(product):
                moved.append(plain)
            take_over(product, plain)
        if orig.users:  # another pass reads the parameter as it is
            orig.target = name
        else:
            graph.erase_node(orig)
    while factors:
        factor = factors.pop()
        if not is_erased(factor) and not factor.users:
            factors += factor.all_input_nodes
            graph.erase_node(factor)
    return moved


def is_product(node: fx.Node) -> bool:
    """Tell whether ``node`` multiplies a parameter by its masks."""
    if node.op != "call_function" or node.target is not operator.mul or len(node.args) != 2:
        return False
    orig, factor = node.args
    if not isinstance(orig, fx.Node) or orig.op != "get_attr" or not str(orig.target).endswith(ORIG):
        return False
    return _masked_by(factor) == str(orig.target).removesuffix(ORIG)


def is_factor(node: fx.Node) -> bool:
    """Tell whether ``node`` multiplies masks of one parameter."""
    return node.op == "call_function" and _masked_by(node) is not None


def _masked_by(value: object) -> str | None:
    """Return the name of the parameter whose mask, or product of masks, a node is: "w" of ``w_mask0 * w_mask1``; else None."""
    if not isinstance(value, fx.Node):
        return None
    if value.op == "get_attr":
        found = re.fullmatch(rf"(.*){MASK}\d*", str(value.target))
        return found and found[1]
    if value.op != "call_function" or value.target is not operator.mul or len(value.args) != 2:
        return None
    name, other = map(_masked_by, value.args)
    return name if name == other else None
