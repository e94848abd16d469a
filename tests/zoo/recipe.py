"""A recipe: how a model of the catalogue is built, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo import shim

BATCH = 2
_SEED = 0

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """One model of the catalogue.

    Attributes:
        family: The library that the model is from.
        model: Its name there.
        construct: Makes the model.
        inputs: Makes the positional and the keyword arguments of a call, with `BATCH` samples.
    """

    family: str
    model: str
    construct: Callable[[], nn.Module]
    inputs: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]

    @property
    def name(self) -> str:
        """The name in the catalogue."""
        return f"{self.family}/{self.model}"

    def build(self) -> Built:
        """Return the model in eval mode, and the positional and keyword arguments of a call; equal on every call."""
        shim.install()
        # Forked, so that building a model leaves the caller's random stream where it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            model = self.construct()
            args, kwargs = self.inputs()
        return model.eval(), args, kwargs


def pixels(*sizes: int, channels: int = 3) -> Tensor:
    """Return random images or clips, given the extent of each axis after the channels."""
    return torch.randn(BATCH, channels, *sizes)
