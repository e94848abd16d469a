"""Prune a text encoder of transformers by half: attention heads and hidden units of the feed-forward layers.

    python examples/encoder.py                                  # a small BERT with random weights
    python examples/encoder.py --pretrained bert-base-uncased   # any encoder by name, or from a directory
    python examples/encoder.py --onnx encoder.onnx

The smaller model is called as the large one is, and its outputs have the same names and shapes: the width of the hidden states
stays, because the model returns them. Embeddings stay with it.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, BertModel

import fxprune


def build(pretrained: str | None) -> nn.Module:
    """Return an encoder in eval mode."""
    model: nn.Module
    if pretrained is None:
        config = BertConfig(
            vocab_size=8192, hidden_size=256, num_hidden_layers=4, num_attention_heads=8, intermediate_size=1024
        )
        model = BertModel(config)
    else:
        model = AutoModel.from_pretrained(pretrained)
    return model.eval()


def example(samples: int, length: int) -> dict[str, Tensor]:
    """Return a batch of tokens, the last quarter of the first text padded."""
    mask = torch.ones(samples, length, dtype=torch.long)
    mask[0, length - length // 4 :] = 0
    return {"input_ids": torch.randint(1000, (samples, length)), "attention_mask": mask}


def shapes(output: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a model's output, by name."""
    return {name: tuple(value.shape) for name, value in output.items() if isinstance(value, Tensor)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune an encoder of transformers.")
    parser.add_argument("--pretrained", help="name or directory of a pretrained encoder")
    parser.add_argument("--amount", type=float, default=0.5, help="share of the heads and hidden units to remove")
    parser.add_argument("--length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--torchscript", type=Path, help="save the smaller model as TorchScript in this file")
    parser.add_argument("--onnx", type=Path, help="save it as ONNX in this file")
    args = parser.parse_args()

    torch.manual_seed(0)
    model = build(args.pretrained)
    inputs = example(2, args.length)  # keyword arguments of a call; there are no positional ones

    # The steps of fxprune.prune(model, (), args.amount, inputs) one by one, so that the plan can be printed.
    gm = fxprune.capture(model, (), inputs)
    plan = fxprune.plan(fxprune.analyze(gm), args.amount)
    print(plan)
    fxprune.mask(gm, plan)  # gm could be trained here, as if it were smaller already
    slim = fxprune.shrink(gm)  # the masked parameters were copied, so that the model keeps its own
    print()
    fxprune.summary(model, slim, (), inputs)

    with torch.no_grad():
        before, after = shapes(model(**inputs)), shapes(slim(**inputs))
    if before != after:
        raise RuntimeError(f"the outputs have other shapes: {before} before, {after} after")
    print(f"\noutputs, as before: {after}")
    if args.torchscript:
        fxprune.to_torchscript(slim, (), inputs).save(str(args.torchscript))
    if args.onnx:
        fxprune.to_onnx(slim, (), args.onnx, inputs)


if __name__ == "__main__":
    main()
