"""Metrics: one number per example."""
