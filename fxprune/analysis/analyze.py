"""analyze: which positions of which parameters have to be removed together.

The graph runs once on fake tensors. Every node, whether it calls a module, a function or an operator, dissolves into calls of
ATen operators, which a dispatch mode sees. The rule of each operator carries labels from its operands to its results.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.abstract.counters import READS_VALUE, Counters, number
from fxprune.abstract.fakes import Fakes, give_examples
from fxprune.abstract.propagation import written
from fxprune.algebra.axes import Reason
from fxprune.algebra.units import Units
from fxprune.analysis.dependencies import Dependencies
from fxprune.analysis.examples import Examples
from fxprune.analysis.flops import work_of
from fxprune.analysis.operators import parameters_of
from fxprune.analysis.sources import MAX_CONSTANT, Sources, forgotten, named_tensors
from fxprune.analysis.stepping import Stepping
from fxprune.analysis.steps import MixingPoint, Step
from fxprune.errors import AnalysisError, FxpruneError, RuleError, in_short
from fxprune.functional import layers
from fxprune.graph.interpreter import NodeRunner
from fxprune.graph.masks import unmaskable
from fxprune.graph.metadata import LABEL, WHOLE
from fxprune.graph.parts import ByMode, within
from fxprune.graph.source_lines import code_line
from fxprune.rules import Call, Label, Rule, find_rule
from fxprune.rules.call import tensors_in
from fxprune.rules.card import Work
from fxprune.rules.pointwise import called_on
from fxprune.rules.registry import is_by_user, op_card
from fxprune.torch_internals.operators import REGIONS, OpOverload, TorchDispatchMode, is_composite, is_mutable, no_modes
from fxprune.torch_internals.switches import alone, no_fast_path, uncollected
from fxprune.torch_internals.tensors import DynamicOutputShapeException, FakeTensor, mapped, memory_of, pytree


@alone()
@uncollected()
def find_dependencies(gm: fx.GraphModule) -> Dependencies:
    """Analyze a graph as it is, its masks included; see :func:`fxprune.analyze`."""
    give_examples(gm)
    labelling = _Labelling(gm)
    inputs = _example_inputs(gm, labelling.fakes)
    # Below autograd and above decomposition: composite operators arrive as they were called.
    with no_fast_path(), torch.inference_mode(), labelling.fakes.mode, labelling:
        labelling.run(gm, inputs)
    return labelling.dependencies()


def _example_inputs(gm: fx.GraphModule, fakes: Fakes) -> list[Any]:
    inputs: list[Any] = []
    for node in gm.graph.find_nodes(op="placeholder"):
        if "val" not in node.meta:
            raise AnalysisError(
                f"input node {node.name!r} carries no example value in meta['val'], so the shapes in the graph are not known: "
                "analyze the graph as fxprune.capture made it, or capture it again with example inputs"
            )
        inputs.append(pytree.tree_map(fakes.like, node.meta["val"]))
    return inputs


class _Labelling(TorchDispatchMode):
    """Sees every ATen call of a graph and labels its results."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__()
        self.gm = gm
        self.units = Units()
        self.fakes = Fakes()
        self.here = Reason("")
        self.inside = ""  # prefix of the names of nodes inside a part that differs by mode, or a region
        self.region = ""  # the node of the region that runs, which stands for its nodes
        self.at: fx.Node | None = None  # the node that runs
        self.first = 0  # the number of its first step
        self.examples = Examples(gm, self.fakes)
        self.dynamic: dict[OpOverload, int] = {}  # how often the node that runs called an operator whose sizes depend on values
        self.whole = unmaskable(gm) | (WHOLE.get(gm) or {})
        self.not_analysed: dict[str, None] = {}
        self.values: dict[str, Any] = {}
        self.mixing_points: list[MixingPoint] = []
        self.work: list[Work] = []
        self.counts = True  # whether the calls are work
        self.steps: list[Step] = []
        self.without_rule: dict[str, None] = {}
        self.counters = Counters()
        self.aliases: dict[int, list[weakref.ref[Tensor]]] = {}  # by memory
        self.stepping: dict[int, list[Stepping]] = {}  # by memory
        self.sources = Sources(self.units)
        for name, tensor in named_tensors(gm):
            self._track(name, tensor)

    # The run.

    def run(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        """Run a graph, or a branch of a part that differs by mode."""
        # The calls hold all values anyway.
        hooks: dict[str, Any] = {"before": self._begin, "call": self._run_call, "after": self._finish, "rescue": self._rescue}
        runner = NodeRunner(gm, **hooks, keep_values=True)
        try:
            return runner.run(*inputs)
        except FxpruneError:
            raise
        except Exception as error:
            if (node := runner.at) is None:
                raise
            raise AnalysisError(
                f"node {node.name!r} ({node.op} {node.target}) cannot run on fake tensors: {str(error).partition(chr(10))[0]}"
            ) from error

    def _begin(self, node: fx.Node) -> None:
        self.here = Reason("", node=self.region or self.inside + node.name, source=code_line(node))
        self.at, self.first = node, len(self.steps)
        if not self.region:
            self.dynamic.clear()

    def _rescue(self, node: fx.Node, operands: Any, error: Exception) -> Any:
        """Keep whole what a node reads that cannot be analysed, and return what it gives for the example inputs."""
        if isinstance(error, RuleError):  # of a user's rule
            raise error
        try:
            value = self.examples.of(self.inside + node.name, node)
        except KeyError:
            raise error from None
        self.not_analysed[self.inside + node.name] = None
        why = replace(self.here, text=f"cannot be analysed: {in_short(error)}")
        self._keep_node_whole(node, why)
        for leaf in pytree.tree_leaves(operands):
            if isinstance(leaf, Tensor):
                self.forget(leaf)  # it may have been written to
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor):
                self._set(leaf, Label.whole(leaf.shape, why))
        return value

    def _keep_node_whole(self, node: fx.Node, why: Reason, value: Any = None) -> None:
        """Keep whole all axes that a node reads, on the way or from modules, and those of its value."""
        labels = [leaf for read in node.all_input_nodes for leaf in pytree.tree_leaves(self.values[self.inside + read.name])]
        labels += [label for step in self.steps[self.first :] for label in (*step.operands, *step.results)]
        read = [self.gm.get_submodule(str(node.target))] if node.op == "call_module" and not self.inside else []
        tensors = [tensor for module in read for tensor in (*module.parameters(), *module.buffers())]
        labels += [self.label(leaf) for leaf in (*tensors, *pytree.tree_leaves(value)) if isinstance(leaf, Tensor)]
        for label in labels:
            for axis in label.axes if isinstance(label, Label) else ():
                self.units.keep_whole(axis, why)

    def _run_call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(function, ByMode):
            return self._run_both(function, *args, **kwargs)
        if function is layers.add_if_:
            self.forget(args[0])  # written to in one of the two modes
        if function in REGIONS:
            args = tuple([partial(self._run_region, a) if isinstance(a, fx.GraphModule) else a for a in args])
        return function(*args, **kwargs)

    def _run_region(self, region: fx.GraphModule, *inputs: Any) -> Any:
        """Run the graph of a node that runs it once; its nodes are repaired one by one, and corrected as one."""
        before, prefix = (self.here, self.inside, self.region, self.at, self.first), within(self.inside, self.at)
        self.inside, self.region = prefix, self.region or self.here.node
        try:
            return self.run(region, inputs)
        finally:
            self.here, self.inside, self.region, self.at, self.first = before

    def _run_both(self, module: ByMode, *inputs: Any) -> Any:
        """Run both branches of a part that differs by mode: dependencies have to hold in either mode."""
        before, results = (self.here, self.inside, self.counts, self.at, self.first), list[Any]()
        counts = self.counts
        try:
            for inside, branch in module.branches(self.here.node):
                self.inside = inside
                # Only the calls of the present mode are work.
                self.counts = counts and branch is (module.in_train if module.training else module.in_eval)
                results.append(self.run(branch, inputs))
        finally:
            self.here, self.inside, self.counts, self.at, self.first = before
        in_train, in_eval = results
        self._couple(in_train, in_eval)
        return in_train if module.training else in_eval

    def _finish(self, node: fx.Node, value: Any) -> None:
        """Label the inputs, keep the outputs whole, and note the value of a node."""
        if (text := self.whole.get(self.inside + node.name)) is not None:
            self._keep_node_whole(node, replace(self.here, text=text), value)
        if self.inside:
            pass  # inputs and outputs of a branch are values of the graph outside
        elif node.op == "placeholder":
            why = replace(self.here, text=f"graph input {node.name!r}", by_model=True)
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, Tensor):
                    self._set(leaf, Label.whole(leaf.shape, why))
        elif node.op == "output":
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, Tensor):
                    for axis in self.label(leaf).axes:
                        self.units.keep_whole(axis, replace(self.here, text="graph output", by_model=True))
        elif node.op == "get_attr" and type(value) is Tensor and self.sources.find(value) is None:
            self._track(str(node.target), value)
        is_tensor = isinstance(value, Tensor)  # nearly always, and pytree is slow
        self.values[self.inside + node.name] = self.label(value) if is_tensor else mapped(self._labelled, value)

    def _couple(self, one: Any, other: Any) -> None:
        """Couple the results of the two modes axis by axis."""
        for a, b in zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True):
            ours, theirs = (self.label(t).axes if isinstance(t, Tensor) else () for t in (a, b))
            if tuple(x.size for x in ours) == tuple(y.size for y in theirs):
                for x, y in zip(ours, theirs, strict=True):
                    self.units.couple(x, y, replace(self.here, text="differs by mode"))
                continue
            for axis in (*ours, *theirs):
                self.units.keep_whole(axis, replace(self.here, text="has another shape in the other mode"))

    # Labels.

    def _track(self, name: str, tensor: Tensor) -> None:
        if (tracked := self.sources.add(name, tensor, producer=len(self.steps))) is not None:
            self.steps.append(Step(name, "", tracked))

    def label(self, tensor: Tensor) -> Label:
        """Return the label of a tensor that the graph meets."""
        if isinstance(tensor, FakeTensor):
            known: Label | None = LABEL.get(tensor)
            return Label.whole(tensor.shape, replace(self.here, text="of unknown origin")) if known is None else known
        return self.sources.label(tensor, self.here)

    def _labelled(self, leaf: Any) -> Any:
        return self.label(leaf) if isinstance(leaf, Tensor) else leaf

    def _set(self, tensor: Tensor, label: Label) -> None:
        if isinstance(tensor, FakeTensor):
            LABEL.set(tensor, label)
            self.aliases.setdefault(memory_of(tensor), []).append(weakref.ref(tensor))

    # Calls.

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks for a device or a dtype
            return func(*args, **kwargs)
        rule = find_rule(func)
        if rule is None and is_composite(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func in READS_VALUE:
            return self._item(args[0])
        try:
            result = self.fakes.call(func, args, kwargs)
        except DynamicOutputShapeException as error:  # the sizes depend on values, which only the example has
            result = self._example(error, func, args, kwargs)
            self.dynamic[func] = self.dynamic.get(func, 0) + 1
        returned = [result] if isinstance(result, Tensor) else [r for r in pytree.tree_leaves(result) if isinstance(r, Tensor)]
        if not returned and not is_mutable(func):
            return result  # a check or a size
        call = self._call(func, args, kwargs, returned)
        labels, constants = self._apply(rule, call), self._evaluate(call, returned)
        labels = [Label(la.axes, la.zeros, c, len(self.steps)) for la, c in zip(labels, constants, strict=True)]
        self._record(call, labels, result)
        for tensor, label in zip(returned, labels, strict=True):
            self._set(tensor, label)
        if func is torch.ops.aten.slice.Tensor and call["step"] > 1:
            given = slice(call["start"], call["end"], call["step"])
            stepping = Stepping(call.operand(0).axes[call.dim()], given, returned[0].untyped_storage())
            self.stepping.setdefault(memory_of(returned[0]), []).append(stepping)
        if is_mutable(func):
            for tensor in written(func, args, kwargs):
                self.forget(tensor)
            self.counters.written(func, args, kwargs)
        return result

    def _example(self, error: Exception, func: OpOverload, args: Any, kwargs: Any) -> Any:
        """Return what a call gives whose sizes depend on values: on known values, else the node's value for the example."""
        tensors, spec = pytree.tree_flatten((args, kwargs))
        known = [self.label(leaf).constant if isinstance(leaf, Tensor) else leaf for leaf in tensors]
        if all(leaf is not None or tensor is None for leaf, tensor in zip(known, tensors, strict=True)):
            with no_modes():
                args, kwargs = pytree.tree_unflatten(known, spec)
                found = func(*args, **kwargs)
            return pytree.tree_map(self.fakes.like, found)
        assert self.at is not None
        try:
            value = self.examples.of_call(self.here.node, self.at, func, self.dynamic.get(func, 0))
        except KeyError:
            raise error from None
        if not isinstance(value, Tensor):
            raise error
        return value

    def _call(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], returned: list[Tensor]) -> Call:
        arguments: dict[str, Any] = {}
        operands: list[Label | None] = []
        for place, (name, default, takes_tensors) in enumerate(parameters_of(op)):
            value = arguments[name] = args[place] if place < len(args) else kwargs.get(name, default)
            if isinstance(value, Tensor):
                operands.append(self.label(value))
            elif takes_tensors:
                operands += [None] if value is None else [None if t is None else self.label(t) for t in tensors_in(value)]
        shapes = [tuple(r.shape) for r in returned]
        at = Reason("", str(op), self.here.node, self.here.source)
        return Call(op, arguments, operands, shapes, self.units, at)

    def _apply(self, rule: Rule | None, call: Call) -> list[Label]:
        """Return the labels of the results. Where a built-in rule fails on the call, all axes of the call stay whole."""
        if rule is None:
            return self._unknown(call, "an operator without a rule: see fxprune.register_rule")
        try:
            labels = rule.apply(call)
            if [label.shape for label in labels] != call.shapes:
                raise RuleError(
                    f"the rule of {call.op} at node {call.at.node!r} gives results of shapes "
                    f"{[list(la.shape) for la in labels]}, where the operator gives {[list(s) for s in call.shapes]}"
                )
        except Exception as error:
            text = str(error) if isinstance(error, RuleError) else f"the rule of {call.op} fails: {in_short(error)}"
            if is_by_user(call.op):
                raise error if isinstance(error, RuleError) else RuleError(f"{text}, at node {call.at.node!r}") from error
            call.mixings.clear()
            call.axes = {}
            return self._unknown(call, text)
        return labels

    def _unknown(self, call: Call, text: str) -> list[Label]:
        """Keep every axis of the operands whole, and return whole results."""
        why = call.why(text)
        for label in call.operands:
            for axis in label.axes if label is not None else ():
                if self.units.resolve(axis).size:
                    self.without_rule[f"{call.op} at node {call.at.node!r}"] = None
                self.units.keep_whole(axis, why)
        return [Label.whole(shape, why) for shape in call.shapes]

    def _record(self, call: Call, labels: list[Label], result: Any) -> None:
        for mixing in call.mixings:
            point = MixingPoint(**vars(mixing), node=call.at.node, op=call.at.op, step=len(self.steps))
            self.mixing_points.append(point)
        if self.counts:
            self.work += work_of(call, result)
        own = self.inside + self.at.name if self.region and self.at is not None else call.at.node
        self.steps.append(Step(call.at.node, call.at.op, None, call, tuple(labels), own))

    def _evaluate(self, call: Call, returned: list[Tensor]) -> Sequence[Tensor | None]:
        """Return the values of results of integers or flags that depend on known values alone."""
        unknown = [None] * len(returned)
        if any(r.is_floating_point() or r.is_complex() or r.numel() > MAX_CONSTANT or r.is_meta for r in returned):
            return unknown
        if is_mutable(call.op) or torch.Tag.nondeterministic_seeded in call.op.tags or op_card(call.op).is_uninitialised:
            return unknown
        constants = {id(t): label.constant for label, t in call.given() if label.constant is not None}
        if not returned or any(id(t) not in constants for _, t in call.given()):
            return unknown
        with no_modes():
            return called_on(call, lambda t: constants[id(t)]) or unknown

    def _item(self, tensor: Tensor) -> Any:
        constant = self.label(tensor).constant if isinstance(tensor, FakeTensor) else self.counters.now(tensor)
        if constant is None or constant.is_meta:
            raise AnalysisError(
                f"node {self.here.node!r} asks for the value of a tensor, which is not known before the graph runs"
            )
        return number(constant)

    def forget(self, tensor: Tensor) -> None:
        """Forget the zeros and constants of every tensor that shares the memory of ``tensor``, which is written to."""
        memory = memory_of(self.fakes.of(tensor))
        for reference in self.aliases.get(memory, ()):
            if (alias := reference()) is not None and alias is not tensor:
                LABEL.set(alias, forgotten(LABEL[alias]))
        for stepping in self.stepping.pop(memory, ()):
            stepping.couple(self.units, replace(self.here, text="is written to through a slice with a step"))
        if (origin := self.fakes.origin(memory)) is not None:
            self.sources.forget_values(origin)

    def dependencies(self) -> Dependencies:
        """Return the result of the analysis."""
        tracked, unknown = self.sources.tracked, (tuple(self.without_rule), tuple(self.not_analysed))
        return Dependencies(self.gm, self.units, tracked, self.values, self.mixing_points, self.work, self.steps, *unknown)
