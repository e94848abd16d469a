"""Nodes know the lines of the model's code that they come from."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, nn

import fxprune
from fxprune.graph.source_lines import code_line


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1  # the line


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Inner(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_the_lines_are_the_models_from_outside_inwards() -> None:
    gm = fxprune.capture(Outer(), torch.ones(2, 3), frontend="trace")
    (node,) = gm.graph.find_nodes(op="call_function", target=operator.add)
    number = Inner.forward.__code__.co_firstlineno + 1
    assert code_line(node) == f"{__file__}:{number}"
    assert node.stack_trace.splitlines() == [
        f'File "{__file__}", line {Outer.forward.__code__.co_firstlineno + 1}, in forward',
        "    return self.inner(x)",
        f'  File "{__file__}", line {number}, in forward',
        "    return x + 1  # the line",
    ]


def test_a_node_that_no_line_is_known_of() -> None:
    assert code_line(torch.fx.Graph().placeholder("x")) == ""
