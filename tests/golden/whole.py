"""Golden networks before anything is done to them, captured and analysed once for all tests."""

from __future__ import annotations

import copy
import dataclasses
import functools

import pytest
from torch import fx

import fxprune
from fxprune.analysis.dependencies import Dependencies
from tests.golden.registry import NETS
from tests.shrinking import captured

OF_TRANSFORMERS = ("llama", "llama_untied", "bert", "gpt2")  # symbolic tracing captures none of these


@dataclasses.dataclass(frozen=True)
class Whole:
    """A graph in double precision, which nobody changes, and its analysis."""

    gm: fx.GraphModule
    deps: Dependencies


@functools.cache
def whole(name: str, frontend: str) -> Whole:
    if name in OF_TRANSFORMERS:
        pytest.importorskip("transformers")
    gm = captured(NETS[name].build(), NETS[name].inputs(2), frontend)
    return Whole(gm, fxprune.analyze(copy.deepcopy(gm)))
