"""Text to batches: corpus (text in) -> tokens (encoded once, memory-mapped) -> batches (order, position)."""
