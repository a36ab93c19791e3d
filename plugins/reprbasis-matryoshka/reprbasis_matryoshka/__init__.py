"""Matryoshka dictionaries: nested prefixes that each reconstruct on their own."""
