"""All keys under which fxprune keeps facts in ``meta`` of graphs and nodes, and in attributes of modules and tensors.

torch.fx carries ``meta`` of a graph and of its nodes through ``copy.deepcopy``; copies share the values. Each
key says whether its values survive pickling and a shrink. Facts with a class of their own are attributes of that class:
``Lowered.calls`` and ``Lowered._leaf_type`` (copied and pickled).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Key(Generic[T]):
    """A key of ``meta``, for values of one type: ``MOVED.set(node, True)`` writes ``node.meta["fxprune_moved"] = True``."""

    name: str  # never changes: stored graphs have it
    pickled: bool = True  # whether the value is there after pickling
    shrunk: bool = True  # whether the value is there after a shrink

    def _dict(self, holder: Any) -> Any:
        return holder.meta

    def get(self, holder: Any) -> T | None:
        """Return the value on a graph or node, or None."""
        return self._dict(holder).get(self.name)  # type: ignore[no-any-return]

    def __getitem__(self, holder: Any) -> T:
        return self._dict(holder)[self.name]  # type: ignore[no-any-return]

    def set(self, holder: Any, value: T) -> None:
        """Write the value."""
        self._dict(holder)[self.name] = value

    def setdefault(self, holder: Any, value: T) -> T:
        """Return the value on a graph or node; write ``value`` first if there is none."""
        return self._dict(holder).setdefault(self.name, value)  # type: ignore[no-any-return]

    def pop(self, holder: Any) -> T | None:
        """Take the value away and return it, or None."""
        return self._dict(holder).pop(self.name, None)  # type: ignore[no-any-return]


class Attribute(Key[T]):
    """A key of the ``__dict__`` of modules or tensors."""

    def _dict(self, holder: Any) -> Any:
        return vars(holder)


# -- meta of graphs ------------------------------------------------------------------------------------------------------

METHODS = Key[dict[str, Any]]("fxprune.methods", shrunk=False)
"""By the first name of a parameter the pruning method that masked it. Written and read by ``methods/``; read by
``reports/summary.py``; dropped by finalize and shrink."""

KEPT = Key[Mapping[str, tuple[Tensor | None, ...]]]("fxprune.kept")
"""The positions of the first graph that a parameter or buffer still holds, by name and dimension; None where all are left.
Written by ``passes/slice_tensors.py``; read by ``verification/verify.py``."""

BAKED = Key[Mapping[tuple[str, int], Any]]("fxprune.baked", shrunk=False)
"""By parameter and dimension a flag for each position that a baked structured mask removed. Written by
``passes/mask_parameters.py``, read by ``passes/unmask.py``; dropped by shrink."""

REMOVED = Key[Mapping[tuple[str, int], Any]]("fxprune.removed", shrunk=False)
"""By parameter and dimension a flag for each position that a structured mask on the meta device removes, where the mask has no
values. Written by ``passes/mask_units.py``, read by ``passes/mask_parameters.py``; dropped with the masks."""

KEEPS = Key[dict[str, list[tuple[str, Any, int]]]]("fxprune.keeps", shrunk=False)
"""By keep vector, a buffer ``fxprune_keep_0``, ..., the places (node, input, dimension) whose corrections read it. Written,
read and dropped with the corrections by ``passes/compensate.py``."""

WHOLE = Key[dict[str, str]]("fxprune.whole")
"""By node why its axes are kept whole: it could not be rewritten. The name of a node inside a part that differs by mode starts
with that of the part. Written by ``pipeline.py``; read by ``analysis/``."""

# -- meta of nodes -------------------------------------------------------------------------------------------------------

MODULE = Key[str]("fxprune_module")
"""Path of the module whose ``forward`` made the node. Written by the front ends; read by ``frontends/modes/``."""

IN_PLACE = Key[bool]("fxprune_in_place")
"""Whether the model's code writes ``x += y`` here. Written by ``frontends/proxies.py``; read by ``passes/in_place.py``."""

LOWERED = Key[bool]("fxprune_lowered", shrunk=False)
"""``passes/lower.py`` made the node, as an operand of a written-out module; it goes when the module is raised. Read by
``passes/mask_parameters.py``: a product with a mask takes the place of a captured read rather than that of such a node."""

CALL = Key[int]("fxprune_call")
"""The index in ``Lowered.calls`` of the call whose result the node is. Written by ``passes/lower.py``; read by
``passes/raise_leaves.py``, to tell apart calls with the same nodes."""

PATH = Key[str]("fxprune_path")
"""The path by which the graph called the written-out module. Written and read with ``CALL``."""

MOVED = Key[bool]("fxprune_moved", shrunk=False)
"""Whether a product with a mask stands before the place of the captured read. Only in ``passes/mask_parameters.py``."""

ORIGINAL = Key[tuple[Any, ...]]("fxprune_original", shrunk=False)
"""The call that a correction replaced, nodes as ``Slot`` values. Only in ``passes/compensate.py``."""

KEPT_OF_VALUE = Key[Any]("fxprune_kept", pickled=False)
"""The positions that the last shrink left of the node's value, in its structure. Written by ``passes/shrink_units.py``; read by
``verification/first_difference.py``, which passes over nodes without it."""

VAL = Key[Any]("val", pickled=False)
"""torch's: example value, as fake tensors. Written by capture and, on inputs, by shrink, which drops it from shrunk nodes."""

DESCRIBED = Key[Any]("fxprune_example")
"""On the inputs of a graph that was pickled: the example value, with a ``Description`` in place of each tensor. Written by
``graph/pickling.py``; read by ``abstract/fakes.py``, which makes ``val`` of it."""

STACK_TRACE = Key[str]("stack_trace")
"""torch's: the lines of the model's code behind the node. Written by the front ends; read by ``graph/source_lines.py``."""

NN_MODULE_STACK = Key[Mapping[str, tuple[str, Any]]]("nn_module_stack", pickled=False)
"""torch's: path and class of the modules being called. Not pickled, as classes may be local. Written by the front ends."""

IS_WRAPPED = Key[bool]("is_wrapped")
"""torch's: the node calls a function given to ``fx.wrap``; the code of the graph repeats that. Written and read by torch.fx."""

NODE_KEYS: tuple[Key[Any], ...] = (
    MODULE, IN_PLACE, LOWERED, CALL, PATH, MOVED, ORIGINAL, KEPT_OF_VALUE, VAL, DESCRIBED, STACK_TRACE, NN_MODULE_STACK,
    IS_WRAPPED,
)  # fmt: skip

# -- attributes ----------------------------------------------------------------------------------------------------------

MASKED = Attribute[dict[str, list[str]]]("_fxprune_masked", shrunk=False)
"""On a module, the endings of the names of its masks, by masked attribute: a model may have such names of its own. Only in
``graph/masks.py``."""

LABEL = Attribute[Any]("_fxprune_label", pickled=False, shrunk=False)
"""On a fake tensor, its ``Label`` during one analysis. Only in ``analysis/analyze.py``."""

FIXED_DTYPE = Attribute[str]("_fxprune_fixed_dtype")
"""On a captured graph, the line of the model's code that asks for a dtype, of which the graph has the answer as a constant.
Written by ``frontends/form_guards.py``; read by ``graph/captured.py``."""

OPTIONAL = Attribute[dict[str, Any]]("_fxprune_optional")
"""On an exported graph, the inputs that a call may omit, with the values that the graph has as constants. Written by
``frontends/attempt.py``; read by ``graph/captured.py``."""

EXAMPLE = Attribute[Any]("_fxprune_example", pickled=False)
"""On a captured graph, the inputs that it was captured with, positional and by name. Written by ``frontends/capture.py``; read
by ``analysis/`` and ``pipeline.py``; a deep copy has them."""

SHAPES = Attribute[Mapping[str, Sequence[tuple[int, ...]]]]("_fxprune_shapes", pickled=False)
"""On a graph that was just shrunk, the shapes of the tensors in each node's value before, for inputs like the example. Written
by ``passes/shrink.py`` and ``pipeline.py``; taken away by ``verification/verify.py``."""

ANALYSIS = Attribute[tuple[Any, Any]]("_fxprune_analysis", pickled=False, shrunk=False)
"""On a captured graph, its last analysis and fingerprint; no copy has them. Only in ``analysis/fingerprint.py``."""
