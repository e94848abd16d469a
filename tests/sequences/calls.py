"""The public calls that a sequence is made of. Each takes a state, changes it, and says what the graph has to compute then."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

import fxprune
from fxprune.graph.masks import all_masked, find_parameter

Expected = Callable[[], Tensor] | None
"""The output that a call leaves; None where it may be anything, as after a step of training."""


@dataclass
class State:
    """A graph in the middle of a sequence.

    Attributes:
        gm: the graph.
        x: the input that its outputs are compared on.
        plain: a copy from when it last had no masks of a plan; None if other masks or weights came since.
        draw: the source of random choices.
    """

    gm: fx.GraphModule
    x: Tensor
    plain: fx.GraphModule | None
    draw: random.Random

    def output(self, gm: fx.GraphModule | None = None) -> Tensor:
        """Return the output of a graph in eval mode, of this state's graph unless given."""
        gm = self.gm if gm is None else gm
        with torch.no_grad():
            found = gm.eval()(self.x)
        assert isinstance(found, Tensor)
        return found

    def parameter(self) -> str:
        """Return the name of a parameter."""
        masked = [name for entry in all_masked(self.gm) for name in entry.names]
        plain = [n for n, p in self.gm.named_parameters() if not n.endswith("_orig")]
        return self.draw.choice(sorted(masked + plain))

    def plan(self) -> fxprune.Plan:
        """Return a random plan."""
        deps = fxprune.analyze(self.gm)
        torch.manual_seed(self.draw.randrange(1 << 30))
        importance = self.draw.choice([fxprune.Random(), None])
        member = self.draw.choice(deps.groups).on_parameters[0] if deps.groups and self.draw.random() < 0.5 else None
        overrides = {member.parameter: 0.0} if member else None
        amount = self.draw.choice([0.0, 0.25, 0.5])
        return fxprune.plan(deps, amount, importance=importance, overrides=overrides)


def _same(state: State) -> Expected:
    before = state.output()
    return lambda: before


def mask_plan(state: State) -> Expected:
    """The masks of a plan replace those of the plan before: the graph computes as if only the last had been there."""
    plan, reference = state.plan(), copy.deepcopy(state.plain)
    if reference is not None:
        with torch.no_grad():
            for name in {name.removesuffix("_orig") for name, _ in reference.named_parameters()}:
                find_parameter(reference, name).copy_(find_parameter(state.gm, name))
            for name, buffer in reference.named_buffers():
                buffer.copy_(state.gm.get_buffer(name))
        fxprune.mask(reference, plan)
    fxprune.mask(state.gm, plan)
    return None if reference is None else lambda: state.output(reference)


def update_plan(state: State) -> Expected:
    """A plan masked twice is masked once."""
    plan = state.plan()
    fxprune.mask(state.gm, plan)
    expected = state.output()
    fxprune.mask(state.gm, state.plan())
    fxprune.mask(state.gm, plan)
    return lambda: expected


def mask_elements(state: State) -> Expected:
    """The elements that a method masks are zero from now on; all others stay."""
    name, reference = state.parameter(), copy.deepcopy(state.gm)
    parameter = find_parameter(state.gm, name)
    torch.manual_seed(state.draw.randrange(1 << 30))
    keep = torch.rand_like(parameter) > 0.3
    methods: list[Callable[[], object]] = [
        lambda: fxprune.custom_from_mask(state.gm, name, keep),
        lambda: fxprune.mask(state.gm, {name: keep}),
        lambda: fxprune.l1_unstructured(state.gm, name, 0.25),
        lambda: fxprune.random_unstructured(state.gm, name, 0.25),
    ]
    if parameter.dim() > 1:
        methods.append(lambda: fxprune.ln_structured(state.gm, name, 0.25, n=2, dim=0))
    state.draw.choice(methods)()
    state.plain = None
    entry = next(e for e in all_masked(state.gm) if name in e.names)
    old = next((e.masks["_mask"] for e in all_masked(reference) if name in e.names and "_mask" in e.masks), None)
    with torch.no_grad():
        if old is not None:
            old.fill_(1)
        find_parameter(reference, name).mul_(entry.masks["_mask"])
    return lambda: state.output(reference)


def remove(state: State) -> Expected:
    """The output stays."""
    expected, names = _same(state), [name for entry in all_masked(state.gm) for name in entry.names]
    if names:
        fxprune.remove(state.gm, state.draw.choice(sorted(names)))
        state.plain = None
    return expected


def finalize(state: State) -> Expected:
    """The output stays."""
    expected = _same(state)
    fxprune.finalize(state.gm)
    return expected


def train(state: State) -> Expected:
    """A few steps of training."""
    state.gm.train()
    optimizer = torch.optim.SGD(state.gm.parameters(), 0.05, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        state.gm(state.x).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(state.gm.parameters(), 1.0)
        optimizer.step()
    return None


def load(state: State) -> Expected:
    """Load the values of a copy that was trained, or of weights without masks, as far as they fit."""
    other = copy.deepcopy(state.gm)
    if state.draw.random() < 0.5:
        fxprune.finalize(other)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.rand_like(parameter) * 0.1)
    state.gm.load_state_dict(other.state_dict(), strict=False)
    state.plain = None
    return None


def deepcopied(state: State) -> Expected:
    """The output stays."""
    expected = _same(state)
    state.gm = copy.deepcopy(state.gm)
    return expected


def pickled(state: State) -> Expected:
    """The output stays."""
    expected = _same(state)
    state.gm = pickle.loads(pickle.dumps(state.gm))
    return expected


def captured(state: State) -> Expected:
    """The output stays."""
    expected = _same(state)
    state.gm = fxprune.capture(state.gm, state.x)
    return expected


def shrink(state: State) -> Expected:
    """The output stays."""
    expected = _same(state)
    fxprune.shrink(state.gm, verify=False, from_zeros=state.draw.random() < 0.5)
    return expected


def prune(state: State) -> Expected:
    """The output of a graph that is shrunk, masked and shrunk."""
    torch.manual_seed(state.draw.randrange(1 << 30))
    reference = fxprune.shrink(copy.deepcopy(state.gm), verify=False)
    small = fxprune.prune(state.gm, state.x, 0.25)
    fxprune.mask(reference, fxprune.plan(fxprune.analyze(reference), 0.25))
    state.gm = small
    return lambda: state.output(reference)


def global_unstructured(state: State) -> Expected:
    """The elements that go are zero."""
    fxprune.global_unstructured(state.gm, sorted({state.parameter(), state.parameter()}), fxprune.L1Unstructured, amount=0.2)
    state.plain = None
    return None


CALLS: dict[str, Callable[[State], Expected]] = {
    call.__name__: call
    for call in (
        mask_plan, update_plan, mask_elements, remove, finalize, train, load, deepcopied, pickled, captured, shrink, prune,
        global_unstructured,
    )
}  # fmt: skip


def run(state: State, name: str) -> str:
    """Make a call; return what is wrong afterwards, an empty string if nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = CALLS[name](state)
        found = state.output()
        if expected is not None and (error := _difference(found, expected())) > 1e-9:
            return f"{name}: the output differs by {error:.1e}"
        if not any(entry.by_axis for entry in all_masked(state.gm)):
            state.plain = copy.deepcopy(state.gm)
        if state.draw.random() < 0.3:
            small = fxprune.shrink(copy.deepcopy(state.gm), verify=False)
            if (error := _difference(state.output(small), found)) > 1e-9:
                return f"{name}, then shrink: the output differs by {error:.1e}"
    return ""


def _difference(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    error = float((one - other).abs().max() / (other.abs().max() + 1))
    return error if error == error else float("inf")
