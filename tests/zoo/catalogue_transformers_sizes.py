"""The sizes of the tiny models of transformers, and the inputs that fit them.

The extents of a model differ from one another wherever its configuration lets them, so that no two axes can be taken for
each other: hidden 48, heads 6 of 8 (of 12 where the head size is free), key and value heads 3, feed-forward 80,
vocabulary 99, positions 40, sequence 11, labels 5, batch 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.zoo.recipe import BATCH, pixels

Options = dict[str, Any]
Keywords = dict[str, Tensor]

VOCAB, _LENGTH, _TARGET_LENGTH, LABELS = 99, 11, 7, 5
TOKENS: Options = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
SIZE: Options = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 80}
ENCODER: Options = {"vocab_size": VOCAB, "max_position_embeddings": 40, **SIZE, **TOKENS}
DECODER: Options = {**ENCODER, "use_cache": False}
GROUPED: Options = {**DECODER, "num_key_value_heads": 3}
GROUPED_WIDE: Options = {**GROUPED, "head_dim": 12}
GPT: Options = {
    "vocab_size": VOCAB,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 6,
    "n_positions": 40,
    "use_cache": False,
    **TOKENS,
}
EXPERTS: Options = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 28}
STACKS: Options = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 72,
}
BART: Options = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "max_position_embeddings": 40,
    "decoder_start_token_id": 2,
    "use_cache": False,
    **STACKS,
    **TOKENS,
}
T5: Options = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 80,
    "num_layers": 2,
    "num_heads": 6,
    "decoder_start_token_id": 1,
    "use_cache": False,
    **TOKENS,
}
VIT: Options = {**SIZE, "image_size": 32, "patch_size": 8}
STAGES: Options = {"image_size": 64, "depths": [1, 2], "num_heads": [2, 4], "embed_dim": 24, "window_size": 4}
SPEECH: Options = {
    "vocab_size": VOCAB,
    **SIZE,
    "conv_dim": (20, 28),
    "conv_kernel": (10, 4),
    "conv_stride": (5, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 36,
    "apply_spec_augment": False,  # it would draw its masks from numpy
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
TEXT_TOWER: Options = {**SIZE, "vocab_size": VOCAB, "max_position_embeddings": 40, **TOKENS}
VISION_TOWER: Options = {**VIT, "hidden_size": 36, "intermediate_size": 60}


def ids(length: int = _LENGTH) -> Tensor:
    # From 3 on: the ids below are the padding, start and end tokens.
    return torch.randint(3, VOCAB, (BATCH, length))


def text() -> Keywords:
    mask = torch.ones(BATCH, _LENGTH, dtype=torch.long)
    mask[-1, -4:] = 0  # the first row is full, the other ends in padding, else the mask would mask nothing
    return {"input_ids": ids(), "attention_mask": mask}


def ids_only() -> Keywords:
    return {"input_ids": ids()}


def boxes() -> Keywords:
    corners = torch.randint(0, 40, (BATCH, _LENGTH, 2))
    return {**text(), "bbox": torch.cat([corners, corners + 9], dim=-1)}


def source_and_target() -> Keywords:
    return {**text(), "decoder_input_ids": ids(_TARGET_LENGTH)}


def image(*sizes: int) -> Callable[[], Keywords]:
    return lambda: {"pixel_values": pixels(*sizes)}


def clip() -> Keywords:
    return {"pixel_values": torch.randn(BATCH, 4, 3, 32, 32)}


def text_and_image() -> Keywords:
    return {**text(), "pixel_values": pixels(32, 32)}


def ids_and_image() -> Keywords:
    return {**ids_only(), "pixel_values": pixels(32, 32)}


def waveform() -> Keywords:
    return {"input_values": torch.randn(BATCH, 900)}


def spectrogram() -> Keywords:
    return {"input_features": torch.randn(BATCH, 20, 60), "decoder_input_ids": ids(_TARGET_LENGTH)}


def frames() -> Keywords:
    return {"input_features": torch.randn(BATCH, 60, 20), "decoder_input_ids": ids(_TARGET_LENGTH)}


def audio_patches() -> Keywords:
    return {"input_values": torch.randn(BATCH, 40, 32)}


# Name, class of the model, inputs, options of its configuration.
Row = tuple[str, str, Callable[[], Keywords], Options]
