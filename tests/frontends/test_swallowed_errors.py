"""Errors that only a capture raises spoil it, whoever catches them: on the example both ways of the code may give the same."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.compare import relative_error

FRONTENDS = ("trace", "export")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 4)


class BranchOnValues(Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.l(x)
        try:
            return y * 2 if bool((x > 100).all()) else y
        except (TypeError, ValueError, RuntimeError):
            return y


class Suppressed(Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.l(x)
        with contextlib.suppress(Exception):
            y = y * max(1.0, float(x.detach().max()) - 100)
        return y


class ReturnsFinally(Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.l(x)
        try:
            if x.detach().max().item() > 100:
                y = y * 2
        finally:
            return y  # noqa: B012


class Floor(Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.l(x)
        try:
            return y if math.floor(x.detach().max()) < 100 else y * 2
        except Exception:
            return y


class Text(Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.l(x)
        try:
            return y if len(f"{x.detach().max():.0f}") < 3 else y * 2
        except Exception:
            return y


class Array(Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.l(x)
        try:
            return y if np.asarray(x.detach()).max() < 100 else y * 2
        except Exception:
            return y


class Equality(Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.l(x)
        try:
            return y * 2 if torch.equal(x, x + 100) else y
        except Exception:
            return y


class List(Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.l(x)
        try:
            return y * 2 if max(x.detach().flatten().tolist()) > 100 else y
        except Exception:
            return y


@pytest.mark.parametrize("kind", [BranchOnValues, Suppressed, ReturnsFinally, Floor, Text, Array, Equality, List])
@pytest.mark.parametrize("frontend", ["auto", *FRONTENDS])
def test_a_value_that_was_asked_for_spoils_the_capture(kind: type[Net], frontend: Any) -> None:
    with pytest.raises(fxprune.CaptureError, match=r"could not be captured") as error:
        fxprune.capture(kind(), torch.rand(3, 4), frontend=frontend)
    assert "an error that only the capture raises" in str(error.value) or frontend == "export"


class Draws(Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.l(x)
        with contextlib.suppress(Exception):
            y = y + 0 * torch.randn(4)
        return y


class Writes(Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.l(x)
        with contextlib.suppress(Exception):
            y[x > 100] = 7.0
        return y


class Limits(Net):
    def forward(self, x: Tensor) -> Tensor:
        try:
            lowest = torch.finfo(x.dtype).min
        except TypeError:
            lowest = -1e9
        return torch.relu(self.l(x)).clamp(min=lowest)


class Detached(Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.l(x)
        with contextlib.suppress(Exception), torch.no_grad():
            y = y + 0 * self.l(x)
        return y


class Guesses(Net):
    """Goes on without a size that it cannot have as a number."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.l(x)
        try:
            return y * {4: 1.0, 5: 2.0}[x.shape[1]]
        except KeyError:
            return y


@pytest.mark.parametrize("kind", [Draws, Writes, Limits, Detached, Guesses])
@pytest.mark.parametrize("training", [False, True])
def test_what_one_way_of_tracing_refuses_another_captures(kind: type[Net], training: bool) -> None:
    model, x = kind().train(training), torch.rand(3, 4)
    gm = fxprune.capture(model, x)
    for y in (x, 200 * torch.rand(5, 4)):
        assert relative_error(gm(y), model(y)) <= 1e-6


def test_sizes_are_looked_up_by_their_numbers() -> None:
    class Table(Net):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.l(x)
            return y * {3: 2.0, 4: 3.0}.get(x.shape[-1], 5.0) if x.size(1) in {4, 5} else y

    model, x = Table(), torch.rand(3, 4)
    gm = fxprune.capture(model, x, frontend="trace")
    assert relative_error(gm(x), model(x)) == 0
    with pytest.raises(RuntimeError, match="shape"):
        gm(torch.rand(3, 3))


def test_errors_that_the_model_itself_raises_are_its_own() -> None:
    class Tries(Net):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.l(x)
            try:
                raise NotImplementedError("a kernel that is not there")
            except NotImplementedError:
                return y.reshape(-1) * 2

    model, x = Tries(), torch.rand(3, 4)
    for frontend in FRONTENDS:
        gm = fxprune.capture(model, x, frontend=frontend)  # type: ignore[arg-type]
        assert relative_error(gm(x), model(x)) == 0
