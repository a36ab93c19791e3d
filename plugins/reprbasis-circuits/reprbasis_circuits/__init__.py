"""Circuits: finders, their evaluation, and the steps that use them."""
