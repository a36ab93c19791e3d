"""Task `sva`: does the verb agree with its subject? Structures after Finlayson et al. 2021 and Marks et al. 2024."""

from collections.abc import Iterator
from itertools import product
from random import Random

from reprbasis.interfaces.task import Split
from reprbasis.kits.templates import Draft, TemplateTask, Words

from .config import AgreementConfig

SUBJECTS = ("friend", "father", "teacher", "doctor", "boy", "girl", "guy", "mother", "poet", "singer", "farmer", "lawyer",
            "uncle", "aunt", "athlete", "victim", "carpenter", "kid", "student", "sister", "brother", "son", "daughter", "king",
            "queen", "soldier", "writer", "actor", "artist", "nurse", "worker", "neighbor", "visitor", "patient", "player",
            "leader", "owner", "driver", "scientist", "author")
PEOPLE = ("chef", "guard", "manager", "parent", "minister", "dancer", "pilot", "judge", "captain", "officer", "customer",
          "painter", "baker", "runner", "speaker", "architect", "assistant", "engineer", "banker", "hunter")
THINGS = ("car", "table", "tree", "window", "chair", "desk", "dog", "truck", "bike", "cat", "house", "wall", "lamp", "book",
          "door", "box", "bench", "bridge", "garden", "boat")
PLACES = ("near", "beside", "behind")
INNER = (("likes", "like"), ("hates", "hate"), ("visits", "visit"), ("knows", "know"), ("loves", "love"), ("sees", "see"),
         ("helps", "help"), ("follows", "follow"))
VERBS = ((" is", " are"), (" has", " have"), (" does", " do"), (" goes", " go"))
NUMBERS = ("singular", "plural")
FORM = ("The {subject}", "The {subject} {place} the {other}", "The {subject} that the {other} {verb}",
        "The {subject} that the {other}")


class Agreement(TemplateTask[AgreementConfig]):
    """Clean and corrupted prompt differ in the number of the noun that the verb agrees with.

    Roles: `subject`; `place` and `other` (`nounpp`), `other` and `verb` (`rc`), `other` (`within_rc`). Splits share no noun.
    Cases: number of the subject, and of the other noun.
    """

    def drafts(self, words: Words, split: Split, random: Random) -> Iterator[Draft]:
        """All combinations, shuffled."""
        kind = self.config.set
        template = FORM[("simple", "nounpp", "rc", "within_rc").index(kind)]
        subjects = self._nouns(words, split, "The {} that", SUBJECTS)
        others = {"simple": [("", "")], "nounpp": self._nouns(words, split, "near the {} is", THINGS)}.get(
            kind) or self._nouns(words, split, "that the {} like", PEOPLE)
        places = words.fit("The friend {} the", PLACES) if kind == "nounpp" else [""]
        inner = words.fit("that the chef {} is", INNER, forms=2) if kind == "rc" else [("", "")]
        found = list(product(subjects, others, places, inner, VERBS, range(2)))
        random.shuffle(found)
        for subject, other, place, verb, verbs, number in found:
            yield self._draft(template, subject, other, place, verb, verbs, number)

    def _nouns(self, words: Words, split: Split, context: str, nouns: tuple[str, ...]) -> list[tuple[str, str]]:
        pairs = [(noun, f"{noun}s") for noun in nouns]
        return words.part(words.fit(context, pairs, forms=2), split, of=pairs)

    def _draft(self, template: str, subject: tuple[str, str], other: tuple[str, str], place: str, verb: tuple[str, str],
               verbs: tuple[str, str], number: int) -> Draft:
        slots = {"subject": subject[0], "other": other[number], "place": place, "verb": verb[number]}
        changed, (one, many) = ("subject", subject)
        cases = [f"{n}_{NUMBERS[number]}" if other[0] else n for n in NUMBERS]
        if self.config.set == "within_rc":  # the inner noun decides, and `number` is the subject's
            slots["subject"] = subject[number]
            changed, (one, many) = ("other", other)
            cases = [f"{NUMBERS[number]}_{n}" for n in NUMBERS]
        used = {name: text for name, text in slots.items() if f"{{{name}}}" in template}
        return Draft(template, {**used, changed: one}, {changed: many}, verbs[0], verbs[1], *cases)
