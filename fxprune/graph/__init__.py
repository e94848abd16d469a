"""A captured graph and the facts that travel with it.

In: a ``torch.fx`` graph, a module tree, tensors. Out: :class:`~fxprune.graph.captured.CapturedModule` and functions that read
or change its parts. Nothing here knows of units or plans.

Read ``captured.py``, ``parts.py`` and ``scripted.py`` first (classes), then ``paths.py`` and ``masks.py`` (where parameters and
masks live), ``metadata.py`` (all keys of ``meta``), ``pickling.py``, ``interpreter.py`` (runs a graph node by node),
``side_effects.py`` and ``source_lines.py``.
Tests: ``tests/graph``.
"""
