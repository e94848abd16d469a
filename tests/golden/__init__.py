"""Small networks, each with the groups of its dependency analysis worked out by hand."""
