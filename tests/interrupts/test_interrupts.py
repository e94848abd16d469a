"""Signals wait for a moment at which an exception does no harm; a sample of random interrupts; interrupts that models raise."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.torch_internals.interrupts import interruptible, interrupts_wait, let_interrupts_in, uninterrupted
from tests.interrupts import state
from tests.interrupts.runs import duration, interrupted, result

SAMPLE = (
    "capture Convolutions trace",
    "capture Convolutions export",
    "mask Convolutions",
    "finalize Attends",
    "verify Convolutions",
)


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", SAMPLE)
def test_random_interrupts_leave_everything_as_it_was(name: str) -> None:
    seconds, complete, chance = duration(name), result(name), random.Random(0)
    for _ in range(2):
        _, changed = interrupted(name, chance.uniform(1e-4, seconds), complete)
        assert changed == []


def test_a_signal_waits_for_the_end() -> None:
    done = []

    def work() -> None:
        with interrupts_wait():
            interrupt()
            done.append("after")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["after"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_waits_for_a_place_where_it_does_no_harm() -> None:
    done = []

    def work() -> None:
        with interrupts_wait():
            interrupt()
            done.append("before")
            with uninterrupted():
                let_interrupts_in()
                done.append("rewritten")
            let_interrupts_in()
            done.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["before", "rewritten"]


def test_the_second_signal_does_not_wait() -> None:
    def work() -> None:
        with interrupts_wait():
            interrupt()
            interrupt()
            pytest.fail("the second one waits")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_code_of_the_user_is_interrupted_at_once() -> None:
    def work() -> None:
        with interrupts_wait(), interruptible():
            interrupt()
            pytest.fail("it waits")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_the_user_stay() -> None:
    came: list[int] = []

    def handler(number: int, frame: Any) -> None:
        came.append(number)

    signal.signal(signal.SIGINT, handler)
    with interrupts_wait():
        interrupt()
        assert came == []
    assert came == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is handler
    with interrupts_wait():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # by code of the model
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_handle_no_signals() -> None:
    handlers: list[Any] = []

    def work() -> None:
        with interrupts_wait(), uninterrupted(), interruptible():
            let_interrupts_in()
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


@pytest.mark.parametrize("frontend", ["trace", "export", "auto"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
@pytest.mark.parametrize("at", range(1, 4))
def test_what_a_model_raises_leaves_everything_as_it_was(frontend: Any, error: type[BaseException], at: int) -> None:
    class Raises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l, self.inner, self.runs = nn.Linear(4, 4), nn.Linear(4, 4), 0

        def forward(self, x: Tensor) -> Tensor:
            runs.append(None)
            y = self.inner(self.l(x)) + torch.zeros(x.shape[0], 4)
            self.l.training = not self.training
            if len(runs) == at:
                raise error
            return y

    fxprune.capture(nn.Linear(4, 4), torch.zeros(2, 4), frontend="export")  # loads what it loads
    runs: list[None] = []
    model, x = Raises().eval(), torch.zeros(2, 4)
    process, before = state.of_process(), state.of_modules(model)
    try:
        fxprune.capture(model, x, frontend=frontend)
    except (error, fxprune.FxpruneError):
        pass
    except UserWarning:
        pass
    assert state.differences(process, state.of_process()) == []
    assert state.differences(before, state.of_modules(model)) == []
    fxprune.capture(nn.Linear(4, 4), torch.zeros(2, 4), frontend="export")
