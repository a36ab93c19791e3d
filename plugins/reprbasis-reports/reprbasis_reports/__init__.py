"""Reporters: `rich` (the terminal) and `html` (one self-contained page)."""
