"""Small modules around layers that say sizes of their own: attention, recurrence, grouped convolution, norms, calls by mode."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.passes.repair.cases import ALL, HALF, INNER, OUTER, Case

IMAGE = (3, 6, 6)


def _attention(left: dict[str, tuple[int, ...]], *, options: dict[str, Any] | None = None, **given: Any) -> Case:
    """Return self-attention on what ``a`` gives, its weights not asked for."""
    return Case(
        lambda m, x: m.b(m.attend(*(m.a(x),) * 3, need_weights=False)[0]),
        left,
        lambda: {"attend": nn.MultiheadAttention(12, 3, batch_first=True, **given)},
        options or {},
    )


def _with_weights(m: Any, x: Tensor) -> Any:
    h = m.a(x).transpose(0, 1)
    mixed, weights = m.attend(h, h, h)
    return m.b(mixed.transpose(0, 1)), weights


def _cross(m: Any, x: Tensor) -> Any:
    keys = m.k(x)[:, 1:]
    return m.b(m.attend(m.a(x), keys, m.v(x)[:, 1:], need_weights=False)[0])


def _masked(m: Any, x: Tensor) -> Any:
    h = m.a(x)
    padding = x[..., 0] > 1.5
    mixed, _ = m.attend(h, h, h, key_padding_mask=padding, attn_mask=m.causal, need_weights=False)
    return m.b(mixed)


def _causal() -> dict[str, Any]:
    return {
        "attend": nn.MultiheadAttention(12, 3, batch_first=True),
        "causal": torch.triu(torch.ones(5, 5, dtype=torch.bool), 1),
    }


def _by_mode(m: Any, x: Tensor) -> Any:
    """Take another way while training, with sizes of its own on both."""
    h = m.a(x)
    if m.training:
        h = h.view(h.shape[0], 5, 3, 4).sin().reshape(-1, 5, 12)
    else:
        h = h.unflatten(-1, (3, 4)).tanh().flatten(2)
    return m.b(h)


def _twice(m: Any, x: Tensor) -> Any:
    h = m.fold(torch.relu(m.a(x))).sin().flatten(2)
    return m.b(m.fold(m.same(h)).tanh().flatten(2))


def _fold() -> dict[str, Any]:
    return {"same": nn.Linear(12, 12), "fold": nn.Unflatten(-1, (3, 4))}


def _conv(m: Any, x: Tensor) -> Any:
    return m.b(F.relu(m.c1(F.relu(m.c0(x)))).mean((2, 3)))


def _grouped(groups: int, out: int, transposed: bool = False) -> Callable[[], dict[str, Any]]:
    cls: Any = nn.ConvTranspose2d if transposed else nn.Conv2d
    return lambda: {
        "a": None,
        "b": nn.Linear(out, 3),
        "c0": nn.Conv2d(3, 8, 3),
        "c1": cls(8, out, 3, groups=groups),
    }


def _norms(m: Any, x: Tensor) -> Any:
    h = m.norm1(m.c0(x))
    h = m.norm0(m.c1(h))
    return m.b(m.norm2(m.prelu(h).mean((2, 3))))


def _normed() -> dict[str, Any]:
    return {
        "a": None,
        "b": nn.Linear(8, 3),
        "c0": nn.Conv2d(3, 8, 3),
        "c1": nn.Conv2d(8, 8, 1),
        "norm0": nn.GroupNorm(4, 8),
        "norm1": nn.BatchNorm2d(8),
        "norm2": nn.LayerNorm(8),
        "prelu": nn.PReLU(8),
    }


def _with_state(m: Any, x: Tensor) -> Any:
    h = m.a(x)
    start = h.new_zeros(1, h.shape[0], h.shape[2])
    return m.b(m.core(h, start)[0])


def _recurrent(core: Callable[[], nn.Module], size: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"core": core(), "b": nn.Linear(size, 3)}


def _run(m: Any, x: Tensor) -> Any:
    return m.b(m.core(m.a(x))[0])


def _cell(m: Any, x: Tensor) -> Any:
    h = m.a(x[:, 0])
    h = m.core(m.k(x[:, 1]), h)
    return m.b(m.core(m.k(x[:, 2]), h))


def _of_attention(width: int, heads: int, inner: int) -> dict[str, tuple[int, ...]]:
    rows = 3 * heads * inner
    return {"attend.in_proj_weight": (rows, width), "attend.out_proj.weight": (width, heads * inner), "a.weight": (width, 6)}


ATTENTION = {
    "attention": _attention(_of_attention(6, 3, 2)),
    "attention_heads": _attention(_of_attention(6, 1, 4), options=OUTER),
    "attention_heads_and_dimensions": _attention(_of_attention(6, 1, 2), options=ALL),
    "attention_with_a_key_more": _attention(
        _of_attention(6, 3, 2) | {"attend.bias_k": (1, 1, 6)}, add_bias_kv=True, add_zero_attn=True
    ),
    "attention_without_bias": _attention(_of_attention(6, 3, 2), bias=False),
    "attention_and_its_weights": Case(_with_weights, _of_attention(6, 3, 2), lambda: {"attend": nn.MultiheadAttention(12, 3)}),
    "attention_with_masks": Case(_masked, _of_attention(6, 3, 2), _causal),
    "attention_to_others": Case(
        _cross,
        {"attend.q_proj_weight": (6, 6), "attend.k_proj_weight": (6, 4), "attend.v_proj_weight": (6, 5), "k.weight": (4, 6)},
        lambda: {
            "attend": nn.MultiheadAttention(12, 3, kdim=8, vdim=10, batch_first=True),
            "k": nn.Linear(6, 8),
            "v": nn.Linear(6, 10),
        },
    ),
    "encoder_layer": Case(
        lambda m, x: m.b(m.layer(m.a(x))),
        {"layer.linear1.weight": (7, 6), "layer.linear2.weight": (6, 7), "a.weight": (6, 6)},
        lambda: {"layer": nn.TransformerEncoderLayer(12, 3, 14, dropout=0.0, batch_first=True)},
        frontends=("export",),
    ),
}

RECURRENT = {
    "lstm": Case(
        _run,
        {"core.weight_ih_l0": (20, 6), "core.weight_hh_l0": (20, 5), "b.weight": (3, 5), "a.weight": (6, 6)},
        _recurrent(lambda: nn.LSTM(12, 10, batch_first=True), 10),
        printed={"core": "LSTM(6, 5, batch_first=True)"},
    ),
    "lstm_projected": Case(
        _run,
        {"core.weight_ih_l0": (20, 6), "core.weight_hr_l0": (3, 5), "b.weight": (3, 3), "a.weight": (6, 6)},
        _recurrent(lambda: nn.LSTM(12, 10, proj_size=6, batch_first=True), 6),
        printed={"core": "LSTM(6, 5, proj_size=3, batch_first=True)"},
    ),
    "gru_both_ways": Case(
        _run,
        {"core.weight_ih_l0": (12, 6), "core.weight_ih_l1_reverse": (12, 8), "b.weight": (3, 8), "a.weight": (6, 6)},
        _recurrent(lambda: nn.GRU(12, 8, 2, bidirectional=True, batch_first=True), 16),
        printed={"core": "GRU(6, 4, num_layers=2, batch_first=True, bidirectional=True)"},
    ),
    "rnn_from_a_state": Case(
        _with_state,
        {"core.weight_hh_l0": (6, 6), "b.weight": (3, 6)},
        _recurrent(lambda: nn.RNN(12, 12, batch_first=True), 12),
        printed={"core": "RNN(6, 6, batch_first=True)"},
    ),
    "gru_cell": Case(
        _cell,
        {"core.weight_ih": (18, 4), "core.weight_hh": (18, 6), "a.weight": (6, 6), "k.weight": (4, 6)},
        lambda: {"core": nn.GRUCell(8, 12), "k": nn.Linear(6, 8)},
        printed={"core": "GRUCell(4, 6)"},
    ),
}

CONVOLUTIONS = {
    "grouped": Case(
        _conv,
        {"c0.weight": (4, 3, 3, 3), "c1.weight": (12, 1, 3, 3), "b.weight": (3, 12)},
        _grouped(4, 12),
        INNER | {"overrides": {"b": 0, "c0": 1}},
        {"c0": "Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))"},
        IMAGE,
    ),
    "groups_go": Case(
        _conv,
        {"c0.weight": (4, 3, 3, 3), "c1.weight": (6, 2, 3, 3), "b.weight": (3, 6)},
        _grouped(4, 12),
        OUTER,
        {
            "c0": "Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))",
            "c1": "Conv2d(4, 6, kernel_size=(3, 3), stride=(1, 1), groups=2)",
            "b": "Linear(in_features=6, out_features=3, bias=True)",
        },
        IMAGE,
    ),
    "transposed_groups_go": Case(
        _conv,
        {"c0.weight": (4, 3, 3, 3), "c1.weight": (4, 3, 3, 3), "b.weight": (3, 6)},
        _grouped(4, 12, transposed=True),
        OUTER,
        {"c1": "ConvTranspose2d(4, 6, kernel_size=(3, 3), stride=(1, 1), groups=2)"},
        IMAGE,
    ),
    "depthwise": Case(
        _conv,
        {"c0.weight": (4, 3, 3, 3), "c1.weight": (4, 1, 3, 3), "b.weight": (3, 4)},
        _grouped(8, 8),
        {},
        {"c1": "Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), groups=4)"},
        IMAGE,
    ),
    "norms": Case(
        _norms,
        {"c0.weight": (4, 3, 3, 3), "c1.weight": (4, 4, 1, 1), "prelu.weight": (4,), "b.weight": (3, 4)},
        _normed,
        OUTER,
        {
            "norm0": str(nn.GroupNorm(2, 4)),
            "norm1": str(nn.BatchNorm2d(4)),
            "norm2": str(nn.LayerNorm(4)),
            "prelu": "PReLU(num_parameters=4)",
        },
        IMAGE,
    ),
    "embedding": Case(
        lambda m, x: m.b(m.table(x.abs().long())[:, :, 0] + m.a(x)),
        HALF | {"table.weight": (9, 6)},
        lambda: {"table": nn.Embedding(9, 12)},
        printed={"table": "Embedding(9, 6)", "a": "Linear(in_features=6, out_features=6, bias=True)"},
    ),
}


def _joined(m: Any, x: Tensor) -> Any:
    """View what attention gives, whose layout in memory is another where values are narrower than keys."""
    q, k, v = (t.unflatten(-1, (3, 4)).transpose(1, 2) for t in (m.a(x), m.k(x), m.v(x)))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return m.b(mixed.reshape(x.shape[0], -1, 3, 4).contiguous().view(-1, 12))


CALLS = {
    "view_of_another_layout": Case(
        _joined,
        {"a.weight": (6, 6), "v.weight": (3, 6)},
        lambda: {"k": nn.Linear(6, 12), "v": nn.Linear(6, 12)},
        INNER | {"overrides": {"v": 3, "a": 2}},
    ),
    "channel_shuffle": Case(
        lambda m, x: m.b(torch.channel_shuffle(m.a(x).mT, 4).mT), HALF, options=OUTER, frontends=("trace",)
    ),
    "channel_shuffle_module": Case(
        lambda m, x: m.b(m.shuffle(m.a(x).mT).mT),
        HALF,
        lambda: {"shuffle": nn.ChannelShuffle(4)},
        OUTER,
        {"shuffle": "ChannelShuffle(groups=2)"},
    ),
    "by_mode": Case(_by_mode, HALF, options=INNER),
    "by_mode_outer": Case(_by_mode, {"a.weight": (4, 6), "b.weight": (3, 4)}, options=OUTER),
    "module_called_twice": Case(
        _twice,
        HALF | {"same.weight": (6, 6)},
        _fold,
        INNER,
        {"fold": "Unflatten(dim=-1, unflattened_size=(3, 2))"},
    ),
}

# Those whose graphs are alike after torch.export, which takes seconds for each.
_ALIKE = (
    "attention_heads",
    "attention_heads_and_dimensions",
    "attention_with_a_key_more",
    "attention_without_bias",
    "attention_and_its_weights",
    "lstm_projected",
    "gru_both_ways",
    "gru_cell",
)

LAYERS = {
    name: dataclasses.replace(case, frontends=("trace",)) if name in _ALIKE else case
    for name, case in (ATTENTION | RECURRENT | CONVOLUTIONS | CALLS).items()
}
