"""Configs: components chosen by name, strict YAML with a line map, error reports, JSON schema."""

from .fields import Sites
from .use import Selection, Use

__all__ = ["Selection", "Sites", "Use"]
