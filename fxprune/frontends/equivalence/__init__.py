"""Does the graph compute what the model computes?

In: a graph, its model, example inputs. Out: the changes that the model's code makes to itself, or an error that says where the
graph differs. Programs are compared first: the same operators on the same values, for any numbers. Numbers are compared where
the programs differ.

Read ``check.py`` first, then ``program.py``, ``numbering.py`` (value numbering) and ``values.py``.
Tests: ``tests/frontends/equivalence``.
"""
