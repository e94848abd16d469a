"""How long it takes from a model to a smaller one, next to Torch-Pruning, at each library's normal resolution."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import itertools
import signal
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from tests.benchmarks import peers
from tests.zoo import shim
from tests.zoo.apart import NoAnswerError, call_apart
from tests.zoo.catalogue import catalogue

_SECONDS = 120.0
_ROUNDS = 3
_LEAST = 0.25  # of the parameters has to go, or nothing was done

_TORCHVISION = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 "
    "mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet34 resnet50 resnet101 "
    "resnext50_32x4d shufflenet_v2_x1_0 squeezenet1_1 swin_t swin_v2_t vgg11 vgg16_bn vit_b_16 wide_resnet50_2 fcn_resnet50 "
    "deeplabv3_resnet50 lraspp_mobilenet_v3_large r3d_18"
)
_TIMM = (
    "vit_tiny_patch16_224 vit_base_patch16_224 deit_tiny_patch16_224 deit3_small_patch16_224 resnet26 resnetv2_50 "
    "convnext_atto convnextv2_atto mixer_s32_224 resmlp_12_224 gmixer_24_224 cspresnet50 darknet53 dla34 hrnet_w18_small "
    "efficientformer_l1 fasternet_t0 mobilenetv4_conv_small regnetz_b16 repvgg_a0 rexnet_100 tf_efficientnetv2_b0 vovnet39a "
    "xcit_nano_12_p16_224 levit_128 poolformer_s12 pvt_v2_b0 edgenext_xx_small mobileone_s0 ghostnet_100"
)
_TRANSFORMERS = "bert roberta distilbert electra gpt2 llama vit deit swin convnext resnet mobilenet_v2 segformer"
NAMES = tuple(
    f"{family}/{name}"
    for family, names in (("torchvision", _TORCHVISION), ("timm", _TIMM), ("transformers", _TRANSFORMERS))
    for name in names.split()
)


def build(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Return a model of normal size in eval mode, and its inputs, one sample, at the resolution that it was made for.

    Args:
        name: library and model, as in ``NAMES``; after "zoo:" one that the zoo command lists, as small as it is there.
    """
    shim.install()
    if name.startswith(_ZOO):
        return catalogue()[name.removeprefix(_ZOO)].build()
    family, _, model = name.partition("/")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made, args, kwargs = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}[family](model)
    return made.eval(), args, kwargs


_ZOO = "zoo:"


def _torchvision(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    from torchvision import models

    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith(("fcn", "deeplab", "lraspp")):
        options["weights_backbone"] = None
    sizes = {"inception_v3": (299, 299), "r3d_18": (16, 112, 112)}.get(name, (224, 224))
    return models.get_model(name, weights=None, **options), (torch.randn(1, 3, *sizes),), {}


def _timm(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    import timm

    model = timm.create_model(name)
    config: Any = model.default_cfg
    return model, (torch.randn(1, *config["input_size"]),), {}


def _transformers(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    import transformers

    config: Any = transformers.AutoConfig.for_model(name)
    config._attn_implementation = "eager"
    if name == "llama":
        config.hidden_size, config.intermediate_size, config.num_hidden_layers = 1024, 2816, 12
        config.num_attention_heads = config.num_key_value_heads = 16
        config.head_dim = 64
    if hasattr(config, "use_cache"):
        config.use_cache = False
    model = transformers.AutoModel.from_config(config)
    if hasattr(config, "vocab_size"):
        return model, (), {"input_ids": torch.randint(0, config.vocab_size, (1, 128))}
    return model, (torch.randn(1, 3, 224, 224),), {}


def by_fxprune(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    """Prune without a comparison at the end, which the other side has not."""
    return fxprune.prune(model, args, 0.5, example_kwargs=kwargs, verify=False)


SIDES: dict[str, Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], nn.Module]] = {
    "fxprune": by_fxprune,
    "torch-pruning": peers.torch_pruned,
}


def measured(name: str, rounds: int = _ROUNDS) -> dict[str, Any]:
    """Return the row of one model: both sides in turn in this process, and what is left on either side."""
    torch.set_num_threads(1)
    model, args, kwargs = build(name)
    row: dict[str, Any] = {"model": name}
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    wrong: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for side in list(SIDES) * rounds:
            if side in wrong:
                continue
            try:
                seconds, row[f"{side} left %"] = _once(side, model, args, kwargs)
                times[side].append(seconds)
            except Exception as error:
                text = str(error).strip().partition("\n")[0]
                wrong[side] = f"{type(error).__name__}: {text}"[:90]
    for side in SIDES:
        if side not in wrong:
            row[f"{side} s"] = statistics.median(times[side])
            row[f"{side} first s"] = times[side][0]
    if not wrong:
        row["ratio"] = row["fxprune s"] / row["torch-pruning s"]
    row["not done"] = "; ".join(f"{side}: {text}" for side, text in wrong.items())
    return row


def _once(side: str, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, float]:
    """Prune a copy of a model; return the seconds that it took and the percentage of parameters that is left."""
    ours = copy.deepcopy(model)
    gc.collect()
    with limited(_SECONDS):
        start = time.perf_counter()
        small = SIDES[side](ours, args, kwargs)
        seconds = time.perf_counter() - start
    check(small, model, args, kwargs)
    return seconds, 100 * sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError within the context as soon as it has lasted too long, between two steps of Python."""

    def end(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check(small: nn.Module, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise ValueError unless a pruned model runs, gives results of the old shapes, and is clearly smaller."""
    with torch.no_grad():
        shapes, expected = (
            [leaf.shape for leaf in pytree.tree_leaves(tuple(_values(m(*args, **kwargs)))) if isinstance(leaf, Tensor)]
            for m in (small, model)
        )
    if shapes != expected:
        raise ValueError(f"results of shapes {shapes} in place of {expected}")
    left = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    if left > 1 - _LEAST:
        raise ValueError(f"{100 * left:.0f} % of the parameters are left")


def _values(result: Any) -> Iterator[Any]:
    yield from result.values() if hasattr(result, "values") and not isinstance(result, Tensor) else [result]


def pipeline(names: tuple[str, ...] = NAMES, rounds: int = _ROUNDS) -> list[dict[str, Any]]:
    """Time both sides on every model, each model in a process of its own."""
    rows = []
    for name in names:
        try:
            rows.append(call_apart(functools.partial(measured, rounds=rounds), name, 2 * (rounds + 1) * _SECONDS))
        except NoAnswerError as error:
            rows.append({"model": name, "not done": str(error)})
        print(rows[-1], flush=True)
    return rows + summary(rows)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows for all models together: the ratios, the first times, and what only one side can do."""
    both = [row for row in rows if "ratio" in row]
    found: list[dict[str, Any]] = []
    if both:
        first = [row["fxprune first s"] / row["torch-pruning first s"] for row in both]
        ratios = [row["ratio"] for row in both]
        found += [
            {"model": f"geometric mean of {len(both)}", "ratio": statistics.geometric_mean(ratios)},
            {"model": "the same of first times", "ratio": statistics.geometric_mean(first)},
            {"model": "median", "ratio": statistics.median(ratios)},
            {"model": "greatest", "ratio": max(ratios)},
        ]
    for side, other in itertools.permutations(SIDES):
        names = [row["model"] for row in rows if f"{side} s" in row and f"{other} s" not in row]
        found.append({"model": f"only {side}: {len(names)}", "not done": " ".join(names)})
    return found


def zoo() -> list[dict[str, Any]]:
    """Time both sides on every model that the zoo command lists."""
    return pipeline(tuple(f"{_ZOO}{name}" for name in catalogue()))
