"""Random sequences of public calls on one graph: after each call it computes what it did before, or what the call says."""
