"""Kind `corpus`: text, chats or images to harvest activations from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import C, Configured
from .reporter import Progress, Silent
from .tokens import Example

if TYPE_CHECKING:
    from .model import ModelAdapter


@dataclass(frozen=True)
class CorpusContext:
    """What a corpus may use while it produces examples.

    Args:
        model: the pipeline's model, only for corpora that declare `needs-model`.
        scratch: a directory that survives interruptions of this step; a corpus that does costly work (generation) keeps
            finished pieces there and resumes from them. None: keep nothing.
        progress: where to report progress.
        facts: a place for counts that belong in the record (rows left out, dialogues dropped), as JSON values; the corpus keeps
            them up to date while it is read, and a harvest stores them with the activations.
    """

    model: ModelAdapter | None = None
    scratch: Path | None = None
    progress: Progress = field(default_factory=Silent)
    facts: dict[str, Any] = field(default_factory=dict)


class Corpus(Configured[C]):
    """A stream of examples."""

    @abstractmethod
    def examples(self, *, seed: int = 0, context: CorpusContext | None = None) -> Iterator[Example]:
        """Examples in a fixed order given `seed`; each has a stable `key`, unique within the corpus.

        Raises:
            DataError: a row cannot be read (with file and line), or there is no example at all.
        """
