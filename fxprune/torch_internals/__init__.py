"""Every private name of torch and every switch of the whole process, each with why it is needed and what breaks without it.

In: nothing of fxprune. Out: functions, classes and contexts for all other rooms, whose only private names of torch are the
registries of ``nn.Module``.

Read ``switches.py`` first (settings that all threads share), then ``operators.py``, ``tensors.py``, ``graphs.py``,
``pruning_methods.py``, and ``versions.py`` (where versions of torch differ).
Tests: ``tests/test_torch_internals.py``, ``tests/test_torch_versions.py``; ``tests/test_house.py`` finds private names
elsewhere.
"""
