"""Gated dictionaries: one path decides which latents fire, another how strongly."""
