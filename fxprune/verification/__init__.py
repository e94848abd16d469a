"""Does a smaller model compute the same as its reference?

In: a reference, a candidate, example inputs. Out: the largest relative error, or an exception that names the first node that
differs.

Read ``verify.py`` first, then ``subject.py`` (runs of one model), ``inputs.py`` (random inputs like the examples), ``small.py``
(the sizes that a rewriting is compared on), ``differences.py``, ``first_difference.py`` and ``without_chance.py`` (random
operators replaced).
Tests: ``tests/verification``.
"""
