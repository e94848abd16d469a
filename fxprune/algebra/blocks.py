"""Blocks, the units that are made together for an axis, and readings, the resolved rows of an axis.

Most couplings are of whole blocks of which nothing else is known. They are noted once for the block, without a look at its
units, and most units never get numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.algebra.axes import Rows
from fxprune.algebra.contents import Content


@dataclass(eq=False)
class Reading:
    """The content of rows, kept until something is learnt of its units.

    Attributes:
        given: the rows.
        content: the resolved rows; the given rows before the first look.
        blocks: the numbers of the blocks of the units in ``content``.
        version: the version of the equations up to which ``content`` is right; -1 before the first look.
        is_shared: whether ``content`` is the one object for all axes with equal units at equal positions.
    """

    given: Rows
    content: Content
    blocks: frozenset[int] = frozenset()
    version: int = -1
    is_shared: bool = False


class Block:
    """The units that are made together for one axis, one for each position, in order.

    Example: a weight of 4 rows makes block 0, its bias block 1, and a table of 4 positions block 2.

    - Weight and bias are added: block 1 has the same units as block 0, in order. ``b1.same`` is ``b0``; no unit has a number.
    - A view splits the sum into (2, 2): block 3 and block 4 are made, of the units 0, 1 and 2, 3. The units of block 0 stand
      for pairs of these: ``b0.reading`` is that of the rows ``[[0, 2], [0, 3], [1, 2], [1, 3]]``.
    - The table is added to the sum in front of the view: block 2 follows, and ``b2.reading`` is ``b0.reading``.

    Attributes:
        number: the place in ``Equations.blocks``; blocks made earlier have lower numbers.
        size: how many units there are.
        rows: the numbers of the units, shape (size, 1); None until they are needed.
        learnt: the version of the equations that last said something of any of these units; 0 if none did.
        reading: the reading of the units; None before the first look.
    """

    __slots__ = ("_same", "learnt", "number", "reading", "rows", "size")

    def __init__(self, number: int, size: int) -> None:
        self.number, self.size = number, size
        self.rows: Rows | None = None
        self.learnt = 0
        self.reading: Reading | None = None
        self._same = self

    @property
    def is_free(self) -> bool:
        """Whether nothing is known of any unit."""
        return not self.learnt and self.size > 0

    @property
    def same(self) -> Block:
        """The first block that has the same units in the same order."""
        block = self
        while block._same is not block:  # halves the way for the next one
            block._same = block = block._same._same
        return block

    def join(self, later: Block) -> None:
        """Say that a block made later, the first of its own ``same``, has the same units as this block."""
        later._same = self
