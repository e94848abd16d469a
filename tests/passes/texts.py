"""Texts: the graphs of small networks after a pass, to be read."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.shrinking import Pruned, pruned


@dataclasses.dataclass(frozen=True)
class Text:
    """A network, how it is captured and pruned to a half, and the text of its graph afterwards."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    frontend: str
    options: Mapping[str, Any]
    text: str

    def pruned(self) -> Pruned:
        """Return the network, masked and shrunk; the first units of every group go."""
        torch.manual_seed(0)
        options = {"importance": lambda _, group: np.arange(group.size)} | dict(self.options)
        return pruned(self.build(), (torch.randn(*self.shape),), 0.5, self.frontend, **options)

    @property
    def expected(self) -> str:
        """The text without its indentation here."""
        return textwrap.dedent(self.text).strip()
