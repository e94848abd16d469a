"""Real model definitions, randomly initialised, for tests and benchmarks."""
