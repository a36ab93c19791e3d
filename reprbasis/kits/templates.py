"""Tasks from templates, for any tokenizer::

    class Agreement(TemplateTask[AgreementConfig]):
        def drafts(self, words, split, random):
            while True:
                noun = random.choice(words.part(words.fit("The {}", NOUNS), split))
                yield Draft("The {subject} near the door", {"subject": noun}, {"subject": noun + "s"}, " is", " are")

Words are measured where they stand, because a tokenizer joins what is near: a tokenizer's own idea of a space, of digits or of a
quote and a letter never shifts positions. A pair is given only if

* both sides have the same number of tokens, every role (slot) sits at the same positions in both, and they differ nowhere else;
* the answers, put after the prompt, leave the prompt's tokens as they are. Tokens that all answers begin with (a lone space
  before a digit) are moved into the prompt, so that the next token decides;
* with `lengths: one`: it has the layout most common for its template.
"""

from __future__ import annotations

import hashlib
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from random import Random
from string import Formatter
from typing import Any, Literal, TypeVar

from ..errors import DataError
from ..interfaces.task import ContrastPair, Split, Task
from ..interfaces.tokens import Example
from .template_config import TemplateConfig

log = logging.getLogger(__name__)
C = TypeVar("C", bound=TemplateConfig)
V = TypeVar("V")
_PROBES = 24
_FEW = 8
_ENOUGH = 30
_PATIENCE = 2000
_MEMORY = 1 << 16
_PARTS: Mapping[Split, tuple[int, ...]] = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}


class Misfit(Exception):
    """A draft does not align with a tokenizer; the text goes on from a number: `with sides of different length`."""


@dataclass(frozen=True)
class Draft:
    """A pair before it has met a tokenizer.

    Args:
        template: text with `{slots}`; each slot is a role of that name. Write `{{` for a brace.
        clean, corrupt: slot -> text. Slots that `corrupt` leaves out are the same on both sides.
        answer, wrong: text put right after the prompt, with its leading space; several if several are accepted.
        case: name of the variant.
        other_case: name of the same pair with its sides swapped.
        mirrored: `wrong` is right after `corrupt`.
        directions: 2: a mirrored pair is also given with its sides swapped; 1: it is not.
        meta: anything else worth keeping, JSON values.
    """

    template: str
    clean: Mapping[str, str]
    corrupt: Mapping[str, str]
    answer: str | tuple[str, ...]
    wrong: str | tuple[str, ...]
    case: str = ""
    other_case: str = ""
    mirrored: bool = True
    directions: Literal[1, 2] = 2
    meta: Mapping[str, Any] = field(default_factory=dict)

    def swapped(self) -> Draft:
        """The same pair the other way round."""
        return replace(self, clean={**self.clean, **self.corrupt}, corrupt={k: self.clean[k] for k in self.corrupt},
                       answer=self.wrong, wrong=self.answer, case=self.other_case, other_case=self.case)


class Words:
    """What a tokenizer does to words, and which split a word belongs to."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}
        self._told: set[str] = set()

    def fit(self, context: str, values: Sequence[V], *, forms: int = 1) -> list[V]:
        """The values that have one number of tokens where they stand: the smallest that 30 values have, else the most common.

        Args:
            context: text with one `{}`, for example `"The {} near"`.
            values: words, or tuples of words whose first `forms` must all have that length (singular and plural).
            forms: how many words of a tuple are measured.
        """
        def lengths(value: V) -> tuple[int, ...]:
            words = value[:forms] if isinstance(value, tuple) else (value,)
            return tuple(len(self.ids(context.format(word))) for word in words)

        measured = [(value, lengths(value)) for value in values]
        even = Counter(found[0] for _, found in measured if len(set(found)) == 1)
        if not even:
            raise DataError(f"no word fits '{context}': the forms of each differ in their number of tokens",
                            do="use another tokenizer, or give other words")
        best = min((length for length, count in even.items() if count >= _ENOUGH),
                   default=max(even, key=lambda length: (even[length], -length)))
        kept = [value for value, found in measured if set(found) == {best}]
        if len(kept) < min(_FEW, len(values) / 2) and context not in self._told:
            self._told.add(context)
            log.warning("only %d of %d words have equally many tokens in '%s'", len(kept), len(values), context)
        return kept

    def part(self, values: Sequence[V], split: Split, *, of: Sequence[V] | None = None) -> list[V]:
        """The values that belong to a split: of every five, three for training, one for validation, one for testing.

        Args:
            values: what is left of `of` (after `fit`).
            split: which.
            of: the whole list whose order decides. Give it, and a word is in the same split for every tokenizer (unless so few
                words fit that a split would be empty: then the order of `values` decides).

        Raises:
            DataError: there are too few values for three splits.
        """
        for whole in [values] if of is None else [of, values]:
            place = {v: i % 5 for i, v in enumerate(whole)}
            parts = {name: [v for v in values if place[v] in mine] for name, mine in _PARTS.items()}
            if all(parts.values()):
                return parts[split]
        raise DataError(f"{len(values)} words are too few for three splits: {', '.join(map(str, values))}",
                        do="use another tokenizer, or give more words")

    def ids(self, text: str) -> tuple[int, ...]:
        """Tokens of a text, with what the tokenizer puts before it."""
        if text not in self._known:
            self.read([text])
        return self._known[text]

    def read(self, texts: Sequence[str]) -> None:
        """Tokenise texts together (several times faster) for later calls of `ids`."""
        if len(self._known) > _MEMORY:
            self._known.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if len(new) > 1 and getattr(self.tokenizer, "is_fast", False):
            self._known.update(zip(new, map(tuple, self.tokenizer(new)["input_ids"]), strict=True))
        else:
            self._known.update((text, tuple(self.tokenizer(text)["input_ids"])) for text in new)

    def spans(self, text: str, where: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
        """Characters (start, end) by name -> positions of the tokens that hold any of them."""
        if getattr(self.tokenizer, "is_fast", True):
            offsets = self.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
            return {name: tuple(i for i, (a, b) in enumerate(offsets) if a < end and b > start)
                    for name, (start, end) in where.items()}
        return {name: self._between(text, start, end) for name, (start, end) in where.items()}

    def _between(self, text: str, start: int, end: int) -> tuple[int, ...]:
        """Without offsets: what the tokens of the text share with those of its beginnings."""
        whole, before, within = self.ids(text), self.ids(text[:start]), self.ids(text[:end])
        last = _common(whole, within)
        return tuple(range(_common(whole, before), last if last == len(within) else last + 1))


class TemplateTask(Task[C]):
    """Base of tasks made of templates: give `drafts`, and the pairs are aligned, deduplicated and given in both directions."""

    @abstractmethod
    def drafts(self, words: Words, split: Split, random: Random) -> Iterator[Draft]:
        """Drafts of a split, endless or not, in an order that depends on `random` alone. No slot value that decides the answer
        may be in two splits (`words.part`).
        """

    def pairs(self, tokenizer: Any, split: Split, seed: int) -> Iterator[ContrastPair]:
        """At most `size` pairs; of a mirrored draft both directions, one after the other.

        Raises:
            DataError: nothing aligns with this tokenizer.
        """
        words = Words(tokenizer)
        layouts = self._layouts(words) if self.config.lengths == "one" else None
        seen: set[str] = set()
        faults: Counter[str] = Counter()
        tried, idle = 0, 0
        for draft in self.drafts(words, split, Random(f"{split}/{seed}")):
            if len(seen) >= self.config.size or idle >= _PATIENCE:
                break
            tried, idle = tried + 1, idle + 1
            try:
                made = align(draft, words)
                if layouts is not None and layouts.get(draft.template) != _layout(made, words):
                    raise Misfit("another layout than most")
                both = [made, align(draft.swapped(), words)] if draft.mirrored and draft.directions == 2 else [made]
            except Misfit as fault:
                faults[str(fault)] += 1
                continue
            for pair in both[:self.config.size - len(seen)]:
                if pair.key not in seen:
                    seen.add(pair.key)
                    idle = 0
                    yield pair
        told = ", ".join(f"{count} {fault}" for fault, count in faults.most_common())
        log.info("%s (%s): %d pairs from %d drafts; left out: %s", self.full_name, split, len(seen), tried, told or "none")
        if not seen:
            raise DataError(f"{self.full_name}: no {split} pair aligns with this tokenizer" + (f" ({told})" if told else ""),
                            do="set lengths: any, change the options of the task, or use another tokenizer")

    def _layouts(self, words: Words) -> dict[str, Hashable]:
        """The most common layout of each template, the same for all splits."""
        found: dict[str, Counter[Hashable]] = {}
        for draft in islice(self.drafts(words, "train", Random("layout")), 8 * _PROBES):
            counts = found.setdefault(draft.template, Counter())
            if counts.total() >= _PROBES:
                continue
            try:
                counts[_layout(align(draft, words), words)] += 1
            except Misfit:
                continue
        return {template: counts.most_common(1)[0][0] for template, counts in found.items() if counts}


def align(draft: Draft, words: Words) -> ContrastPair:
    """A draft as a pair for a tokenizer.

    Raises:
        Misfit: it does not align; says why.
    """
    (clean, spans), (corrupt, other) = (fill(draft.template, v) for v in (draft.clean, {**draft.clean, **draft.corrupt}))
    options = [draft.answer, draft.wrong]
    right, wrong = ((o,) if isinstance(o, str) else o for o in options)
    words.read([clean, corrupt, *(clean + o for o in (*right, *wrong))])
    tails = {o: _tail(clean, o, words) for o in (*right, *wrong)}
    shared = _common(*tails.values())
    extra = _beginning(clean, right[0], shared, words) if shared else ""
    clean, corrupt = clean + extra, corrupt + extra
    for option in (right[0], wrong[0]):
        if _tail(corrupt, option[len(extra):], words) != tails[option][shared:]:
            raise Misfit("with answers that are other tokens after the corrupted prompt")
    ids = {side: tuple(dict.fromkeys(tails[o][shared] for o in group if len(tails[o]) > shared))
           for side, group in (("right", right), ("wrong", wrong))}
    both = set(ids["right"]) & set(ids["wrong"])
    answers, others = (tuple(i for i in ids[side] if i not in both) for side in ("right", "wrong"))
    if not answers or not others:
        raise Misfit("with answers that begin with the same token")
    a, b = words.ids(clean), words.ids(corrupt)
    roles = words.spans(clean, spans)
    if len(a) != len(b) or roles != words.spans(corrupt, other):
        raise Misfit("with sides of different length")
    changed = {i for name in draft.corrupt for i in roles[name]}
    differs = {i for i in range(len(a)) if a[i] != b[i]}
    if not differs or differs - changed:
        raise Misfit("with differences outside the changed slots")
    key = hashlib.sha256("\0".join((clean, corrupt, *right)).encode()).hexdigest()[:16]
    key = f"{draft.case}/{key}" if draft.case else key
    meta = {**draft.meta, "case": draft.case, "clean": dict(draft.clean), "corrupt": dict(draft.corrupt),
            "answer": right[0] if len(right) == 1 else list(right), "wrong": wrong[0] if len(wrong) == 1 else list(wrong)}
    roles = {**{name: at for name, at in roles.items() if at}, "end": (len(a) - 1,)}
    return ContrastPair(Example(text=clean, key=key), Example(text=corrupt, key=f"{key}/corrupt"), answers, others, roles, key,
                        meta, draft.mirrored)


def fill(template: str, values: Mapping[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """The text of a template, and slot -> characters (start, end).

    Raises:
        DataError: a slot has no value.
    """
    text, spans = "", {}
    for literal, name, _, _ in Formatter().parse(template):
        text += literal
        if name is not None:
            if name not in values:
                raise DataError(f"the slot '{name}' has no value", where=template, do=f"the values are {sorted(values)}")
            spans[name] = (len(text), len(text) + len(values[name]))
            text += values[name]
    return text, spans


def _layout(pair: ContrastPair, words: Words) -> Hashable:
    return len(words.ids(pair.clean.text or "")), tuple(sorted(pair.roles.items()))


def _tail(text: str, option: str, words: Words) -> tuple[int, ...]:
    """Tokens of an answer after a prompt."""
    before, whole = words.ids(text), words.ids(text + option)
    if whole[:len(before)] != before or len(whole) == len(before):
        raise Misfit("with answers that change the tokens of the prompt")
    return whole[len(before):]


def _beginning(text: str, option: str, tokens: int, words: Words) -> str:
    """The characters of an answer's first tokens."""
    wanted = words.ids(text + option)[:len(words.ids(text)) + tokens]
    for end in range(1, len(option)):
        if words.ids(text + option[:end]) == wanted:
            return option[:end]
    raise Misfit("with answers that are one token")


def _common(*rows: Sequence[int]) -> int:
    """How many tokens all rows begin with."""
    count = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count
