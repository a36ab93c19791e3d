"""Corpus `prompts`: what the prompts of tasks look like, as text to harvest from."""

from __future__ import annotations

from collections.abc import Iterator

import reprbasis
from reprbasis.errors import CapabilityError
from reprbasis.interfaces.corpus import Corpus, CorpusContext
from reprbasis.interfaces.tokens import Example

from .config import PromptsConfig


class Prompts(Corpus[PromptsConfig]):
    """Every prompt of one split once, clean and corrupted ones, without answers; the tasks take turns."""

    def examples(self, *, seed: int = 0, context: CorpusContext | None = None) -> Iterator[Example]:
        """Prompts in the tasks' order.

        Raises:
            CapabilityError: there is no model, whose tokenizer tasks need.
        """
        if context is None or context.model is None:
            raise CapabilityError("tasks need the model's tokenizer, but the corpus was given no model",
                                  do="pass CorpusContext(model=...)")
        tokenizer, registry = context.model.tokenizer, reprbasis.registry()
        streams = [registry.build(task).pairs(tokenizer, self.config.split, seed) for task in self.config.tasks]
        seen: set[str] = set()
        while streams:
            for stream in list(streams):
                pair = next(stream, None)
                if pair is None:
                    streams.remove(stream)
                    continue
                for side in (pair.clean, pair.corrupt):
                    if side is not None and side.text is not None and side.text not in seen:
                        seen.add(side.text)
                        yield Example(text=side.text, key=f"{len(seen):06d}", meta={"case": str(pair.meta.get("case", ""))})
