"""Buffers of a graph: which there are, and copies of those that it shares with others."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.graph.paths import all_modules
from fxprune.torch_internals.tensors import memory_of


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
    taken = {memory_of(parameter) for module in modules for parameter in module._parameters.values() if parameter is not None}
    users = Counter(map(memory_of, {id(buffer): buffer for _, _, buffer in found}.values()))
    copies: dict[int, Any] = {}
    with torch.inference_mode(False), torch.no_grad():
        for module, attribute, buffer in found:
            if (memory := memory_of(buffer)) in taken:
                continue
            if id(buffer) not in copies:
                alone = users[memory] == 1 and buffer.layout is torch.strided and buffer.is_contiguous()
                copies[id(buffer)] = buffer.detach().clone() if alone else copy.deepcopy(buffer.detach(), copies)
            module._buffers[attribute] = copies[id(buffer)]
