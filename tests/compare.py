"""Comparing a model with a graph: outputs, and what running it changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors of a model's output; a dataclass or mapping counts by its fields."""
    if isinstance(output, Mapping):
        output = dict(output)
    elif hasattr(output, "__dataclass_fields__"):
        output = dict(vars(output))
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def relative_error(candidate: Any, reference: Any) -> float:
    """Return the largest difference between two outputs, relative to the largest value of each tensor."""
    ours, theirs = tensors_of(candidate), tensors_of(reference)
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    assert ours
    return max(
        float((a.detach().double() - b.detach().double()).abs().max() / (b.detach().double().abs().max() + 1e-30))
        for a, b in zip(ours, theirs, strict=True)
    )


def run(model: Any, args: Any, kwargs: Any = None, seed: int = 0) -> Any:
    """Run ``model`` with a fixed seed."""
    torch.manual_seed(seed)
    return model(*args, **(kwargs or {}))


def assert_same(candidate: nn.Module, reference: nn.Module, args: Any, kwargs: Any = None, tolerance: float = 1e-9) -> None:
    """Assert that both compute the same in both modes with equal seeds, and leave equal buffers behind.

    Works on copies, so the running statistics of the two stay as they are.
    """
    for training in (False, True):
        ours, theirs = copy.deepcopy(candidate).train(training), copy.deepcopy(reference).train(training)
        error = relative_error(run(ours, args, kwargs), run(theirs, args, kwargs))
        assert error <= tolerance, f"training={training}: relative error {error}"
        after = dict(ours.named_buffers())
        for name, buffer in theirs.named_buffers():
            if name.endswith("_mask") and name not in after:  # the candidate has it baked in
                continue
            assert torch.allclose(after[name], buffer, rtol=0, atol=1e-9), name
