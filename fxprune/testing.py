"""What a legal graph is, written down once; for tests of passes, ours and users'."""

from __future__ import annotations

from torch import fx

from fxprune.graph.masks import MASK, ORIG, Masked, all_masked, is_binary
from fxprune.graph.paths import value_at
from fxprune.passes.mask_parameters import is_factor, is_product


class IllegalGraphError(AssertionError):
    """A graph breaks one of the rules that every pass keeps."""


def check_graph(gm: fx.GraphModule) -> None:
    """Raise :class:`IllegalGraphError` unless ``gm`` is a legal graph.

    The rules: the graph passes torch.fx's own lint; the compiled code is that of the graph; whatever is read by get_attr
    exists; a masked parameter is read by the product with its mask and by nothing else; a mask has its parameter's shape and
    takes one byte an element, or is not of zeros and ones; no parameter is held both plain and masked.

    Args:
        gm: the graph; only read.

    Example:
        >>> check_graph(MyPass()(gm).graph_module)
    """
    gm.graph.lint()
    _require(gm.code == gm.graph.python_code("self").src, "the graph was changed without recompile()")
    for node in gm.graph.find_nodes(op="get_attr"):
        _require(value_at(gm, str(node.target)) is not None, f"node {node.name!r} reads {node.target!r}, which does not exist")
    for masked in all_masked(gm):
        _check_masked(gm, masked)


def _check_masked(gm: fx.GraphModule, masked: Masked) -> None:
    shape = masked.orig.shape
    for ending, mask in masked.masks.items():
        whole = ending == MASK
        fits = mask.shape == shape if whole else all(n in (1, size) for n, size in zip(mask.shape, shape, strict=True))
        _require(fits, f"the mask {masked.name + ending!r} has another shape")
        compact = not whole or mask.element_size() == 1 or not is_binary(mask)
        _require(compact, f"the mask of {masked.name!r} takes more than one byte an element")
    for name in masked.names:
        for suffix in (ORIG, *masked.masks):
            for read in gm.graph.find_nodes(op="get_attr", target=name + suffix):
                bare = [user.name for user in read.users if not (is_product(user) or is_factor(user))]
                _require(not bare, f"nodes {bare} read {read.target!r} past its mask")
        _require(not gm.graph.find_nodes(op="get_attr", target=name), f"the graph reads {name!r}, which is masked")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise IllegalGraphError(message)
