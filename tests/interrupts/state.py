"""What a call may leave changed: the process, a model, example inputs, a graph."""

from __future__ import annotations

import gc
import logging
import math
import operator
import random
import signal
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules import transformer
from torch.utils import _pytree as pytree

_OWNERS = (nn.Module, Tensor, torch._C.TensorBase, F, transformer, math, operator, torch, torch.compiler, fx.GraphModule)


def of_process() -> dict[str, Any]:
    """Return the settings of the process and of this thread, by name, comparable by ``==``."""
    cuda = torch.backends.cuda
    found: dict[str, Any] = {
        "fast path of attention": torch.backends.mha.get_fastpath_enabled(),
        "kernels of attention": (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()),
        "oneDNN": torch.backends.mkldnn.enabled,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "garbage collector": gc.isenabled(),
        "defaults": (torch.get_default_dtype(), torch._C._get_default_device()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "modes": (torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()),
        "levels": len(torch._C._functorch.get_interpreter_stack() or ()),
        "compiling": (
            torch.compiler.is_compiling(),
            torch.compiler.is_exporting(),
            fx._symbolic_trace.is_fx_symbolic_tracing(),
        ),
        "warnings": ([*warnings.filters], warnings.showwarning),
        "logging": logging.root.manager.disable,
        "random numbers": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
        "hooks of modules": nn.modules.module._has_any_global_hook(),
        "signals": signal.getsignal(signal.SIGINT),
    }
    for owner in _OWNERS:
        found |= {f"{owner.__name__}.{name}": id(value) for name, value in vars(owner).items() if name != "__warningregistry__"}
    return found


def of_modules(model: nn.Module) -> dict[str, Any]:
    """Return the attributes of all modules of a model, with the values of tensors and the contents of containers."""
    return {f"{path}.{name}": _content(value) for path, module in model.named_modules() for name, value in vars(module).items()}


def of_values(value: Any) -> Any:
    """Return the tensors of nested inputs as lists of numbers."""
    return [_content(leaf) for leaf in pytree.tree_leaves(value)]


def of_graph(gm: fx.GraphModule) -> dict[str, Any]:
    """Return what a graph computes and holds: its nodes, tensors and masks."""
    gm.graph.lint()
    nodes = [(n.op, str(n.target), str(n.args), str(n.kwargs)) for n in gm.graph.nodes]
    return {"nodes": nodes, "code": gm.code, **{name: _content(t) for name, t in gm.state_dict().items()}}


def _content(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value) if isinstance(value, nn.Parameter) else None, value.dtype, value.requires_grad, value.tolist()
    if isinstance(value, dict):
        return type(value), {key: _content(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [_content(part) for part in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value if isinstance(value, int | float | str | set | bool) else id(value)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names whose values differ."""
    missing = object()
    return [name for name in {**before, **after} if before.get(name, missing) != after.get(name, missing)]
