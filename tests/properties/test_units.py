"""Laws of the algebra of units, on random programs of its operations."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.algebra.axes import NONE, Axis, Reason, concatenate
from fxprune.algebra.units import Units

WHY = Reason("a test")


def sets(units: Units, axis: Axis) -> list[frozenset[int]]:
    """Return the rows of an axis as sets."""
    return [frozenset(int(u) for u in row if u != NONE) for row in units.resolve(axis)]


@dataclass
class Program:
    """Axes made one from another, and the equations that were learnt between them."""

    units: Units = field(default_factory=Units)
    axes: list[Axis] = field(default_factory=list)
    equations: list[tuple[Axis, Axis]] = field(default_factory=list)

    def new(self, size: int, draw: st.DataObject) -> Axis:
        """Return an axis of new units, which have their numbers now or get them later."""
        return draw.draw(st.sampled_from([self.units.fresh, self.units.unread]))(size)

    def couple(self, one: Axis, other: Axis) -> None:
        self.units.couple(one, other, WHY)
        self.equations.append((one, other))

    def split(self, axis: Axis, outer: int) -> None:
        first, second = self.units.split(axis, outer, WHY)
        assert (first.size, second.size) == (outer, axis.size // outer)
        self.axes += [first, second]
        self.equations.append((first.merge(second), axis))

    def check(self) -> None:
        for one, other in self.equations:
            assert sets(self.units, one) == sets(self.units, other)


def _step(program: Program, draw: st.DataObject) -> None:
    """Apply one random operation to random axes."""
    axes = program.axes
    axis = draw.draw(st.sampled_from(axes))
    kind = draw.draw(
        st.sampled_from(["fresh", "couple", "split", "merge", "take", "concatenate", "freeze", "select", "shared"])
    )
    if kind == "fresh":
        axes.append(program.new(draw.draw(st.integers(2, 6)), draw))
    elif kind == "couple":
        program.couple(axis, draw.draw(st.sampled_from([a for a in axes if a.size == axis.size])))
    elif kind == "shared":
        program.couple(axis, program.new(axis.size, draw))
    elif kind == "split":
        program.split(axis, draw.draw(st.sampled_from([k for k in range(1, axis.size + 1) if axis.size % k == 0])))
    elif kind == "merge":
        other = draw.draw(st.sampled_from(axes))
        if axis.size * other.size <= 36:
            axes.append(axis.merge(other))
    elif kind == "take":
        index = draw.draw(st.lists(st.integers(-1, axis.size - 1), min_size=1, max_size=8))
        axes.append(axis.take(np.array(index, np.intp)))
    elif kind == "concatenate":
        axes.append(concatenate([axis, draw.draw(st.sampled_from(axes))]))
    elif kind == "freeze":
        program.units.keep_whole(axis, WHY)
    else:
        program.units.keep_whole(axis.take(np.array([draw.draw(st.integers(0, axis.size - 1))])), WHY)


def run(draw: st.DataObject, steps: int) -> Program:
    program = Program()
    program.axes.append(program.new(6, draw))
    program.axes.append(Axis.whole(4))
    for _ in range(steps):
        _step(program, draw)
        if program.axes[-1].size > 36:
            program.axes.pop()
    return program


many = settings(max_examples=150, deadline=None)


@many
@given(st.data())
def test_every_equation_ever_learnt_goes_on_to_hold(draw: st.DataObject) -> None:
    run(draw, draw.draw(st.integers(1, 25))).check()


@many
@given(st.data())
def test_the_order_of_equations_does_not_break_them(draw: st.DataObject) -> None:
    pairs = draw.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
    for order in (pairs, pairs[::-1], draw.draw(st.permutations(pairs))):
        program = Program()
        heads, dims = program.units.split(program.units.fresh(6), 2, WHY)
        columns, rows = program.units.split(program.units.fresh(6), 3, WHY)
        flipped = program.units.fresh(6).take(np.arange(6)[::-1])
        axes = [heads.merge(dims), columns.merge(rows), dims.merge(heads), flipped, *(program.units.fresh(6) for _ in range(2))]
        for i, j in order:
            program.couple(axes[i], axes[j])
        program.check()


@many
@given(st.data())
def test_what_is_frozen_stays_frozen(draw: st.DataObject) -> None:
    program = run(draw, 8)
    whole = [(axis, [not row for row in sets(program.units, axis)]) for axis in program.axes]
    for _ in range(draw.draw(st.integers(1, 12))):
        _step(program, draw)
    for axis, before in whole:
        after = [not row for row in sets(program.units, axis)]
        assert all(now for was, now in zip(before, after, strict=True) if was)


@many
@given(st.data())
def test_positions_that_go_together_go_together_for_good(draw: st.DataObject) -> None:
    program = run(draw, 8)
    axis = draw.draw(st.sampled_from(program.axes))
    before = sets(program.units, axis)
    together = [(i, j) for i in range(axis.size) for j in range(axis.size) if before[i] <= before[j]]
    for _ in range(draw.draw(st.integers(1, 12))):
        _step(program, draw)
    after = sets(program.units, axis)
    assert all(after[i] <= after[j] for i, j in together)


@many
@given(st.data())
def test_merge_undoes_split(draw: st.DataObject) -> None:
    program = run(draw, 6)
    axis = draw.draw(st.sampled_from(program.axes))
    outer = draw.draw(st.sampled_from([k for k in range(1, axis.size + 1) if axis.size % k == 0]))
    first, second = program.units.split(axis, outer, WHY)
    assert sets(program.units, first.merge(second)) == sets(program.units, axis)


@many
@given(st.integers(2, 5), st.integers(2, 5), st.data())
def test_split_undoes_merge(a: int, b: int, draw: st.DataObject) -> None:
    units = Units()
    outer, inner = units.fresh(a), units.fresh(b)
    # Positions that share a unit, or have none, do not stand in the way.
    outer = outer.take(np.array(draw.draw(st.lists(st.integers(-1, a - 1), min_size=a, max_size=a))))
    known = units.count
    first, second = units.split(outer.merge(inner), a, WHY)
    if all(sets(units, outer)):
        assert (sets(units, first), sets(units, second)) == (sets(units, outer), sets(units, inner))
        covers = len(set(sets(units, outer))) > 1
        assert not covers or units.count == known, "units were replaced without need"


@many
@given(st.data())
def test_coupling_is_an_equivalence(draw: st.DataObject) -> None:
    program = run(draw, 8)
    size = draw.draw(st.sampled_from([axis.size for axis in program.axes]))
    pool = [axis for axis in program.axes if axis.size == size]
    a, b, c = (draw.draw(st.sampled_from(pool)) for _ in range(3))
    units = program.units
    before = sets(units, a)
    units.couple(a, a, WHY)
    assert sets(units, a) == before
    units.couple(a, b, WHY)
    assert sets(units, a) == sets(units, b)
    settled = sets(units, a)
    units.couple(b, a, WHY)
    assert sets(units, a) == sets(units, b) == settled
    units.couple(b, c, WHY)
    assert sets(units, a) == sets(units, b) == sets(units, c)


@many
@given(st.data())
def test_splitting_twice_gives_the_same(draw: st.DataObject) -> None:
    program = run(draw, 8)
    axis = draw.draw(st.sampled_from([a for a in program.axes if a.size % 2 == 0]))
    one = program.units.split(axis, 2, WHY)
    two = program.units.split(axis, 2, WHY)
    assert [sets(program.units, a) for a in one] == [sets(program.units, a) for a in two]


def test_units_that_are_others_before_they_are_read_take_no_room() -> None:
    units = Units()
    first, second, third, fourth = (units.unread(6) for _ in range(4))
    units.couple(first, second, WHY)
    units.couple(third, second, WHY)
    heads, dims = units.split(fourth, 2, WHY)
    units.couple(second, heads.merge(dims), WHY)
    assert units.count == 5
    assert [row.tolist() for row in units.resolve(third)] == [[i, j] for i in (0, 1) for j in (2, 3, 4)]
    assert np.array_equal(units.resolve(first), units.resolve(fourth))
    assert units.count == 5
