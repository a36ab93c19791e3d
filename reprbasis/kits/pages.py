"""Self-contained HTML pages: a template, and data that go into it as text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def fill(template: str, parts: Mapping[str, str]) -> str:
    """Put parts in place of `{{NAME}}`, in one pass, so that nothing inside a part is taken for a placeholder.

    Raises:
        KeyError: the template names a part that is not given.
    """
    before, *rest = template.split("{{")
    return before + "".join(parts[name] + tail for name, _, tail in (piece.partition("}}") for piece in rest))


def embed(data: Any) -> str:
    """JSON that can stand inside a script element: ASCII, no `<`, `>` or `&`, and null for what is not finite."""
    text = json.dumps(finite(data), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def finite(value: Any) -> Any:
    """The same value with null in place of numbers that JSON does not know, and text in place of other types."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(v) for v in value]
    return value if value is None or isinstance(value, str | int) else str(value)


def escape(text: str) -> str:
    """Text as it may stand in HTML or XML, in an element or a quoted attribute; control characters as their number."""
    known = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"}
    return "".join(known.get(c, c if c >= " " and not "\x7f" <= c <= "\x9f" else f"\\x{ord(c):02x}") for c in text)
