"""pruning: prune models of the catalogue by half without any configuration, and compare what is masked with what is small.

One row of results each; nothing here raises for a model, and nothing here knows any of them.
"""

from __future__ import annotations

import copy
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune.analysis.dependencies import Dependencies
from tests.compare import relative_error, tensors_of
from tests.properties.surviving import buffer_error, gradient_error, run_backward
from tests.zoo.apart import NoAnswerError, call_apart
from tests.zoo.catalogue import catalogue
from tests.zoo.models import calibrate, randomise
from tests.zoo.recipe import BATCH, Recipe

AMOUNT = 0.5
_TOLERANCE, _TOLERANCE_FLOAT32 = 1e-9, 1e-5
_GAINS = (2.0, 1.5, 1.0)  # of the weights, the first with which the results are numbers that depend on the input
_LEAST_DIFFERENCE = 1e-6  # of the results of two samples
_LONGEST_ERROR = 300

_TORCHVISION = (
    "resnet18 resnet50 resnext50_32x4d densenet121 googlenet inception_v3 mobilenet_v2 mobilenet_v3_small efficientnet_b0 "
    "shufflenet_v2_x1_0 squeezenet1_1 regnet_y_400mf convnext_tiny vgg11_bn vit_b_32 swin_t deeplabv3_mobilenet_v3_large r3d_18"
)
_TIMM = (
    "test_convnext test_vit efficientformer_l1 levit_128s mvitv2_tiny pit_ti_224 coat_tiny xcit_nano_12_p8_224 volo_d1_224 "
    "cait_xxs24_224 tnt_s_legacy_patch16_224 nest_tiny test_maxvit edgenext_xx_small mobilevit_xxs res2next50 "
    "resnest14d skresnet18 dpn48b hrnet_w18_small fasternet_t0 repvit_m1"
)
_TRANSFORMERS = "bert distilbert roberta gpt2 gptj bloom opt llama qwen3 gemma2 phi3 t5 whisper mamba vit swin clip detr"
# The models that have to be pruned exactly.
EXACT: tuple[str, ...] = tuple(
    f"{family}/{name}"
    for family, names in (("torchvision", _TORCHVISION), ("timm", _TIMM), ("transformers", _TRANSFORMERS))
    for name in names.split()
)


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of one model; fields past the first that failed keep their defaults.

    Attributes:
        name: the name in the catalogue.
        parameters: elements of all parameters before, tied ones once.
        removed: the share of them that went, in [0, 1].
        removed_aside: the share that went of those that are not tables of embeddings.
        flops_removed: the share of floating-point operations that went, as torch counts them.
        errors: masked against shrunk, the largest relative error of the results in eval mode, of results and statistics in
            train mode, of the results in eval mode with another batch, and of the gradients in train mode.
        tolerance: what an error may be.
        seconds: for the plan, the masks, the shrinking.
        error: what failed, in one line, or ``""``.
    """

    name: str
    parameters: int = 0
    removed: float = 0.0
    removed_aside: float = 0.0
    flops_removed: float = 0.0
    errors: tuple[float, ...] = ()
    tolerance: float = _TOLERANCE
    seconds: tuple[float, ...] = ()
    error: str = ""

    @property
    def is_pruned(self) -> bool:
        """Whether there is a smaller graph."""
        return len(self.seconds) == 3

    @property
    def is_failure(self) -> bool:
        """Whether anything is wrong."""
        return bool(self.note)

    @property
    def note(self) -> str:
        """What is wrong, or ``""``."""
        if self.error:
            return self.error
        if not self.removed > 0:
            return "nothing was removed"
        wrong = [what for what, error in zip(_COMPARED, self.errors, strict=True) if not error <= self.tolerance]
        return f"masked and shrunk differ: {', '.join(wrong)}" if wrong else ""


_COMPARED = ("eval", "train", "other batch", "gradient")
_HEADERS = (
    *("model", "parameters (M)", "removed %", "embeddings aside %", "FLOPs %"),
    *(f"{what} error" for what in _COMPARED),
    *("plan s", "mask s", "shrink s", "note"),
)


def measure(recipe: Recipe) -> Row:
    """Build, capture, prune and compare one model, in this process."""
    run = _Run(recipe)
    try:
        # What the libraries and the capture warn of is not what is measured.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run.prune()
            run.compare()
    except Exception as error:  # whatever it is, it is the result of this model and must not stop the others
        text = " ".join(f"{run.stage}: {type(error).__name__}: {error}".split())
        return dataclasses.replace(run.row, error=text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]} ...")
    return run.row


def measure_apart(recipe: Recipe, seconds: float) -> Row:
    """Measure one model in a process of its own, which is ended if it takes longer than so many seconds."""
    try:
        return call_apart(_measure_named, recipe.name, seconds)
    except NoAnswerError as error:
        return Row(recipe.name, error=str(error))


def measure_all(recipes: Sequence[Recipe], jobs: int, seconds: float) -> Iterator[Row]:
    """Yield the row of each recipe, in order; arguments as in `tests.zoo.coverage.measure_all`."""
    if jobs == 0:
        yield from map(measure, recipes)
        return
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda recipe: measure_apart(recipe, seconds), recipes)


def _measure_named(name: str) -> Row:
    return measure(catalogue()[name])


class _Run:
    """One model on its way; ``row`` holds what is known so far, ``stage`` what is being done."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.row = Row(recipe.name)
        self.stage = "build"

    def prune(self) -> None:
        """Make the masked and the shrunk graph."""
        model, args, kwargs, exact = lively(self.recipe)
        self.stage = "capture"
        gm = fxprune.capture(model, args, kwargs)
        self.row = dataclasses.replace(
            self.row, parameters=_count(gm, set()), tolerance=_TOLERANCE if exact else _TOLERANCE_FLOAT32
        )
        before = flops(gm, args, kwargs)
        self.stage = "analyze"
        deps = fxprune.analyze(gm)
        tables = embeddings(deps)
        aside = _count(gm, tables)
        self.plan = self._timed("plan", lambda: fxprune.plan(deps, AMOUNT))
        self.masked = self._timed("mask", lambda: fxprune.mask(gm, self.plan))
        copied = copy.deepcopy(self.masked)
        self.small = self._timed("shrink", lambda: fxprune.shrink(copied, verify=False))
        self.row = dataclasses.replace(
            self.row,
            removed=1 - _count(self.small, set()) / self.row.parameters,
            removed_aside=1 - _count(self.small, tables) / max(aside, 1),
            flops_removed=1 - flops(self.small, args, kwargs) / max(before, 1),
        )
        self.arguments = (args, kwargs)

    def _timed(self, stage: str, function: Callable[[], Any]) -> Any:
        self.stage, start = stage, time.perf_counter()
        result = function()
        self.row = dataclasses.replace(self.row, seconds=(*self.row.seconds, time.perf_counter() - start))
        return result

    def compare(self) -> None:
        """Measure all errors."""
        self.stage = "compare"
        more = wider(self.recipe, self.arguments)
        evaluated = self._error(self.arguments)
        other = self._error(more)
        ours, theirs = copy.deepcopy(self.small).train(), copy.deepcopy(self.masked).train()
        # More than two samples: of two, a batch norm of vectors leaves signs alone, and gradients are rounding.
        with WithoutDropout():
            results = relative_error(run_backward(ours, *more), run_backward(theirs, *more))
        statistics, _ = buffer_error(theirs, ours, self.plan)
        gradients, _ = gradient_error(theirs, ours, self.plan)
        self.row = dataclasses.replace(self.row, errors=(evaluated, max(results, statistics), other, gradients))

    def _error(self, arguments: Any) -> float:
        outputs = []
        for gm in (self.small, self.masked):
            torch.manual_seed(0)
            with torch.no_grad():
                outputs.append(copy.deepcopy(gm).eval()(*arguments[0], **arguments[1]))
        return relative_error(*outputs)


def lively(recipe: Recipe) -> tuple[nn.Module, Any, Any, bool]:
    """Return a model whose weights hide no mistake, its arguments, and whether it computes in float64 throughout.

    Initial values are random, the norms' statistics fit what the norms are given, and gains are raised, so that attention is
    far from uniform.

    Raises:
        ValueError: whatever the gain, the results are not finite or do not depend on the input.
    """
    for gain in _GAINS:
        for to in (_double, lambda value: value):
            model, args, kwargs = recipe.build()
            model, args, kwargs = to(model), to(args), to(kwargs)
            enliven(model, gain)
            watch = Precision()
            try:
                calibrate(model, args, kwargs)
                with torch.no_grad(), watch:
                    output = model(*args, **kwargs)
            except RuntimeError:
                if to is _double:  # a dtype is written into its code
                    continue
                raise
            if is_telling(output):
                return model, args, kwargs, watch.exact
            break
    raise ValueError("its results are not finite, or do not depend on the input")


def enliven(model: nn.Module, gain: float) -> None:
    """Randomise what a model starts from and raise its gains, in place."""
    generator = torch.Generator().manual_seed(0)
    randomise(model, generator)
    with torch.no_grad():
        for module in model.modules():
            is_norm = "Norm" in type(module).__name__
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() > 1:
                    parameter.mul_(gain)
                elif is_norm and name == "weight":
                    parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))


def is_telling(output: Any) -> bool:
    """Tell whether results are finite, and differ from sample to sample."""
    tensors = [t.detach() for t in tensors_of(output) if t.is_floating_point()]
    finite = all(bool(t[t > -1e30].isfinite().all()) and not bool(t.isnan().any()) for t in tensors)
    return finite and any(_spread(t) > _LEAST_DIFFERENCE for t in tensors)


def _spread(tensor: Tensor) -> float:
    if tensor.dim() < 1 or len(tensor) < BATCH:
        return 0.0
    return float((tensor[0] - tensor[1]).abs().max() / (tensor.abs().max() + 1e-30))


def wider(recipe: Recipe, arguments: Any) -> Any:
    """Return arguments with one more sample."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        others = recipe.inputs()

    def join(one: Any, other: Any) -> Any:
        if isinstance(one, Tensor) and one.dim() and len(one) == BATCH:
            return torch.cat([one, other[:1].to(one.dtype)])
        return one

    return pytree.tree_map(join, arguments, others)


def embeddings(deps: Dependencies) -> set[str]:
    """Return the names of the parameters that an embedding reads as its table."""
    found: set[str] = set()
    for step in deps.steps:
        if step.call is not None and step.call.op is torch.ops.aten.embedding.default:
            table = deps.steps[step.call.operand(0).producer].tracked
            found.update(table.names if table is not None else ())
    return found


def flops(gm: fx.GraphModule, args: Any, kwargs: Any) -> int:
    """Return the floating-point operations of a call in eval mode."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(gm).eval()(*args, **kwargs)
    return int(counter.get_total_flops())


def _count(gm: nn.Module, aside: set[str]) -> int:
    return sum(parameter.numel() for name, parameter in gm.named_parameters() if name not in aside)


def _double(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return value.double()
    return pytree.tree_map(lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, value)


class Precision(TorchDispatchMode):
    """Notes whether all that is computed is in float64.

    Attributes:
        exact: whether it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.exact = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype != torch.float64 and leaf.numel() > 1:
                self.exact = False
        return result


class WithoutDropout(TorchDispatchMode):
    """Lets every draw of what is dropped keep all: random numbers of a narrower tensor are others."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket is torch.ops.aten.native_dropout:
            return args[0] / (1 - args[1]), torch.ones_like(args[0], dtype=torch.bool)
        if func._overloadpacket is torch.ops.aten.bernoulli_:
            return args[0].fill_(1)
        if func._overloadpacket is torch.ops.aten.bernoulli:
            return torch.ones_like(args[0])
        return func(*args, **(kwargs or {}))


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    return tabulate(
        [cells(row) for row in rows], headers=_HEADERS, floatfmt=("", ".2f", *[".1f"] * 3, *[".0e"] * 4, *[".2f"] * 3, "")
    )


def cells(row: Row) -> tuple[object, ...]:
    """Return what stands in the table for a row."""
    shares = (row.removed, row.removed_aside, row.flops_removed)
    return (
        row.name,
        row.parameters / 1e6 if row.parameters else None,
        *(100 * share if row.is_pruned else None for share in shares),
        *(row.errors or (None,) * len(_COMPARED)),
        *row.seconds,
        *(None,) * (3 - len(row.seconds)),
        row.note,
    )


def totals(rows: Sequence[Row]) -> str:
    """Return what all rows together come to, as one line; the means are over the models that were pruned."""
    pruned = [row for row in rows if row.is_pruned]
    mean = sum(row.removed_aside for row in pruned) / max(len(pruned), 1)
    return (
        f"{len(pruned)} of {len(rows)} pruned, by {100 * mean:.1f} % of the parameters on average, embeddings aside; "
        f"{sum(row.is_failure for row in rows)} failed"
    )
