"""What brute force cannot run here, and where a rule is stricter than a single call asks for, each with the reason."""

from __future__ import annotations

# Operators that need another device or dtype, and those that run here and are to have the same rule.
SIBLINGS = {
    "convolution_overrideable": "convolution",  # for devices of third parties
    "cudnn_convolution": "convolution",
    "mkldnn_convolution": "convolution",  # of float32 only
    "_grouped_mm": "_grouped_mm",  # not of double precision; test_references.py checks the rule on an operator like it
    "cudnn_batch_norm": "batch_norm",
    "miopen_batch_norm": "batch_norm",
    "mkldnn_max_pool2d": "max_pool2d",  # of a tensor layout of its own
    "mkldnn_max_pool3d": "max_pool3d",
    "_scaled_dot_product_attention_math_for_mps": "scaled_dot_product_attention",
    "_scaled_dot_product_cudnn_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_efficient_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_fused_attention_overrideable": "scaled_dot_product_attention",
}

_TRAIN = "statistics run over batch and places in train mode, and a graph has to be right in both"
_SUMS = "entries that are added up at one place: another mixing point, which no model prunes along"
_TABLES = "several indices and flags are constants, which never shrink"

# By operator: the operands' dimensions that a single call leaves free, and why they are kept whole all the same.
STRICT: dict[str, tuple[set[tuple[int, int]], str]] = {
    **dict.fromkeys(
        [
            "batch_norm",
            "native_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_functional",
            "_batch_norm_impl_index",
            "_native_batch_norm_legit_no_training",
            "_batch_norm_no_update",
            "instance_norm",
        ],
        ({(0, 0), (0, 2), (0, 3)}, _TRAIN),
    ),
    **dict.fromkeys(("scatter_add", "scatter_add_", "scatter.reduce", "index_add"), ({(1, 0), (1, 1), (2, 1)}, _SUMS)),
    **dict.fromkeys(("index.Tensor", "_unsafe_index.Tensor"), ({(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)}, _TABLES)),
    "cov": ({(0, 1), (1, 0), (2, 0)}, "columns without weight; no model gives these along with what it prunes"),
    "corrcoef": ({(0, 0)}, "a single row, which always has a correlation of one with itself"),
    "cumsum": ({(0, 1)}, "sums of what counts positions, as ones do, would count other ones"),
    "aminmax": ({(0, 0), (0, 1), (0, 2)}, "minimum and maximum would need different fillings"),
    "masked_scatter": ({(0, 0), (0, 1), (1, 0), (1, 1)}, "takes values in the order of the flags that are set"),
}

_ONLY_BATCH = "the batch is never removed"
_COUNTS = "places of maxima, which nothing multiplies"

# By operator: results that are zero where all operands are, though the rule does not say so, and why.
NOT_ZERO = {
    **dict.fromkeys([n + kind for n in ("lstm", "gru", "rnn_tanh", "rnn_relu") for kind in (".input", "_cell")], _ONLY_BATCH),
    **dict.fromkeys([f"adaptive_max_pool{n}d" for n in (1, 2, 3)], _COUNTS),
    **dict.fromkeys(["argmax", "argmin", "kthvalue", "max.dim", "min.dim"], _COUNTS),
    "batch_norm": "running statistics make a number of zero in eval mode",
    "scaled_dot_product_attention": "where flags forbid every position the result is no number",
}
