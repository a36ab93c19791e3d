"""Corpus `mix`: several corpora in fixed proportions, without repetitions.

1. The next dialogue comes from the source that lags furthest behind its weight: the one with the smallest
   (dialogues kept + 1) / weight, the first of several. A source that has ended is left out from then on.
2. A dialogue that shares an n-gram with an earlier kept one is dropped (`reprbasis.kits.ngrams`), and its source is asked again.

Hashing may run in worker processes; decisions are made here, in order, so their number changes nothing but the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context
from typing import Any

import reprbasis
from reprbasis.errors import CapabilityError, DataError
from reprbasis.interfaces.corpus import Corpus, CorpusContext
from reprbasis.interfaces.tokens import Example
from reprbasis.kits.ngrams import Deduplicator, Hashes, Unit, grams

from .config import MixConfig

AHEAD = 64
"""Dialogues that one piece of work of a hashing process holds."""

Hashed = tuple[Example, Hashes]


class MixCorpus(Corpus[MixConfig]):
    """See the module."""

    def examples(self, *, seed: int = 0, context: CorpusContext | None = None) -> Iterator[Example]:
        """Dialogues of all sources; keys and `meta["corpus"]` say which. Source i gets the seed `seed + i`.

        Raises:
            DataError: no source gives a dialogue.
            CapabilityError: `unit: token` without a model.
        """
        context = context or CorpusContext()
        if self.config.dedup != "none" and self.config.unit == "token" and context.model is None:
            raise CapabilityError("n-grams of tokens need the model's tokenizer, but the corpus was given no model",
                                  do="pass CorpusContext(model=...), or count words: unit: word")
        return self._stream(seed, context)

    def _stream(self, seed: int, context: CorpusContext) -> Iterator[Example]:
        config, registry = self.config, reprbasis.registry()
        names = self._names()
        weights = config.weights or (1.0,) * len(names)
        judge = Deduplicator(config.dedup_bytes if config.dedup == "bounded" else None)
        counts: list[dict[str, Any]] = [{"source": name, "read": 0, "kept": 0, "dropped": 0} for name in names]
        context.facts["mix"] = {"sources": counts, "dedup": {"method": config.dedup}}
        with ExitStack() as stack:
            pool = stack.enter_context(ProcessPoolExecutor(config.workers, get_context("spawn"))) if config.workers else None
            streams: dict[int, Iterator[Hashed]] = {}
            for index, selection in enumerate(config.sources):
                inner = replace(context, facts=counts[index].setdefault("facts", {}))
                found = registry.build(selection).examples(seed=seed + index, context=inner)
                streams[index] = self._hashed(found, context, pool)
            given = 0
            while streams and given != config.limit:
                index = min(streams, key=lambda i: ((counts[i]["kept"] + 1) / weights[i], i))
                item = next(streams[index], None)
                if item is None:
                    del streams[index]
                    continue
                example, hashes = item
                counts[index]["read"] += 1
                kept = config.dedup == "none" or judge.admit(hashes)
                counts[index]["kept" if kept else "dropped"] += 1
                if config.dedup != "none":
                    context.facts["mix"]["dedup"] = {"method": config.dedup, "n": config.ngram, "unit": config.unit,
                                                     **judge.facts()}
                if kept:
                    given += 1
                    yield replace(example, key=f"{names[index]}/{example.key}", meta={**example.meta, "corpus": names[index]})
        if not given:
            raise DataError("no source of the mix gives a dialogue", do="check their paths and filters")

    def _names(self) -> list[str]:
        """A name for each source: that of its component, with a number where it occurs twice."""
        short = [s.name.rpartition("/")[2] for s in self.config.sources]
        return [n if short.count(n) == 1 else f"{n}-{short[:i + 1].count(n)}" for i, n in enumerate(short)]

    def _hashed(self, examples: Iterator[Example], context: CorpusContext, pool: ProcessPoolExecutor | None) -> Iterator[Hashed]:
        config = self.config
        if config.dedup == "none":
            yield from ((e, grams(())) for e in examples)
        elif pool is None or config.unit == "token":
            tokenize = _tokenizer(context) if config.unit == "token" else None
            yield from ((e, grams(turns(e), n=config.ngram, unit=config.unit, whole=config.short == "whole", tokenize=tokenize))
                        for e in examples)
        else:
            waiting: list[tuple[list[Example], Future[list[Hashes]]]] = []
            while True:
                while len(waiting) <= config.workers and (chunk := list(islice(examples, AHEAD))):
                    work = pool.submit(_grams, [turns(e) for e in chunk], config.ngram, config.unit, config.short == "whole")
                    waiting.append((chunk, work))
                if not waiting:
                    return
                chunk, work = waiting.pop(0)
                yield from zip(chunk, work.result(), strict=True)


def turns(example: Example) -> list[str]:
    """The content of every turn; a plain text is one."""
    return [example.text or ""] if example.messages is None else [m.content for m in example.messages]


def _grams(dialogues: Sequence[Sequence[str]], n: int, unit: Unit, whole: bool) -> list[Hashes]:
    return [grams(texts, n=n, unit=unit, whole=whole) for texts in dialogues]


def _tokenizer(context: CorpusContext) -> Callable[[str], Sequence[int]]:
    assert context.model is not None  # checked in `examples`
    tokenizer = context.model.tokenizer
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
