"""The model's side of a capture: its hooks, and its state as the capture has to leave it.

In: a model. Out: the parameters that hooks of ``torch.nn.utils.prune`` mask, an error for any other hook, and a snapshot that
undoes every change that the model's code makes to the model.

Read ``snapshot.py`` first, then ``plain.py`` (what attributes hold), ``hooks.py`` and ``wrappers.py`` (modules that only call
another).
Tests: ``tests/frontends/model``.
"""
