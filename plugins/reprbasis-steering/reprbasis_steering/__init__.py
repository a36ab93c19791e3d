"""Steering with the latents of special tokens, measured."""
