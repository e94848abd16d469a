"""One graph for train mode and eval mode.

In: the places where the model's code reads its mode, and a graph of each mode. Out: one graph with live ``training`` flags.

Read ``reads.py`` first (which code reads the flag of which module), then ``align.py`` (which nodes of the two graphs are
equal) and ``merge.py``.
Tests: ``tests/frontends/modes``.
"""
