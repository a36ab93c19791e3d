"""Llama-type models for ReprBasis."""
