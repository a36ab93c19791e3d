"""Images in rows of dialogues: parts of a content, or files named by the row for marks in its text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reprbasis.errors import DataError

MARK = "<image>"
_PARTS = ('write the content as [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "..."}]; an image is a file '
          'beside the JSON-lines file or data:image/png;base64,...')


class Images:
    """Collects the images of one row, in the order in which its messages show them.

    Args:
        row: its `images` or `image` (one file or several) are shown at the marks `<image>` of its texts.
        where: for messages.
        folder: where files lie.
    """

    def __init__(self, row: Mapping[str, Any], where: str, folder: Path | None) -> None:
        self.where, self.folder = where, folder
        self.key = next((name for name in ("images", "image") if row.get(name)), None)
        given = row[self.key] if self.key else []
        self.waiting: list[Any] = list(given) if isinstance(given, list) else [given]
        self.found: list[str] = []

    def read(self, content: Any, where: str) -> tuple[Any, tuple[int, ...]]:
        """The text of a content, and the images it shows; anything but text and parts comes back as it is."""
        first = len(self.found)
        if isinstance(content, list):
            content = "\n".join(text for text in (self._part(p, where) for p in content) if text is not None)
        elif isinstance(content, str) and self.waiting and MARK in content:
            for _ in range(min(content.count(MARK), len(self.waiting))):
                self._add(self.waiting.pop(0), where)
            content = content.replace(MARK, "").strip()
        return content, tuple(range(first, len(self.found)))

    def end(self) -> None:
        """Raises `DataError` if the row names images that no message shows."""
        if self.waiting:
            raise DataError(f"no message shows the image {str(self.waiting[0])[:60]!r} of the row", where=self.where,
                            do=f"put {MARK} into the text that goes with it, or {_PARTS}")

    def _part(self, part: Any, where: str) -> str | None:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
        if kind != "image":
            raise DataError(f"a part of the content is not text, and no image: {str(part)[:60]}", where=where, do=_PARTS)
        source = next((part[name] for name in ("image", "path", "url") if name in part), None)
        if source is None and self.waiting:
            source = self.waiting.pop(0)
        self._add(source, where)
        return None

    def _add(self, source: Any, where: str) -> None:
        if not isinstance(source, str):
            raise DataError(f"an image is a JSON {type(source).__name__}, not a path", where=where, do=_PARTS)
        if not source.startswith("data:image/"):
            path = (self.folder or Path()) / source
            if not path.is_file():
                raise DataError(f"there is no image '{source}'", where=where,
                                do="check the path; it is relative to the JSON-lines file")
            source = str(path)
        self.found.append(source)
