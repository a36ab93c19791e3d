"""Foreign dictionary formats: SAELens, dictionary_learning, sparsify, llamascopium."""
