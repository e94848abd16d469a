"""What tests of benchmarks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.benchmarks import masks, memory
from tests.zoo.apart import call_apart


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let only the first of a benchmark's processes be one, as a start takes seconds; the names of what is done there."""
    done, threads = list[str](), torch.get_num_threads()

    def call(function: Callable[[str], Any], name: str, seconds: float) -> Any:
        if done:
            return function(name)
        done.append(name)
        return call_apart(function, name, seconds)

    for benchmark in (masks, memory):
        monkeypatch.setattr(benchmark, "call_apart", call)
    yield done
    torch.set_num_threads(threads)
