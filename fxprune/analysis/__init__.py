"""From a graph to its dependencies: which positions of which parameters go together.

In: a graph and the rules of its operators. Out: :class:`~fxprune.analysis.dependencies.Dependencies`. No weight is read.

Read ``analyze.py`` first (one run on fake tensors), with ``sources.py``, ``operators.py``, ``steps.py``,
``stepping.py`` and ``examples.py`` (what nodes give that cannot run so); then ``dependencies.py``, ``groups.py`` and
``grouping.py`` (the result), ``corrections.py`` (what a masked graph has to do where positions are combined),
``flops.py`` and ``costs.py`` (what is left to compute), ``coupling_graph.py`` (for networkx), ``remaining.py`` (the
positions that stay) and ``batch_sizes.py`` (which sizes grow with the batch).
Tests: ``tests/analysis``, ``tests/golden``.
"""
