"""Slice: replace parameters and buffers by their slices at the positions that are left."""

from __future__ import annotations

import dataclasses

import torch
from torch import fx, nn

from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.remaining import Places, Remaining, at_places
from fxprune.analysis.sources import named_tensors
from fxprune.functional.leaf_cards import card_of, update_sizes
from fxprune.graph.metadata import KEPT
from fxprune.graph.paths import holders, value_at
from fxprune.passes.graph_pass import GraphPass
from fxprune.passes.lower import lower
from fxprune.torch_internals.tensors import parameter_like


@dataclasses.dataclass(frozen=True)
class SliceTensors(GraphPass):
    """Pass: slice all parameters and buffers that lose positions, and note which positions are left.

    The graph does not run before :class:`fxprune.passes.repair.repair.Repair` has rewritten the sizes in its code.

    Requires: the modules are the graph's own, and no parameter is masked. Ensures: each tensor has the sizes that are left.
    """

    deps: Dependencies
    kept: Remaining

    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Slice, in place."""
        lowered = self._lower_what_cannot_shrink(gm)
        left: dict[str, Places] = {}
        held, named = holders(gm), dict(named_tensors(gm))
        sliced: dict[nn.Module, None] = {}
        with torch.inference_mode(False), torch.no_grad():
            for tracked in self.deps.tracked:
                if not self.kept.shrinks(tracked.label):
                    continue
                index = self.kept.places_of(tracked.label)
                left |= dict.fromkeys(tracked.names, index)
                tensors = list(dict.fromkeys(map(named.__getitem__, tracked.names)))  # which share their memory
                small = at_places(tensors[0].detach(), index)
                for old in tensors:
                    new = parameter_like(old, small) if isinstance(old, nn.Parameter) else small.detach()
                    for module, attribute in held[old]:
                        setattr(module, attribute, new)
                        sliced[module] = None
        for module in sliced:
            update_sizes(module)
        before = dict(KEPT.get(gm) or {})
        KEPT.set(gm, before | {name: _of_those(before[name], i) if name in before else i for name, i in left.items()})
        return lowered or bool(left)

    def ensures(self, gm: fx.GraphModule) -> None:
        """Raise AssertionError if a tensor has other sizes than those that are left."""
        for tracked in self.deps.tracked:
            for name in tracked.names if self.kept.shrinks(tracked.label) else ():
                assert tuple(value_at(gm, name).shape) == self.kept.shape(tracked.label), f"{name!r} has other sizes"

    def _lower_what_cannot_shrink(self, gm: fx.GraphModule) -> bool:
        """Write out the modules that lose positions and have no attributes for it, such as multi-head attention."""
        modules = dict(gm.named_modules(remove_duplicate=False))
        called = [(node, modules[str(node.target)]) for node in gm.graph.find_nodes(op="call_module")]
        stiff = [(node, module) for node, module in called if card_of(type(module)).shrinks_written_out]
        if not stiff:
            return False
        smaller = {value_at(gm, name) for t in self.deps.tracked if self.kept.shrinks(t.label) for name in t.names}
        return lower(gm, (), {node.name for node, module in stiff if not smaller.isdisjoint(module.parameters())})


def _of_those(before: Places, index: Places) -> Places:
    """Return an index among positions left before as positions of the first graph: [1, 3, 4] and [0, 2] give [1, 4]."""
    pairs = zip(before, index, strict=True)
    return tuple(old if new is None else new if old is None else old[new] for old, new in pairs)
