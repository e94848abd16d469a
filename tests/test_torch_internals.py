"""Switches of the whole process hold as long as one of several threads needs them, and are as before afterwards."""

from __future__ import annotations

import gc
import logging
import random
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import transformer

import fxprune
from fxprune.torch_internals import switches

SWITCHES: list[tuple[Callable[[], AbstractContextManager[Any]], Callable[[], Any]]] = [
    (switches.uncollected, gc.isenabled),
    (switches.no_fast_path, torch.backends.mha.get_fastpath_enabled),
    (switches.attention_as_products, torch.backends.cuda.flash_sdp_enabled),
    (switches.no_mkldnn, lambda: torch.backends.mkldnn.enabled),
    (switches.masks_unseen, lambda: transformer._detect_is_causal_mask),
    (switches.unlogged, lambda: logging.root.manager.disable),
    (switches.quiet, lambda: list(warnings.filters)),
    (lambda: switches.watching_reads(lambda tensor: None), lambda: (Tensor.tolist, Tensor.numpy)),
    (lambda: switches.watching_modes(lambda module, frame: None), lambda: "training" in vars(nn.Module)),
]


@pytest.mark.parametrize(("switch", "state"), SWITCHES)
def test_a_switch_holds_until_the_last_thread_leaves(
    switch: Callable[[], AbstractContextManager[Any]], state: Callable[[], Any]
) -> None:
    before, entered, leave = state(), threading.Event(), threading.Event()

    def second() -> Any:
        with switch():
            entered.set()
            assert leave.wait(10)
            return state()

    with ThreadPoolExecutor(1) as pool:
        with switch():
            during = state()
            other = pool.submit(second)
            assert entered.wait(10)
        assert state() == during != before
        leave.set()
        assert other.result() == during
    assert state() == before
    with switch(), switch():
        assert state() != before
    assert state() == before


def test_threads_that_analyze_leave_the_fast_path_on() -> None:
    gm = fxprune.capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(2, 4))
    started = threading.Barrier(2)

    def analyze_often() -> None:
        started.wait()
        for _ in range(20):
            fxprune.analyze(gm)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(analyze_often) for _ in range(2)]:
            done.result()
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_another_thread_reads_is_no_news() -> None:
    told: list[Any] = []
    module, tensor = nn.Linear(1, 1), torch.zeros(2)

    def read() -> None:
        assert module.training
        assert tensor.tolist() == [0, 0]

    with switches.watching_modes(lambda m, _: told.append(m)), switches.watching_reads(told.append):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(read).result()
        assert told == []
        with switches.modes_unwatched():
            assert module.training
        assert told == []
        read()
    assert told[0] is module
    assert told[1] is tensor


def test_one_thread_at_a_time_has_random_numbers_of_its_own() -> None:
    started = threading.Barrier(2)

    def draw() -> tuple[list[float], list[str]]:
        started.wait()
        for _ in range(50):
            with switches.own_random_numbers([]) as used:
                numbers = [torch.rand(()).item() for _ in range(20)]
        return numbers, used

    random.seed(0)
    torch.manual_seed(1)
    states = random.getstate(), torch.get_rng_state()
    with ThreadPoolExecutor(2) as pool:
        (one, used_by_one), (other, used_by_other) = [done.result() for done in [pool.submit(draw), pool.submit(draw)]]
    assert one == other
    assert used_by_one == used_by_other == []
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
