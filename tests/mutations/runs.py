"""One network, one mutation: what each check says."""

from __future__ import annotations

import copy
import functools
import random
import warnings
import zlib
from typing import Any, NamedTuple

import torch
from torch import fx

import fxprune
from fxprune.graph.metadata import SHAPES
from fxprune.passes.shrink import shrunk_copy
from fxprune.verification.verify import verify_rewriting
from tests.golden.registry import NETS
from tests.golden.whole import OF_TRANSFORMERS
from tests.mutations.mutations import MUTATIONS, Mutation

PLACES = [(name, f) for name in NETS for f in ("trace", "export") if not (f == "trace" and name in OF_TRANSFORMERS)]


class Outcome(NamedTuple):
    """A mutation and which check finds it; ``what`` is empty if the graph has nothing to mutate."""

    what: str
    full: bool
    quick: bool


@functools.lru_cache(maxsize=2)
def _pruned(name: str, frontend: Any) -> tuple[fx.GraphModule, fx.GraphModule, tuple[torch.Tensor, ...]]:
    inputs = NETS[name].inputs(2)
    gm = fxprune.capture(NETS[name].build(), inputs, frontend=frontend)
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5), verify=False)
    return gm, shrunk_copy(gm)[0], inputs


def outcome(name: str, frontend: str, mutation: Mutation, seed: int) -> Outcome:
    """Mutate the shrunk graph of a golden network, and compare it with the masked one in both ways."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masked, small, inputs = _pruned(name, frontend)
        wrong = copy.deepcopy(small)
        what = mutation(masked, wrong, random.Random(zlib.crc32(f"{name} {frontend} {mutation.__name__} {seed}".encode())))
        if not what:
            return Outcome("", full=False, quick=False)
        found = []
        for check in (fxprune.verify, verify_rewriting):
            SHAPES.set(wrong, SHAPES[small])
            try:
                check(masked, wrong, inputs, None)
                found.append(False)
            except fxprune.VerificationError:
                found.append(True)
    return Outcome(what, *found)


def all_mutations() -> list[tuple[str, str, Mutation]]:
    """Return every golden network behind every front end with every mutation."""
    return [(name, frontend, mutation) for name, frontend in PLACES for mutation in MUTATIONS]
