"""Benchmarks: commands that print tables, never tests of time."""
