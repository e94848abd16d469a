"""The model's side of a capture: its hooks, and its state as the capture has to leave it.

In: a model. Out: parameters that hooks of ``torch.nn.utils.prune`` mask, a refusal of any other hook, and a snapshot that
undoes whatever the model's code changes while it runs.

Read ``snapshot.py`` first, then ``hooks.py``.
Tests: ``tests/frontends/model``.
"""
