"""Units that can go though no plan masked them: their weights are zero, or their values one number.

In: dependencies and the slices of parameters that hold zeros. Out: the units whose removal nobody notices, and the numbers that
biases take in for them.

Read ``removable.py`` first, then ``folds.py``, ``slice_states.py`` (what is known of the values of slices) and how operators
carry it: ``by_pattern.py`` (read from the rules), ``by_operator.py`` (all others).
Tests: ``tests/zeros``.
"""
