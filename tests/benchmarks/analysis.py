"""How long capture and analysis take: on usual models, against depth, width and resolution, and on a model too large."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from tests.zoo import shim

_KIB = 1024


class Block(nn.Module):
    """One layer of GPT-2's shape."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """A language model of GPT-2's shape, its embedding tied."""

    def __init__(self, layers: int, width: int = 768, heads: int = 12, vocabulary: int = 50257) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(1024, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def usual_models(repeats: int = 5) -> list[dict[str, Any]]:
    """Time capture and analysis of ResNet-50 and ViT-B/16 at 224 x 224, batch 1, on one thread; medians of several runs."""
    shim.install()
    from torchvision import models

    rows = []
    for name in ("resnet50", "vit_b_16"):
        model, x = getattr(models, name)().eval(), torch.randn(1, 3, 224, 224)
        captures, analyses, both = [], [], []
        for _ in range(repeats):
            graphs: list[Any] = []
            captures.append(_seconds(lambda m=model, x=x, g=graphs: g.append(fxprune.capture(m, x))))  # type: ignore[misc]
            analyses.append(_seconds(lambda g=graphs: fxprune.analyze(g[0])))  # type: ignore[misc]
            both.append(captures[-1] + analyses[-1])
        first, median = both[0], statistics.median
        rows.append(
            {
                "model": name,
                "capture s": median(captures),
                "analysis s": median(analyses),
                "both s": median(both),
                "both, first run s": first,
            }
        )
    return rows


def _analysed(graphs: Mapping[int, fx.GraphModule], repeats: int) -> dict[int, float]:
    """Return the median seconds of the analysis of each graph, taken in turn, after one run that does not count."""
    times: dict[int, list[float]] = {key: [] for key in graphs}
    for turn in range(repeats + 1):
        for key, gm in graphs.items():
            seconds = _seconds(lambda gm=gm: fxprune.analyze(gm))  # type: ignore[misc]
            if turn:
                times[key].append(seconds)
    return {key: statistics.median(found) for key, found in times.items()}


def _decoder(**sizes: int) -> fx.GraphModule:
    with torch.device("meta"):
        return fxprune.capture(Decoder(**sizes).eval(), torch.zeros(2, 32, dtype=torch.long))


def depth(layers: tuple[int, ...] = (12, 24, 48, 96), repeats: int = 5) -> list[dict[str, Any]]:
    """Time the analysis of models of GPT-2's shape; the ratio is that of the time a layer takes to that at the first depth."""
    medians = _analysed({count: _decoder(layers=count) for count in layers}, repeats)
    first = medians[layers[0]] / layers[0]
    return [{"layers": n, "analysis s": s, "a layer, ratio": s / n / first} for n, s in medians.items()]


def width(
    widths: tuple[int, ...] = (256, 512, 1024, 2048, 4096), heads: int = 16, layers: int = 12, repeats: int = 5
) -> list[dict[str, Any]]:
    """Time the analysis of models of GPT-2's shape and depth; the ratios are those to the narrowest."""
    graphs = {n: _decoder(layers=layers, width=n, heads=heads) for n in widths}
    medians = _analysed(graphs, repeats)
    first = widths[0]
    return [
        {"width": n, "analysis s": s, "ratio of widths": n / first, "ratio of times": s / medians[first]}
        for n, s in medians.items()
    ]


def resolution(
    sizes: tuple[int, ...] = (64, 128, 256, 512), names: tuple[str, ...] = ("resnet50", "vit_b_16"), repeats: int = 5
) -> list[dict[str, Any]]:
    """Time the analysis of models for images of different sizes; the ratio is that to the smallest."""
    shim.install()
    from torchvision import models

    rows = []
    for name in names:
        graphs = {}
        for size in sizes:
            options = {"image_size": size} if name.startswith("vit") else {}
            with torch.device("meta"):
                graphs[size] = fxprune.capture(
                    models.get_model(name, weights=None, **options).eval(), torch.zeros(1, 3, size, size)
                )
        medians = _analysed(graphs, repeats)
        rows += [{"model": name, "pixels": n * n, "analysis s": s, "ratio": s / medians[sizes[0]]} for n, s in medians.items()]
    return rows


def large(layers: int = 80) -> list[dict[str, Any]]:
    """Time a Llama of hidden size 8192 on the meta device in a process of its own, and measure the memory it takes."""
    code = f"from tests.benchmarks.analysis import large_here; large_here({layers})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [json.loads(done.stdout.splitlines()[-1])]


def large_here(layers: int) -> None:
    """Print the row of :func:`large` as JSON."""
    import resource
    import warnings

    shim.install()
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    config = LlamaConfig(
        hidden_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=28672,
        vocab_size=128256,
        use_cache=False,
    )
    with torch.device("meta"):
        model, ids = LlamaForCausalLM(config).eval(), torch.zeros(1, 16, dtype=torch.long)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # code that asks for values cannot be compared on the meta device
        gm = fxprune.capture(model, (), {"input_ids": ids})
    middle = time.perf_counter()
    deps = fxprune.analyze(gm)
    row = {
        "layers": layers,
        "parameters, billion": sum(p.numel() for p in model.parameters()) / 1e9,
        "capture s": middle - start,
        "analysis s": time.perf_counter() - middle,
        "peak memory GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB**2,
        "groups": len(deps.groups),
        "in a group %": 100 * deps.share,
    }
    print(json.dumps(row))
