"""Checks that a graph computes the function of its model.

In: a graph, its model, example inputs. Out: the changes that the model's code makes to its own attributes, or an error that
says where the graph differs. Graph and model are first compared as programs: the same operators on the same values, whatever
the numbers. Where the programs differ, both run on the example, and the numbers are compared.

Read ``check.py`` first, then ``program.py``, ``numbering.py`` (value numbering) and ``values.py``; ``gradients.py`` is for
models with hand-written backwards.
Tests: ``tests/frontends/equivalence``.
"""
