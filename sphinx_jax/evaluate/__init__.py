"""From a model and a benchmark to a score card."""
