"""Interrupts at random moments of public calls: everything is as it was before the call.

``python -m tests.interrupts`` runs as many as asked for; a few run with the tests.
"""
