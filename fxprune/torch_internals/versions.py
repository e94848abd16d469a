"""Where versions of torch differ: one function for each difference, with why it is there and what breaks without it.

A mend replaces a function of torch for the whole process, once and for good: the function is wrong for every caller.
"""

from __future__ import annotations

import functools
import keyword
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decompositions
from torch.fx import graph as graph_code

VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
"""The version of torch, such as ``(2, 14)``."""


@functools.cache
def mend_lstm_shapes() -> None:
    """Give fake tensors of LSTM states the shape of the real tensors.

    Up to torch 2.12 the decomposition of an LSTM layer squeezes the wrong axis of its last states: for a batch of B the states
    of a network of L layers have the shape ``[L, 1, B, H]`` instead of ``[L, B, H]``. Torch uses it where oneDNN has no kernel:
    for float64 and for projections. Without the mend no rule fits such LSTMs, so they stay whole, and ``torch.export`` records
    wrong shapes.
    """
    if VERSION >= (2, 13):
        return
    layer = decompositions.one_layer_lstm

    @functools.wraps(layer)
    def mended(*args: Any, **kwargs: Any) -> Any:
        out, states = layer(*args, **kwargs)
        return out, tuple(state.squeeze(0) if state.dim() == 3 else state for state in states)

    decompositions.one_layer_lstm = mended


@functools.cache
def mend_keyword_targets() -> None:
    """Let the code of graphs read attributes whose names are keywords of Python, as keys of an ``nn.ModuleDict`` may be.

    Up to torch 2.14 the code says ``self.heads.class``, which is no Python. Without the mend such graphs have no code. Nor have
    those with numbered modules in each other, 200 deep: the code has a call of ``getattr`` for each, in that of the one before.
    """
    format_target = graph_code._format_target

    @functools.wraps(format_target)
    def mended(base: str, target: str) -> str:
        names = target.split(".")
        if len(names) > _DEEPEST:
            base, names = f'{base}.get_submodule("{".".join(names[:-1])}")', names[-1:]
        elif not any(map(keyword.iskeyword, names)):
            return format_target(base, target)
        for name in names:
            base = f"{base}.{name}" if name.isidentifier() and not keyword.iskeyword(name) else f'getattr({base}, "{name}")'
        return base

    graph_code._format_target = mended


_DEEPEST = 90


@functools.cache
def mend_onnx_type_promotion() -> None:
    """Let the ONNX exporter promote types where a graph multiplies a float tensor by a boolean one, as every masked graph does.

    Up to torch 2.12 the exporter runs an operator and takes the first call that it sees for the operator's overload. On
    parameters the first call asks for their device. Without the mend the exporter refuses the graph.
    """
    if VERSION >= (2, 13):
        return
    from torch.onnx._internal.fx.passes import type_promotion  # only where something goes to ONNX: it takes long to import

    class OperatorsOnly(type_promotion._OpTraceDispatchMode):  # type: ignore[misc, name-defined, unused-ignore]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "prim":
                return func(*args, **(kwargs or {}))
            return super().__torch_dispatch__(func, types, args, kwargs or {})

    type_promotion._OpTraceDispatchMode = OperatorsOnly  # type: ignore[attr-defined, unused-ignore]


@functools.cache
def give_fused_attention_forms() -> list[torch.library.Library]:
    """Register meta kernels for the fused kernels of ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer``.

    Torch 2.9 cannot run the fused kernels on fake tensors, later versions can. Without this a model that calls them in eval
    mode is compared with its graph by numbers alone, not as a program. Returns the libraries, which hold the registrations.
    """
    forms = {
        "_native_multi_head_attention": _multi_head_attention_form,
        "_transformer_encoder_layer_fwd": _transformer_layer_form,
    }
    made = []
    for name, form in forms.items():
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):
            made.append(torch.library.Library("aten", "IMPL", "Meta"))
            made[-1].impl(name, form)
    return made


def _multi_head_attention_form(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_head: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return tensors of the forms of the output ``[batch, length, width]`` and of the weights, empty if not needed."""
    batch, length, _ = query.shape
    weights = [batch, length, length] if average_attn_weights else [batch, num_head, length, length]
    is_empty = not need_weights or query.numel() == 0
    return query.new_empty(query.shape), query.new_empty([0] if is_empty else weights)


def _transformer_layer_form(src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return src.new_empty(src.shape)
