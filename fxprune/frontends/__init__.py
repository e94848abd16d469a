"""From a model to a graph that is checked against the model.

In: a model and example inputs. Out: a :class:`~fxprune.graph.captured.CapturedModule`, notes on what the graph cannot keep, or
the reasons why neither front end captures the model.

Read ``capture.py`` first (which front end), then ``attempt.py`` (one whole attempt), ``trace.py`` with ``proxies.py`` and
``decisions.py`` (symbolic tracing), ``torch_export.py``, and ``assemble.py`` (the graph on a module tree). Rooms inside:
``model`` (the model's side), ``modes`` (one graph from train and eval mode), ``equivalence`` (graph against model).
Tests: ``tests/frontends``.
"""
