"""Tensors without values: their forms, and what operators make of forms.

In: an operator, the forms of its operands, its plain arguments. Out: the forms of its results, and which operands it writes to.

Read ``form.py`` first, then ``propagation.py`` (the effect of a call), ``fakes.py`` (fake tensors for one run of a graph) and
``counters.py`` (buffers that count, whose numbers code may read).
Tests: ``tests/abstract``.
"""
