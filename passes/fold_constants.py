"""Fold: let biases take in the contributions of constant channels, so that the channels can go."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from fxprune.analysis.remaining import Remaining
from fxprune.errors import ShrinkError
from fxprune.graph.masks import find_parameter
from fxprune.graph.paths import holders, join, split, value_at
from fxprune.passes.graph_pass import GraphPass
from fxprune.torch_internals.tensors import parameter_like
from fxprune.zeros.folds import Fold


def amounts_of(gm: fx.GraphModule, kept: Remaining, folds: Sequence[Fold]) -> list[Tensor]:
    """Return the amount that each bias takes in: a tensor of one number for each output left, in float64.

    The weights have lost nothing yet; ``kept`` says what will be left of their axes.
    """
    amounts: list[Tensor] = []
    with torch.inference_mode(False), torch.no_grad():
        for fold in folds:
            matrix = find_parameter(gm, fold.weight).detach().double()
            # Without a border each place of a kernel meets the same number.
            matrix = matrix.T if fold.inputs_first else matrix.flatten(2).sum(2) if matrix.dim() > 2 else matrix
            per_group = torch.from_numpy(fold.numbers.copy()).to(matrix).view(-1, matrix.shape[1])
            every = torch.einsum("goi,gi->go", matrix.view(len(per_group), -1, matrix.shape[1]), per_group).reshape(-1)
            amounts.append(every[torch.from_numpy(kept.index(fold.outputs)).to(every.device)])
    return amounts


@dataclasses.dataclass(frozen=True)
class FoldConstants(GraphPass):
    """Pass: add to the biases of a graph that was made smaller; a layer without a bias gets one.

    Biases are new parameters: other graphs may hold the old ones. The amounts are from :func:`amounts_of`.
    """

    folds: Sequence[Fold]
    amounts: Sequence[Tensor]

    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Write the biases, in place."""
        wanted = [(fold, amount) for fold, amount in zip(self.folds, self.amounts, strict=True) if amount.any()]
        for fold, amount in wanted:
            old = find_parameter(gm, fold.weight if fold.bias is None else fold.bias)
            total = amount if fold.bias is None else old.detach().double() + amount
            with torch.inference_mode(False):
                values = total.to(old.dtype).clone()
                bias = nn.Parameter(values, old.requires_grad) if fold.bias is None else parameter_like(old, values)
            if fold.bias is None:
                _give_bias(gm, fold, bias)
            else:
                for owner, attribute in holders(gm)[old]:
                    owner._parameters[attribute] = bias
        return bool(wanted)


def _give_bias(gm: fx.GraphModule, fold: Fold, bias: nn.Parameter) -> None:
    node = next((node for node in gm.graph.nodes if node.name == fold.node), None)
    if node is None:
        raise ShrinkError(
            f"node {fold.node!r}, whose bias takes in constant channels, was written out and has another name now"
        )
    if node.op == "call_module":
        gm.get_submodule(str(node.target)).register_parameter("bias", bias)
        return
    path, last = split(fold.weight)
    owner = gm.get_submodule(path)
    name = last.replace("weight", "bias") if "weight" in last else f"{last}_bias"
    while value_at(owner, name) is not None:  # another call of the same weight took it
        name = f"{name}_folded"
    owner.register_parameter(name, bias)
    with gm.graph.inserting_before(node):
        read = gm.graph.get_attr(join(path, name))
    if len(node.args) >= 2:
        node.args = (*node.args[:2], read, *node.args[3:])
    else:
        node.update_kwarg("bias", read)
