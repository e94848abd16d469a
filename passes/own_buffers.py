"""Own buffers: give a graph copies of the buffers that it shares with other graphs."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.passes.graph_pass import GraphPass
from fxprune.torch_internals.tensors import memory_of


@dataclasses.dataclass(frozen=True)
class OwnBuffers(GraphPass):
    """Pass: put copies in place of buffers that are ``shared`` with other graphs.

    Buffers that share memory keep sharing it; a buffer in the memory of a parameter stays. Ensures: no other buffer is shared.
    """

    shared: Sequence[Tensor]

    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Replace the buffers, in place."""
        found = self._foreign(gm)
        users = Counter(map(memory_of, {buffer for _, _, buffer in found}))
        copies: dict[int, Any] = {}
        with torch.inference_mode(False), torch.no_grad():
            for module, attribute, buffer in found:
                if id(buffer) not in copies:
                    alone = users[memory_of(buffer)] == 1 and buffer.layout is torch.strided and buffer.is_contiguous()
                    copies[id(buffer)] = buffer.detach().clone() if alone else copy.deepcopy(buffer.detach(), copies)
                module._buffers[attribute] = copies[id(buffer)]
        return bool(found)

    def ensures(self, gm: fx.GraphModule) -> None:
        """Raise AssertionError if a buffer is shared."""
        assert not self._foreign(gm), "a buffer is shared"

    def _foreign(self, gm: fx.GraphModule) -> list[tuple[nn.Module, str, Tensor]]:
        modules, foreign = list(gm.modules()), set(self.shared)
        taken = {memory_of(p) for module in modules for p in module._parameters.values() if p is not None}
        held = [(m, name, b) for m in modules for name, b in m._buffers.items() if b is not None and b in foreign]
        return [(module, name, buffer) for module, name, buffer in held if memory_of(buffer) not in taken]
