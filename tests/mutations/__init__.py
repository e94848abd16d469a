"""Faults put into shrunk graphs on purpose: does the check of ``shrink`` and ``prune`` find what the full ``verify`` finds?

``mutations.py`` makes the faults, ``python -m tests.mutations`` compares both checks on many, the suite on a few.
"""
