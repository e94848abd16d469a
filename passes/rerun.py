"""Rerun: check a node that runs several operators by running it on fake tensors of the sizes that are left."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fxprune.dependencies import Step
from fxprune.passes.numbers import Numbers, differ
from fxprune.rules import POINTWISE, find_rule
from fxprune.rules.call import bound_arguments
from fxprune.rules.labels import Label
from fxprune.rules.shrinking import shrunk_arguments


class _Record(TorchDispatchMode):
    """Notes the calls that the analysis would see."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[OpOverload, dict[str, Any], list[tuple[int, ...]]]] = []

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if find_rule(func, lambda: POINTWISE) is None and func._can_decompose():
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        shapes = [tuple(r.shape) for r in pytree.tree_leaves(result) if isinstance(r, Tensor)]
        if shapes or func._schema.is_mutable:
            self.calls.append((func, bound_arguments(func, args, kwargs), shapes))
        return result


def comes_out_right(gm: fx.GraphModule, node: fx.Node, steps: Sequence[Step], numbers: Numbers) -> bool:
    """Tell whether every operator that a node runs gets the sizes that it needs.

    Args:
        gm: the graph; the node's arguments and module are those that it has now.
        node: the node.
        steps: its calls as analysed.
        numbers: the plain values.
    """
    mode, record = FakeTensorMode(allow_non_fake_inputs=True), _Record()
    given = [pair for step in steps if step.call is not None for pair in step.call.given()]

    def stand_in(leaf: Any) -> Any:
        if not isinstance(leaf, Label):
            return leaf
        # A tensor that was passed through has another label since; what has its shape is the best guess then.
        alike = [tensor for label, tensor in given if label is leaf] or [t for label, t in given if label.shape == leaf.shape]
        like = alike[0] if alike else None
        with torch.inference_mode(False), mode:
            return torch.empty(numbers.kept.shape(leaf), dtype=None if like is None else like.dtype)

    def present(value: Any) -> Any:
        return pytree.tree_map(stand_in, numbers.now(value))

    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    # Sizes that do not fit are an answer here, and torch would print them.
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        args, kwargs = present(node.args), present(node.kwargs)
        with torch.inference_mode(), mode, record:
            if node.op == "call_module":
                module = gm.get_submodule(str(node.target))
                # Fake tensors in place of its own: a module in train mode counts its calls.
                held = {n: _stand_in(mode, t) for n, t in (*module.named_parameters(), *module.named_buffers())}
                functional_call(module, held, args, kwargs)
            elif node.op == "call_method":
                getattr(args[0], str(node.target))(*args[1:], **kwargs)
            elif callable(node.target):
                node.target(*args, **kwargs)
    except Exception:
        return False
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        logger.setLevel(level)
    return len(record.calls) == len(steps) and all(
        _is_right(step, found, numbers) for step, found in zip(steps, record.calls, strict=True)
    )


def _stand_in(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """Return a fake tensor in place of a module's own; a counter has its value, which the module may ask for."""
    if tensor.numel() != 1 or tensor.is_floating_point() or tensor.is_meta:
        return mode.from_tensor(tensor)
    with _disable_current_modes():
        value = tensor.clone()
    return mode.fake_tensor_converter.from_real_tensor(mode, value, make_constant=True)


def _is_right(step: Step, found: tuple[OpOverload, dict[str, Any], list[tuple[int, ...]]], numbers: Numbers) -> bool:
    op, arguments, shapes = found
    call = step.call
    assert call is not None
    if op is not call.op or shapes != [numbers.kept.shape(label) for label in step.results]:
        return False
    wanted = call.arguments | shrunk_arguments(call, step.results, numbers.kept)
    return not any(differ(wanted[name], value) for name, value in arguments.items())
