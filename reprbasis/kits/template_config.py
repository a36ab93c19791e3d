"""Options that every task made of templates has. Imports no torch: plugins use it in their `config.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..component import ComponentConfig


class TemplateConfig(ComponentConfig):
    """How many pairs, and how they align."""

    size: int = Field(1000, ge=1)
    """Pairs of a split at most."""

    lengths: Literal["one", "any"] = "one"
    """`one`: only prompts with the most common layout (number of tokens, role positions) of their template, so that a position
    means the same in every pair; `any`: every pair whose two sides align."""
