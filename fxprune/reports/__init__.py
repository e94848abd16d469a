"""Tables for people: the masks of a graph, the costs of a model before and after.

In: a graph, or two models. Out: :class:`~fxprune.reports.summary.Summary`, which prints.

Read ``summary.py`` first, then ``comparison.py`` (parameters, memory, FLOPs, time).
Tests: ``tests/reports``.
"""
