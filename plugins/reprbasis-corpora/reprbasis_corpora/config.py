"""Options of the corpora."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from reprbasis.component import ComponentConfig


class ChatConfig(ComponentConfig):
    """Dialogues as JSON lines."""

    path: Path | None = None
    """JSON-lines file of dialogues; null: the prompt set that comes with this package."""

    limit: int | None = Field(None, ge=1)
    """Use at most this many dialogues (after filtering and shuffling); null: all."""

    shuffle: bool = False
    """Put the dialogues in a random order that depends on the run's seed alone."""

    domains: tuple[str, ...] = ()
    """Keep only dialogues whose `domain` is one of these; empty: all."""

    system: str | None = Field(None, min_length=1)
    """A system message to put before every dialogue that has none."""

    roles: Mapping[str, Literal["system", "user", "assistant"]] = Field(default_factory=dict)
    """Further role names in the file and what they mean, for example `{tool: user}`."""

    generate: bool = False
    """Drop the given answers and let the model answer every user turn itself."""

    max_new: int = Field(128, ge=1)
    """Longest answer, in tokens (`generate` only)."""

    temperature: float = Field(0.0, ge=0)
    """Sampling temperature; 0 takes the likeliest token each time (`generate` only)."""

    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the smallest set of tokens with at least this probability (`generate` only)."""

    batch: int = Field(32, ge=1)
    """Dialogues answered together (`generate` only); part of the result: other batches round differently."""


class TextConfig(ComponentConfig):
    """Plain text files."""

    path: Path
    """A text file, or a folder of them; files are read in the order of their names."""

    files: str = Field("**/*.txt", min_length=1)
    """Which files of a folder are read, as a glob (`**` stands for any depth)."""

    unit: Literal["file", "paragraph", "line"] = "file"
    """What one example is; paragraphs are separated by blank lines. Blank units are left out."""

    limit: int | None = Field(None, ge=1)
    """Use at most this many examples; null: all."""

    shuffle: bool = False
    """Put the examples in a random order that depends on the run's seed alone."""
