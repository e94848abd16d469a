"""Units and axes as pure values.

In: couplings, merges and splits of axes. Out: for each position of an axis the set of units that it goes with.

Read ``axes.py`` first, then ``units.py`` (couple, split, keep whole, read), ``blocks.py`` (units that are made together),
``coupling.py`` (from rows to equations), ``equations.py`` (what is known of single units), ``contents.py`` (the units on an
axis) and ``rows.py`` (functions of arrays).
Tests: ``tests/properties/test_units.py``.
"""
