"""The costs of a model before and after: parameters, memory, FLOPs, time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, fx, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from fxprune.errors import InputError, in_short
from fxprune.frontends.model.snapshot import ModelSnapshot
from fxprune.frontends.modes.reads import in_mode
from fxprune.graph.interpreter import NodeRunner, in_order
from fxprune.graph.masks import base_names
from fxprune.graph.paths import split
from fxprune.graph.side_effects import writes_to_parameters
from fxprune.torch_internals.switches import attention_as_products, no_fast_path, no_mkldnn, own_random_numbers, quiet
from fxprune.verification.inputs import Inputs


@dataclasses.dataclass(frozen=True)
class Cost:
    """The costs of a model.

    Attributes:
        parameters: elements of all parameters, each tied parameter counted once.
        bytes: memory of the parameters.
        flops: floating-point operations of one run, as ``torch.utils.flop_counter`` counts them; None if not run.
        latency: median time of one run in seconds; None if not measured.
    """

    parameters: int
    bytes: int
    flops: int | None = None
    latency: float | None = None


@dataclasses.dataclass(frozen=True)
class Layer:
    """A parameter before and after; a shape is None where the model has no parameter of that name."""

    name: str
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None

    @property
    def removed(self) -> int:
        """The number of elements that are gone."""
        before, after = (0 if shape is None else math.prod(shape) for shape in (self.before, self.after))
        return before - after


@dataclasses.dataclass(frozen=True)
class Work:
    """The FLOPs of the module at a path itself and of functions on its parameters; path '' has the FLOPs of no module."""

    path: str
    before: int
    after: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two models side by side; ``str()`` gives the tables. ``layers`` and ``work`` are empty unless asked for."""

    before: Cost
    after: Cost
    layers: tuple[Layer, ...] = ()
    work: tuple[Work, ...] = ()

    def __str__(self) -> str:
        rows = [
            _row("parameters", self.before.parameters, self.after.parameters, "{:,}"),
            _row("bytes", self.before.bytes, self.after.bytes, "{:,}"),
            _row("FLOPs", self.before.flops, self.after.flops, "{:,}"),
            _row("latency (ms)", self.before.latency, self.after.latency, "{:.3f}", 1e3),
        ]
        tables = [_table([row for row in rows if row], ["", "before", "after", "ratio"])]
        if self.layers:
            shapes = [[la.name, _shape(la.before), "->", _shape(la.after), f"{la.removed:,}"] for la in self.layers]
            tables.append(_table(shapes, ["parameter", "before", "", "after", "removed"]))
        if self.work:
            works = [_row(w.path or "(no module)", w.before, w.after, "{:,}") for w in self.work]
            tables.append(_table(works, ["FLOPs of", "before", "after", "ratio"]))
        return "\n\n".join(tables)


def _table(rows: list[list[str]], headers: list[str]) -> str:
    alignment = ("left", *["right"] * (len(headers) - 1))
    return str(tabulate(rows, headers=headers, colalign=alignment if rows else None, disable_numparse=True))


def _row(name: str, before: float | None, after: float | None, form: str, scale: float = 1) -> list[str]:
    if before is None or after is None:
        return []
    return [name, form.format(before * scale), form.format(after * scale), f"{after / before:.3f}" if before else "-"]


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape)) or "scalar"


def compare(before: nn.Module, after: nn.Module, inputs: Inputs | None, *, layers: bool, latency: bool) -> Comparison:
    """Return the costs of both models, with ``inputs`` also of a run in eval mode; the models do not change.

    ``layers`` compares parameter by parameter and module by module as well.
    """
    work: list[dict[str, int]] = []
    times: tuple[float, float] | None = None
    if inputs is not None:
        with as_it_was(before), as_it_was(after), torch.inference_mode(False), torch.no_grad():
            for model in (before, after):
                try:
                    work.append(_work(model, inputs))
                except Exception as error:  # operators raise any type on operands that do not fit
                    where = "before" if model is before else "after"
                    raise InputError(f"the model {where} fails on the example inputs: {in_short(error)}") from error
            times = _times(before, after, inputs) if latency else None
    costs = []
    for i, model in enumerate((before, after)):
        sizes = [(p.numel(), p.nbytes) for p in model.parameters()]
        flops = sum(work[i].values()) if work else None
        costs.append(Cost(sum(n for n, _ in sizes), sum(n for _, n in sizes), flops, times[i] if times else None))
    if not layers:
        return Comparison(costs[0], costs[1])
    shapes = [{base_names(model, p)[0]: tuple(p.shape) for p in model.parameters()} for model in (before, after)]
    return Comparison(
        costs[0],
        costs[1],
        tuple(Layer(name, *(s.get(name) for s in shapes)) for name in {**shapes[0], **shapes[1]}),
        tuple(Work(path, *(w.get(path, 0) for w in work)) for path in dict.fromkeys(itertools.chain(*work))),
    )


@contextlib.contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode within the context, and undo after it every change that a run makes."""
    tensors: list[Tensor] = [*model.buffers(), *(model.parameters() if writes_to_parameters(model) else ())]
    values = [tensor.detach().clone() for tensor in tensors]
    kept = ModelSnapshot(model)
    with in_mode(kept.modules, training=False), own_random_numbers(kept.tensors.values()), kept.untouched():
        try:
            yield
        finally:
            for tensor, value in zip(tensors, values, strict=True):
                if not tensor.is_meta and not torch.equal(tensor, value):
                    tensor.detach().copy_(value)


def _work(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Return the FLOPs of one run by module path; calls of functions count for the module whose parameter they read."""
    args, kwargs = inputs.copied(double=False)
    # Torch's counter does not know some fused kernels; without them it sees matrix products.
    with quiet(), no_fast_path(), attention_as_products(), no_mkldnn(), FlopCounterMode(display=False) as counter:
        if isinstance(model, fx.GraphModule):
            return _flops_of_nodes(model, counter, Inputs(args, kwargs))
        model(*args, **kwargs)
    return _own_flops(counter.get_flop_counts(), type(model).__name__)


def _own_flops(counts: dict[str, dict[Any, int]], root: str) -> dict[str, int]:
    """Return the FLOPs of each module without its children from the counter's sums under dotted names."""
    totals = {path: sum(by_operator.values()) for path, by_operator in counts.items() if path != "Global"}
    own = Counter(totals)
    for path, total in totals.items():
        if path != root:
            parent = path.rpartition(".")[0]
            while parent not in totals and parent:  # a container that is not called itself
                parent = parent.rpartition(".")[0]
            own[parent] -= total
    return {path.removeprefix(root).removeprefix("."): flops for path, flops in own.items() if flops > 0}


def _flops_of_nodes(gm: fx.GraphModule, counter: FlopCounterMode, inputs: Inputs) -> dict[str, int]:
    """Run a graph under a counter and return the FLOPs of its nodes by module path."""
    flops: Counter[str] = Counter()

    def after(node: fx.Node, _: Any) -> None:
        if (new := counter.get_total_flops() - flops.total()) > 0:
            flops[_path(node)] += new

    NodeRunner(gm, after=after).run(*in_order(gm, inputs))
    return flops


def _path(node: fx.Node) -> str:
    """Return the path of the module that a node calls or whose parameter it reads, also through a mask or a transposition."""
    if node.op == "call_module":
        return str(node.target)
    found = (_parameter_read(source) for source in node.all_input_nodes)
    return next((split(target)[0] for target in found if target), "")


def _parameter_read(node: fx.Node, depth: int = 4) -> str | None:
    """Return the first parameter that ``node`` is computed from; None if an operand is an activation."""
    if node.op == "get_attr":
        return str(node.target)
    if depth == 0 or not node.all_input_nodes:
        return None
    targets = [_parameter_read(source, depth - 1) for source in node.all_input_nodes]
    return targets[0] if all(targets) else None


_SECONDS = 0.5  # to measure the latency of both models together
_LEAST_RUNS, _MOST_RUNS = 3, 200  # of each model


def _times(before: nn.Module, after: nn.Module, inputs: Inputs) -> tuple[float, float]:
    """Return the median time of one run of each model in seconds; runs alternate, so that both models meet the same load."""
    args, kwargs = inputs.copied(double=False)
    runs = [functools.partial(model, *args, **kwargs) for model in (before, after)]
    timers = [Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads()) for run in runs]
    with quiet():
        for timer in timers:
            timer.timeit(1)  # warm-up
        rounds: list[list[float]] = [[], []]
        while len(rounds[0]) < _LEAST_RUNS or (sum(map(sum, rounds)) < _SECONDS and len(rounds[0]) < _MOST_RUNS):
            for timer, measured in zip(timers, rounds, strict=True):
                measured.append(timer.timeit(1).median)
    return statistics.median(rounds[0]), statistics.median(rounds[1])
