"""Tasks about names: `ioi` (after Wang et al. 2022) and `pronoun` (after Mathwin et al. 2023)."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from random import Random

from reprbasis.errors import DataError
from reprbasis.interfaces.task import Split
from reprbasis.kits.templates import Draft, TemplateTask, Words

from .config import IndirectObjectConfig, PronounConfig
from .lists import MEN, NAMES, WOMEN

TEMPLATES = (
    "When {first} and {second} went to the {place}, {s2} gave a {object} to",
    "Then, {first} and {second} had a lot of fun at the {place}. {s2} gave a {object} to",
    "After {first} and {second} got to the {place}, {s2} handed a {object} to",
    "Then, {first} and {second} were working at the {place}. {s2} decided to give a {object} to",
    "While {first} and {second} were walking to the {place}, {s2} offered a {object} to",
    "Friends {first} and {second} found a {object} at the {place}. {s2} gave it to",
    "Yesterday {first} and {second} met at the {place}. {s2} brought a {object} for",
    "The {place} was quiet when {first} and {second} came in. {s2} passed a {object} to",
)
"""`{first}` and `{second}` stand for the slots `io` and `s1`, in the one or the other order."""
PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station", "library", "park", "market",
          "museum")
OBJECTS = ("ring", "book", "basketball", "computer", "necklace", "drink", "snack", "letter", "ball", "pen", "cup", "key")
ORDERS = {"abba": ("io", "s1"), "baba": ("s1", "io")}

TRAITS = ("great friend", "good cook", "kind person", "nice neighbor", "good teacher", "great singer", "bad driver",
          "fast runner")
QUESTIONS = ("So {name} is a {trait}, isn't", "Everyone says that {name} has been a {trait}, hasn't",
             "I heard that {name} was a {trait}, wasn't")


class IndirectObject(TemplateTask[IndirectObjectConfig]):
    """Two names, one of which comes again: the other one gets the object.

    Roles: `io`, `s1`, `s2` (`s1` and `s2` the same name in the clean prompt), `place`, `object`. Splits share no name. Cases:
    order and template.

    `corruption: abc` puts three names of the same split that are not in the clean prompt; nothing is right there, so the pair is
    not mirrored, and answer and wrong answer are the clean prompt's. `swap` changes `s2` alone; the other direction is the other
    order with the names exchanged, so it is drawn like any other pair.
    """

    def drafts(self, words: Words, split: Split, random: Random) -> Iterator[Draft]:
        """Random names, places and objects, without end."""
        chosen = self.config.templates or range(len(TEMPLATES))
        if wrong := [i for i in chosen if not 0 <= i < len(TEMPLATES)]:
            raise DataError(f"ioi has no template {', '.join(map(str, wrong))}", do=f"use 0 to {len(TEMPLATES) - 1}")
        orders = ORDERS if self.config.order == "both" else {self.config.order: ORDERS[self.config.order]}
        names = words.part(words.fit("and {} gave it to", NAMES), split, of=NAMES)
        places, objects = words.fit("went to the {}, and", PLACES), words.fit("gave a {} to", OBJECTS)
        while True:
            rounds = list(product(chosen, orders.items()))
            random.shuffle(rounds)
            for index, (order, (first, second)) in rounds:
                template = TEMPLATES[index].replace("{first}", f"{{{first}}}").replace("{second}", f"{{{second}}}")
                io, s, *others = random.sample(names, 5)
                slots = {"io": io, "s1": s, "s2": s, "place": random.choice(places), "object": random.choice(objects)}
                draft = Draft(template, slots, dict(zip(("io", "s1", "s2"), others, strict=True)), f" {io}", f" {s}",
                              f"{order}-{index}", mirrored=False)
                if self.config.corruption == "abc":
                    yield draft
                else:
                    yield replace(draft, corrupt={"s2": io}, mirrored=True, directions=1)


class Pronoun(TemplateTask[PronounConfig]):
    """A name that is mostly a woman's or mostly a man's, and a question tag: " she" or " he".

    Roles: `name`, `trait`. Splits share no name. Cases: `woman`, `man`. Clean and corrupted name differ in this.
    """

    def drafts(self, words: Words, split: Split, random: Random) -> Iterator[Draft]:
        """Every name of one list with a random one of the other, in all wordings, shuffled."""
        fitting = words.fit("that {} is", NAMES)
        women, men = (words.part([n for n in names if n in fitting], split, of=names) for names in (WOMEN, MEN))
        found = [(w, m, t, q) for w, m in product(women, men) for t in words.fit("is a {}, and", TRAITS) for q in QUESTIONS]
        random.shuffle(found)
        for woman, man, trait, question in found:
            yield Draft(question, {"name": woman, "trait": trait}, {"name": man}, " she", " he", "woman", "man")
