"""What a trace notes on nodes."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.graph.metadata import NN_MODULE_STACK


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).relu()


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.fails = Block(), nn.Sequential(Fails())

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(self.block(x))
        try:
            return self.fails(y)
        except NotImplementedError:
            return self.block(y).tanh()


def test_each_node_names_the_modules_that_are_called_around_it() -> None:
    x = torch.randn(2, 4)
    gm = fxprune.capture(Net(), x, frontend="trace")

    def stack(node: fx.Node) -> list[tuple[str, str, type]]:
        return [(key, path, kind) for key, (path, kind) in (NN_MODULE_STACK.get(node) or {}).items()]

    calls = [("block", "block.fc"), ("block@1", "block.fc@1"), ("block@2", "block.fc@2")]
    assert [stack(node) for node in gm.graph.find_nodes(op="call_module")] == [
        [(block, "block", Block), (layer, "block.fc", nn.Linear)] for block, layer in calls
    ]
    methods = [node for node in gm.graph.nodes if node.op == "call_method"]
    assert [stack(node) for node in methods] == [*([(block, "block", Block)] for block, _ in calls), []]
