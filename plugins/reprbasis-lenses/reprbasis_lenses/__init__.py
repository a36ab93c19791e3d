"""Lenses, and what they say about a model."""
