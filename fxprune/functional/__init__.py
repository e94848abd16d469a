"""The functions that the code of captured graphs calls besides torch's own.

In: tensors and plain numbers. Out: tensors. Each function is annotated for TorchScript, and stored graphs call it by its name,
so names and arguments are a promise.

Read ``layers.py`` first, then ``attention.py`` (the steps of multi-head attention), ``over_kept.py`` (norms, statistics and
softmax over the kept positions alone) and ``leaf_cards.py`` (the card of each standard layer: add a layer there).
Tests: ``tests/functional``.
"""

# Graphs pickled by version 0.1.0 look these up here.
from fxprune.functional.layers import (  # noqa: F401
    add_if_,
    batch_norm_momentum,
    check_none,
    check_shape,
    gru,
    instance_norm,
    invert,
    lstm,
    lstm_cell,
    multi_head_attention,
    output_padding,
    rnn_cell,
    select_float,
    select_int,
)
