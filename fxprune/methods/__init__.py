"""``torch.nn.utils.prune`` on graphs.

In: a graph, dotted parameter names, an amount. Out: the graph with masks as nodes, computed by torch's own classes.

Read ``methods.py`` first, then ``global_unstructured.py``, and for its ranking without a copy of the elements ``histograms.py``
and ``smallest.py``.
Tests: ``tests/methods``.
"""

# The records of graphs pickled by version 0.1.0 look these up here.
from fxprune.methods.methods import (  # noqa: F401
    BasePruningMethod,
    CustomFromMask,
    Identity,
    L1Unstructured,
    LnStructured,
    PruningContainer,
    RandomStructured,
    RandomUnstructured,
)
