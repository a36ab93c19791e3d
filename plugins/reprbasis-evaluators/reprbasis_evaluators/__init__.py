"""Evaluators: reconstruction with controls, atlas of features."""
