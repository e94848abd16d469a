"""How fast a shrunk network is, next to the class built at the same widths, and next to Torch-Pruning's at equal FLOPs."""

from __future__ import annotations

import copy
import random
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from tests.benchmarks import peers
from tests.zoo import shim

_CALLS = {1: 100, 16: 11}  # how many calls of each model, by batch size
_WARM = 3  # TorchScript runs twice before it has its plan
_HALVINGS = 6  # of the range in which the peer's share is looked for
_AMOUNT = 0.5

# -- the models ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A model, its inputs, and its class at other widths.

    Attributes:
        model: builds the model.
        inputs: makes the input of a batch.
        narrow: builds a model of the same class whose parameters have the shapes of the shrunk graph's.
    """

    model: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    narrow: Callable[[nn.Module, nn.Module], nn.Module]


def narrow_by_hand(model: nn.Module, slim: nn.Module) -> nn.Module:
    """Return a copy of a model whose own code runs layers of the sizes that a shrunk graph of it has, with its weights."""
    narrow = copy.deepcopy(model)
    for name, layer in list(narrow.named_modules()):
        if name and not list(layer.children()) and list(layer.parameters()):
            owner, _, attribute = name.rpartition(".")
            setattr(narrow.get_submodule(owner), attribute, copy.deepcopy(slim.get_submodule(name)))
    return narrow


def resnet(name: str, size: int = 224) -> Subject:
    """Return a ResNet of torchvision; its class takes the widths as layers, not as numbers."""

    def model() -> nn.Module:
        from torchvision import models

        return models.get_model(name, weights=None)

    return Subject(model, lambda batch: torch.randn(batch, 3, size, size), narrow_by_hand)


def vit(size: int = 224, patch: int = 16, layers: int = 12, heads: int = 12, width: int = 768) -> Subject:
    """Return torchvision's VisionTransformer, ViT-B/16 by default."""

    def built(heads: int, width: int, inner: int) -> nn.Module:
        from torchvision.models import VisionTransformer

        return VisionTransformer(size, patch, layers, heads, width, inner)

    def narrow(_: nn.Module, slim: nn.Module) -> nn.Module:
        block = "encoder.layers.encoder_layer_0"
        inner, new = slim.get_parameter(f"{block}.mlp.0.weight").shape
        joined = slim.get_parameter(f"{block}.self_attention.out_proj.weight").shape[1]
        return built(joined // (width // heads), new, inner)

    return Subject(lambda: built(heads, width, 4 * width), lambda batch: torch.randn(batch, 3, size, size), narrow)


class Encoder(nn.Module):
    """A text classifier of transformers whose only input are the tokens, and whose only result is a tensor."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        self.bert = BertForSequenceClassification(BertConfig(**config))

    def forward(self, ids: Tensor) -> Tensor:
        return self.bert(input_ids=ids, return_dict=False)[0]


def bert(length: int = 128, **config: Any) -> Subject:
    """Return BERT as a text classifier, BERT-base by default."""

    def narrow(model: nn.Module, slim: nn.Module) -> nn.Module:
        whole: Any = model.get_submodule("bert").config
        block = "bert.bert.encoder.layer.0"
        inner, new = slim.get_parameter(f"{block}.intermediate.dense.weight").shape
        joined = len(slim.get_parameter(f"{block}.attention.self.query.weight"))
        sizes: dict[str, int] = {
            "hidden_size": new,
            "intermediate_size": inner,
            "num_attention_heads": joined // (whole.hidden_size // whole.num_attention_heads),
        }
        return Encoder(**{**config, **sizes})

    return Subject(lambda: Encoder(**config), lambda batch: torch.randint(0, 1000, (batch, length)), narrow)


SUBJECTS: dict[str, Subject] = {"resnet50": resnet("resnet50"), "vit_b_16": vit(), "bert_base": bert()}

# -- the sides -------------------------------------------------------------------------------------------------------------


def flops(model: nn.Module, x: Tensor) -> int:
    """Return the FLOPs of one call; torch's counter knows nothing of the fast path of attention."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return counter.get_total_flops()


def pruned_to(model: nn.Module, x: Tensor, goal: int) -> nn.Module:
    """Return a copy of a model that Torch-Pruning has brought as close as it can to a number of FLOPs.

    Args:
        model: the model.
        x: its input.
        goal: FLOPs of a call with this input.
    """
    low, high = 0.0, 1.0
    share = _AMOUNT
    best: tuple[int, nn.Module] | None = None
    for _ in range(_HALVINGS):
        small = peers.torch_pruned(copy.deepcopy(model), (x,), {}, share)
        found = flops(small, x)
        if best is None or abs(found - goal) < best[0]:
            best = (abs(found - goal), small)
        if found == goal:
            break
        low, high = (share, high) if found > goal else (low, share)
        share = (low + high) / 2
    assert best is not None
    return best[1].eval()


def _frozen(model: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    if isinstance(model, torch.fx.GraphModule):
        return torch.jit.freeze(fxprune.to_torchscript(model, x))
    return torch.jit.freeze(torch.jit.trace(model, x))


def _compiled(model: nn.Module, _: Tensor) -> Callable[[Tensor], Any]:
    return torch.compile(model, dynamic=False)


WAYS: dict[str, Callable[[nn.Module, Tensor], Callable[[Tensor], Any]]] = {
    "eager": lambda model, _: model,
    "TorchScript frozen": _frozen,
    "torch.compile": _compiled,
}


def sides(subject: Subject) -> dict[str, nn.Module]:
    """Return the model, its shrunk graph, the class at the same widths with its weights, and the peer's result."""
    torch.manual_seed(0)
    model, x = subject.model().eval(), subject.inputs(1)
    slim = fxprune.prune(model, x, _AMOUNT)
    narrow = subject.narrow(model, slim).eval()
    narrow.load_state_dict(slim.state_dict())  # refused where any width is another
    with torch.inference_mode():
        torch.testing.assert_close(slim(x), narrow(x))
    return {"whole": model, "shrunk": slim, "class": narrow, "torch-pruning": pruned_to(model, x, flops(slim, x))}


# -- the clock -------------------------------------------------------------------------------------------------------------


def measured(models: Sequence[Callable[[Tensor], Any]], x: Tensor, rounds: int) -> list[list[float]]:
    """Return the seconds of ``rounds`` calls of each model, taken in turn, so that a slow spell meets all of them alike."""
    order = random.Random(0)
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for model in models:
            for _ in range(_WARM):
                model(x)
        for _ in range(rounds):
            for i in order.sample(range(len(models)), len(models)):
                start = time.perf_counter()
                models[i](x)
                times[i].append(time.perf_counter() - start)
    return times


def compared(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the medians of seconds taken in turn, and the medians of their ratios round by round."""

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))

    return {
        **{f"{side} ms": 1e3 * statistics.median(seconds) for side, seconds in times.items()},
        **{f"shrunk / {side}": ratio("shrunk", side) for side in times if side != "shrunk"},
    }


def latency(
    subjects: Mapping[str, Subject] = SUBJECTS,
    ways: Sequence[str] = tuple(WAYS),
    calls: Mapping[int, int] = _CALLS,
) -> list[dict[str, Any]]:
    """Time models, their shrunk graphs at half of the channels, the class at the same widths, and the peer's result.

    Args:
        subjects: the models by name.
        ways: names of ``WAYS``: how the models run.
        calls: how often each is called, by batch size.
    """
    shim.install()
    rows = []
    for name, subject in subjects.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            models = sides(subject)
            x = subject.inputs(1)
            equal = flops(models["torch-pruning"], x) / flops(models["shrunk"], x)
            for way in ways:
                for batch, rounds in calls.items():
                    row = {"model": name, "way": way, "batch": batch, "torch-pruning FLOPs / ours": equal}
                    rows.append({**row, **compared(_times(models, way, subject.inputs(batch), rounds))})
                    print(rows[-1], flush=True)
    return rows


def _times(models: Mapping[str, nn.Module], way: str, x: Tensor, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of the calls of all models that can run in a way."""
    torch._dynamo.reset()  # what was compiled for another batch
    ready: dict[str, Callable[[Tensor], Any]] = {}
    for side, model in models.items():
        with torch.inference_mode():
            ready[side] = WAYS[way](model, x)
    return dict(zip(ready, measured(list(ready.values()), x, rounds), strict=True))
