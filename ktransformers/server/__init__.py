"""HTTP APIs over the batching engine."""
