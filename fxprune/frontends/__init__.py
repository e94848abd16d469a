"""The two ways to turn a model into a graph, and what they share."""
