"""Task `induction`: the successor of a word that comes again (Olsson et al. 2022), with and without the word."""

from collections.abc import Iterator
from random import Random

from reprbasis.errors import DataError
from reprbasis.interfaces.task import Split
from reprbasis.kits.templates import Draft, TemplateTask, Words

from .config import InductionConfig
from .lists import WORDS


class Induction(TemplateTask[InductionConfig]):
    """A list of different words; some of them in a row are said again, and the next one follows.

    Roles: `w1`, `w2`, ... the list; `r1`, ... the words said again; `query` the last of them. Splits share no word. Clean prompts
    are `present`. `absent` ones have another word in place of the query in the list; nothing is right there, so the pair is not
    mirrored, and the wrong answer is another word of the list. With `corruption: other` both sides are `present`. `meta` holds
    `at`, the number of the query's word in the list.
    """

    def drafts(self, words: Words, split: Split, random: Random) -> Iterator[Draft]:
        """Random lists, without end."""
        n, repeated = self.config.words, self.config.repeated
        known = words.part(words.fit("table, {}, stone", WORDS), split, of=WORDS)
        if len(known) < n + 1:
            raise DataError(f"a list of {n} words needs {n + 1} different words, the {split} split has {len(known)}",
                            do=f"set words to {len(known) - 1} or less")
        again = [f"r{i + 1}" for i in range(repeated - 1)]
        template = ", ".join(f"{{w{i + 1}}}" for i in range(n)) + "; " + "".join(f"{{{r}}}, " for r in again) + "{query},"
        while True:
            chosen = random.sample(known, n + 1)
            listed = chosen[:n]
            at, other = random.sample(range(repeated - 1, n - 1), 2)
            slots = {f"w{i + 1}": word for i, word in enumerate(listed)} | self._said(listed, at, again)
            if self.config.corruption == "absent":
                wrong = listed[random.choice([i for i in range(n) if not at - repeated < i <= at + 1])]
                yield Draft(template, slots, {f"w{at + 1}": chosen[n]}, f" {listed[at + 1]}", f" {wrong}", "present", "absent",
                            mirrored=False, meta={"at": at + 1})
            else:
                yield Draft(template, slots, self._said(listed, other, again), f" {listed[at + 1]}", f" {listed[other + 1]}",
                            "present", "present", meta={"at": at + 1})

    def _said(self, listed: list[str], at: int, again: list[str]) -> dict[str, str]:
        """The words before and at the query, said again."""
        return {r: listed[at - len(again) + i] for i, r in enumerate(again)} | {"query": listed[at]}
