"""TopK and BatchTopK dictionaries."""
