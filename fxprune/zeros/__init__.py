"""Units that can go though no plan masked them: their weights are zero, or their values are a single number.

In: dependencies and the slices of parameters that hold zeros. Out: the units whose removal nobody notices, and the numbers that
biases take in for them.

Read ``removable.py`` first, then ``folds.py``, ``slice_states.py`` (states of slices) and how operators carry them:
``by_pattern.py`` (operators whose rule is a pattern), ``by_operator.py`` (all other operators).
Tests: ``tests/zeros``.
"""
