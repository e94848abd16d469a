"""Repair: rewrite the sizes, bounds and places in a graph's code for the positions that are left.

In: a sliced graph, its dependencies, the flags of the units that go. Out: the graph with constants that fit.

Read ``repair.py`` first (the pass), then ``numbers.py`` (plain numbers in the code),
``picks.py`` (indices and slices) and ``rerun.py`` (nodes that run several operators). What leaf modules say of sizes stands on
their cards, ``functional/leaf_cards.py``.
Tests: ``tests/passes/repair``.
"""
