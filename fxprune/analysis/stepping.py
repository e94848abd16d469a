"""Views with a step, such as ``x[::2]``, whose memory is written to later."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from fxprune.algebra.axes import Axis, Reason
from fxprune.algebra.units import Units


class Stepping(NamedTuple):
    """A view such as ``x[::2]``; holds the memory, so that no other memory takes its address.

    A write to ``x`` has to show in the view. If position 1 of ``x`` goes, the positions 0, 2 and 4 become 0, 1 and 3, which no
    view picks. So when ``x`` is written to, positions from a picked one up to the next picked one are coupled: 0 with 1, 2
    with 3.
    """

    axis: Axis
    given: slice
    memory: torch.UntypedStorage

    def couple(self, units: Units, why: Reason) -> None:
        """Couple positions that are picked with those up to the next picked one."""
        start, stop, step = self.given.indices(self.axis.size)
        places = np.arange(start, min(stop + step, self.axis.size) - 1)
        places = places[(places - start) % step != step - 1]
        units.couple(self.axis.take(places), self.axis.take(places + 1), why)
