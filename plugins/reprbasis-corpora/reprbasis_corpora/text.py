"""Corpus `text`: plain text files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from reprbasis.errors import DataError
from reprbasis.interfaces.corpus import Corpus, CorpusContext
from reprbasis.interfaces.tokens import Example

from .config import TextConfig
from .reading import pick, read_text

_PARAGRAPH = re.compile(r"(?:[^\n]*\S[^\n]*(?:\n|\Z))+")


class TextCorpus(Corpus[TextConfig]):
    """One example a file, a paragraph or a line."""

    def examples(self, *, seed: int = 0, context: CorpusContext | None = None) -> Iterator[Example]:
        """Examples by file name and position (or shuffled by `seed`); `key` is `file:line` of their first line.

        Raises:
            DataError: no file matches, a file is not UTF-8 text, or there is no example at all.
        """
        found = [example for path, name in self._files() for example in self._split(path, name)]
        if not found:
            raise DataError("there is no text but blank lines", where=str(self.config.path),
                            do="give files with text")
        return iter(pick(found, limit=self.config.limit, skip=self.config.skip, shuffle=self.config.shuffle, seed=seed))

    def _files(self) -> list[tuple[Path, str]]:
        """(path, name below the folder), in the order of the names."""
        root = self.config.path.expanduser()
        if not root.is_dir():
            return [(root, root.name)]
        found = sorted((p.relative_to(root).as_posix(), p) for p in root.glob(self.config.files) if p.is_file())
        if not found:
            raise DataError(f"no file in the folder matches '{self.config.files}'", where=str(root),
                            do="say which files to read with the option files, for example files: '**/*.md'")
        return [(path, name) for name, path in found]

    def _split(self, path: Path, name: str) -> Iterator[Example]:
        text = read_text(path)
        if self.config.unit == "file":
            pieces = [(0, text)]
        else:
            pattern = _PARAGRAPH if self.config.unit == "paragraph" else re.compile(r"[^\n]+")
            pieces = [(m.start(), m.group().rstrip("\n")) for m in pattern.finditer(text)]
        line, at = 1, 0
        for start, piece in pieces:
            line, at = line + text.count("\n", at, start), start
            if piece.strip():
                yield Example(text=piece, key=f"{name}:{line}", origin=f"{path}:{line}", meta={"file": name})
