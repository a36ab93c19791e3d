"""What a corpus is made of, before anyone spends compute on it.

Definitions:
    word         a stretch between white space
    step         of an answer: a line, or a sentence of it; a fenced block of code is one
    nesting      of an answer: the deepest level of its brackets or of its indented lists
    repeated     a dialogue that shares an n-gram with an earlier one that is not repeated itself (`reprbasis.kits.ngrams`); one
                 too short for any n-gram is repeated when it equals an earlier one
    coverage     of corpus A by corpus B: share of A's running words that occur in B
    gradient     Spearman's rank correlation of the difficulty label with the length of question and answer and with the steps
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..interfaces.tokens import Example
from .ngrams import Deduplicator, grams

_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_PIECE = re.compile(r"\n+|(?<=[.!?])\s+|(?<=[。！？])")
_ITEM = re.compile(r"^(\s*)(?:[-*+•]|\d+[.)])\s", re.MULTILINE)
_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")


def steps(answer: str) -> int:
    """Steps of an answer, see the module."""
    blocks = len(_FENCE.findall(answer))
    return blocks + sum(bool(piece.strip()) for piece in _PIECE.split(_FENCE.sub("\n", answer)))


def nesting(answer: str) -> int:
    """Nesting of an answer, see the module."""
    depth = deepest = 0
    for char in answer:
        if char in _OPEN:
            depth += 1
            deepest = max(deepest, depth)
        elif char in _CLOSE:
            depth = max(depth - 1, 0)
    levels = sorted({len(indent.expandtabs(4)) for indent in _ITEM.findall(answer)})
    return max(deepest, len(levels))


@dataclass
class Column:
    """One number for each dialogue (or answer), and what a reader wants to know of them."""

    values: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """n, mean, quartiles, 95th percentile, maximum."""
        if not self.values:
            return {"n": 0}
        x = np.asarray(self.values, dtype=np.float64)
        low, middle, high, most = np.quantile(x, [0.25, 0.5, 0.75, 0.95]).tolist()
        return {"n": len(x), "mean": float(x.mean()), "p25": low, "median": middle, "p75": high, "p95": most,
                "max": float(x.max())}


COLUMNS = ("turns", "words", "question words", "answer words", "steps", "nesting", "tokens")
"""What is measured of each dialogue; `steps` and `nesting` of its last answer, `tokens` with a model only."""


@dataclass
class Corpus:
    """The survey of one corpus.

    Args:
        name: how it is called in tables.
        columns: the numbers of `COLUMNS`.
        domains: dialogues of each `domain` (of `meta`); `-` has none.
        system: dialogues with a system message; answered: dialogues with an assistant turn.
        repeated: dialogues that repeat an n-gram of an earlier one of this corpus; known: of an earlier corpus of the survey.
        words: how often each word occurs.
        levels: difficulty label -> row numbers.
        vocabulary: token ids seen.
    """

    name: str
    columns: dict[str, Column] = field(default_factory=lambda: {name: Column() for name in COLUMNS})
    domains: Counter[str] = field(default_factory=Counter)
    system: int = 0
    answered: int = 0
    repeated: int = 0
    known: int = 0
    words: Counter[str] = field(default_factory=Counter)
    levels: dict[str, list[int]] = field(default_factory=dict)
    vocabulary: set[int] = field(default_factory=set)
    dialogues: int = 0

    def gradient(self) -> dict[str, float] | None:
        """Rank correlations with the difficulty, or None where fewer than two levels are labelled."""
        if len(self.levels) < 2:
            return None
        order = sorted(self.levels, key=_level)
        rank = {row: place for place, level in enumerate(order) for row in self.levels[level]}
        out = {}
        for name in ("question words", "answer words", "steps"):
            pairs = [(place, self.columns[name].values[row]) for row, place in rank.items()]
            out[name] = spearman(*zip(*pairs, strict=True))
        return out


def survey(corpora: Mapping[str, Iterable[Example]], *, ngram: int = 20,
           tokenize: Callable[[Sequence[Example]], Sequence[Sequence[int]]] | None = None) -> list[Corpus]:
    """Read every corpus once, in order.

    Args:
        corpora: name -> examples.
        ngram: words of an n-gram.
        tokenize: examples -> token ids of each, with the chat template; None: no token lengths.

    Cost: one pass; memory 8 bytes for each n-gram and about 100 for each distinct word.
    """
    before = Deduplicator()
    return [_survey(name, examples, before, ngram, tokenize) for name, examples in corpora.items()]


def _survey(name: str, examples: Iterable[Example], before: Deduplicator, ngram: int,
            tokenize: Callable[[Sequence[Example]], Sequence[Sequence[int]]] | None) -> Corpus:
    out, own = Corpus(name), Deduplicator()
    for row, example in enumerate(examples):
        turns = [(m.role, m.content) for m in example.messages or ()] or [("text", example.text or "")]
        asked = " ".join(content for role, content in turns if role == "user")
        answers = [content for role, content in turns if role == "assistant"]
        words = [word for _, content in turns for word in content.split()]
        out.dialogues += 1
        out.words.update(words)
        out.domains[str(example.meta.get("domain", "-"))] += 1
        out.system += turns[0][0] == "system"
        out.answered += bool(answers)
        found = {"turns": sum(role in ("user", "text") for role, _ in turns), "words": len(words),
                 "question words": len(asked.split()), "answer words": sum(len(a.split()) for a in answers),
                 "steps": steps(answers[-1]) if answers else 0, "nesting": nesting(answers[-1]) if answers else 0}
        if tokenize is not None:
            [ids] = tokenize([example])
            found["tokens"] = len(ids)
            out.vocabulary.update(ids)
        for column, value in found.items():
            out.columns[column].values.append(value)
        if (level := example.meta.get("difficulty", example.meta.get("level"))) is not None:
            out.levels.setdefault(str(level), []).append(row)
        hashes = grams((content for _, content in turns), n=ngram, whole=True)
        new = before.admit(hashes)
        alone = own.admit(hashes)
        out.repeated += not alone
        out.known += alone and not new
    return out


def coverage(one: Corpus, other: Corpus) -> float:
    """Share of the running words of `one` that occur in `other`."""
    return sum(n for word, n in one.words.items() if word in other.words) / max(one.words.total(), 1)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation with ties sharing their mean rank; 0 where one side does not vary."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size else 0.0


def _ranks(values: Sequence[float]) -> Any:
    _, member, count = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[member]


def _level(label: str) -> tuple[float, str]:
    """Levels in their order: by the number in the label, then by the label."""
    number = re.search(r"-?\d+(?:\.\d+)?", label)
    return (float(number[0]) if number else float("inf"), label)
