"""Small inputs that show what the example's show: short sequences, small images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, fx

from fxprune.errors import FxpruneError
from fxprune.functional import layers
from fxprune.graph.interpreter import NodeByNode, NodeRunner, in_order
from fxprune.torch_internals.tensors import pytree
from fxprune.verification.inputs import Inputs, batch_size
from fxprune.verification.subject import Subject

Shapes = Mapping[str, Sequence[tuple[int, ...]]]
"""The shapes of the tensors in each node's value, by node name."""

_SMALL = 8  # a size that is not worth a try


def small_inputs(gm: fx.GraphModule, inputs: Inputs, shapes: Shapes | None) -> Inputs:
    """Return the inputs cut to smaller sizes in all dimensions but the batch, as far as the graph shows as much on them.

    Equal sizes are one size: the height and width of an image, the lengths of tokens and of their mask. A size is cut to
    the smallest at which every node runs, and no dimension of a node's value that had several positions is left with less than
    two. A softmax over one key or a pooling of one place would hide a fault. A ResNet-50 for images of 224 x 224 is compared on
    64 x 64, where the maps of its last stage are 2 x 2.

    Sizes that the graph checks, as it has them as constants, stay. So do inputs with integers on a device other than the CPU,
    where an index out of range is an error that nobody can catch.

    Args:
        gm: the graph; it runs in eval mode, without gradients, and does not change.
        inputs: inputs of the graph.
        shapes: what the nodes give for inputs like the example; without them the inputs stay.
    """
    tensors = [t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)]
    if not shapes or any(t.device.type != "cpu" and not t.is_floating_point() for t in tensors):
        return inputs
    batch = batch_size(gm, inputs)
    sizes = {size for tensor in tensors for size in tensor.shape if size > _SMALL}
    for size in sorted(sizes - _checked(gm), reverse=True):
        cut = partial(_cut, inputs, batch, size)
        smallest = _smallest(_options(size, shapes), partial(_fits, gm, shapes, cut))
        inputs = inputs if smallest is None else cut(smallest)
    return inputs


def _checked(gm: fx.GraphModule) -> set[int]:
    """Return the sizes that a graph demands of its inputs."""
    checks = gm.graph.find_nodes(op="call_function", target=layers.check_shape)
    return {size for node in checks for size in node.args[1] if isinstance(size, int) and size >= 0}


def _options(size: int, shapes: Shapes) -> list[int]:
    """Return, ascending, sizes to try: half, and those that leave 2 of the 7, 14 ... positions that 224 became somewhere."""
    present = {n for of_node in shapes.values() for shape in of_node for n in shape}
    return sorted({size // 2, *(2 * size // n for n in present if n > 4 and size % n == 0)})


def _smallest(options: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """Return the smallest of some ascending numbers that fits; the search starts in the middle, as large ones take long."""
    at = len(options) // 2
    if not fits(options[at]):
        return next(filter(fits, options[at + 1 :]), None)
    while at > 0 and fits(options[at - 1]):
        at -= 1
    return options[at]


def _cut(inputs: Inputs, batch: int | None, size: int, smaller: int) -> Inputs:
    """Return inputs with the first ``smaller`` positions of every dimension of a size, samples aside."""

    def cut(tensor: Tensor) -> Tensor:
        for dim, present in enumerate(tensor.shape):
            if present == size and (dim > 0 or size != batch):
                tensor = tensor.narrow(dim, 0, smaller)
        return tensor

    return inputs.map(cut)


def _fits(gm: fx.GraphModule, shapes: Shapes, cut: Callable[[int], Inputs], smaller: int) -> bool:
    """Tell whether on inputs cut to a size every node runs, and gives several positions where it gave several."""

    def look(node: fx.Node, value: Any) -> None:
        found = [value] if isinstance(value, Tensor) else [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
        for tensor, before in zip(found, shapes.get(node.name, ()), strict=False):
            if len(before) != tensor.dim() or any(now < 2 <= size for now, size in zip(tensor.shape, before, strict=True)):
                raise _TooSmallError

    try:
        values = Inputs(tuple(in_order(gm, cut(smaller))), {})
        Subject(NodeByNode(NodeRunner(gm, after=look)), double=False).run(values, training=False)
    except Exception:  # operators raise any type on operands that do not fit
        return False
    return True


class _TooSmallError(FxpruneError):
    """Ends a run whose sizes are too small."""
