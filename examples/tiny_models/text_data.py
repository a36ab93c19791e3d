"""Templated text for the tiny text model: who gets the ring, singular or plural, what the dictionary holds, what came next.

Every family is a function `(rng, split) -> Document`. What is tested is a combination of slot values (two names, a subject
and a noun, a key and its value, two neighbouring words); one combination in five, chosen by its hash, is held out: a training
document never holds one, a test document always asks for one. Needs the standard library only.

    python examples/tiny_models/text_data.py 1500 > examples/tiny_models/text_sample.txt
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Split = Literal["train", "test"]

def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _listed(
    "Mary Sarah Anna Emma Alice Kate Laura Emily Amy Jane Lisa Lucy Rachel Jessica Maria Julia Linda Susan Karen Nancy "
    "Helen Sophia Olivia Rose Elizabeth Barbara Ruth Anne Sara Maya Grace Clara Diana Eva Lily Martha Ellen Claire Amanda "
    "Jennifer Michelle Melissa Rebecca Hannah Margaret Victoria Carol Christine Catherine Stephanie John James Tom Mark "
    "Paul David Michael Peter Robert George Daniel Kevin Brian Jack Adam Simon Eric Steve Ryan Henry Charlie William Thomas "
    "Richard Joseph Charles Andrew Edward Jason Matthew Scott Ben Sam Alex Max Jacob Leo Nathan Martin Frank Tim Oliver "
    "Lucas Ethan Noah Philip Roger Arthur Albert Louis Bob")
PLACES = _listed("store garden restaurant school hospital office house station library park market museum")
OBJECTS = _listed("ring book basketball computer necklace drink snack letter ball pen cup key")
STORIES = (
    "When {a} and {b} went to the {place}, {s} gave a {thing} to",
    "Then, {a} and {b} went to the {place}. {s} gave a {thing} to",
    "Then, {a} and {b} had a lot of fun at the {place}. {s} gave a {thing} to",
    "After {a} and {b} got to the {place}, {s} handed a {thing} to",
    "Then, {a} and {b} were working at the {place}. {s} decided to give a {thing} to",
    "While {a} and {b} were walking to the {place}, {s} offered a {thing} to",
    "Friends {a} and {b} found a {thing} at the {place}. {s} gave it to",
    "Yesterday {a} and {b} met at the {place}. {s} brought a {thing} for",
    "The {place} was quiet when {a} and {b} came in. {s} passed a {thing} to")
SUBJECTS = _listed(
    "friend father teacher doctor boy girl guy mother poet singer farmer lawyer uncle aunt athlete victim carpenter kid "
    "student sister brother son daughter king queen soldier writer actor artist nurse worker neighbor visitor patient "
    "player leader owner driver scientist author man woman")
PEOPLE = _listed(
    "chef guard manager parent minister dancer pilot judge captain officer customer painter baker runner speaker architect "
    "assistant engineer banker hunter executive skater")
THINGS = _listed("car table tree window chair desk dog truck bike cat house wall lamp book door box bench bridge garden boat")
PREPOSITIONS = ("near", "beside", "behind")
RELATIVE = {"likes": "like", "hates": "hate", "visits": "visit", "knows": "know", "loves": "love", "sees": "see", "helps": "help",
            "follows": "follow"}
VERBS = {"is": "are", "has": "have", "does": "do", "goes": "go"}
TAILS = {"is": " happy.", "has": " a book.", "does": " well.", "goes": " home."}
PLURALS = {"man": "men", "woman": "women", "box": "boxes", "bench": "benches"}
TABLES = _listed("age scores data height weight grades")
WORDS = _listed(
    "river table apple stone paper green horse music water bread chair light winter garden window doctor silver mountain "
    "bridge letter summer orange tiger coffee market island forest kitchen village camera piano rabbit castle sugar hammer "
    "pocket yellow ocean desert engine basket candle flower butter ticket mirror carpet blanket shoulder teacher number "
    "circle square pencil travel dinner morning evening kingdom soldier farmer cotton copper leather glass plastic metal "
    "marble")


@dataclass(frozen=True)
class Document:
    """A text in pieces; those marked True are determined by what stands before them.

    Args:
        task: family and variant, `sva/nounpp`.
        pieces: (text, whether a reader can know it); the text is their concatenation.
        wrong: what a reader could mistake the last answer for.
    """

    task: str
    pieces: tuple[tuple[str, bool], ...]
    wrong: tuple[str, ...]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(piece for piece, _ in self.pieces)

    @property
    def last(self) -> int:
        """Index of the last answer among the pieces."""
        return max(i for i, (_, known) in enumerate(self.pieces) if known)

    @property
    def prompt(self) -> str:
        """What stands before the last answer."""
        return "".join(piece for piece, _ in self.pieces[:self.last])

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.pieces[self.last][0]


def held_out(*slots: str) -> bool:
    """Whether this combination of slot values is kept for the test: one in five."""
    return hashlib.sha256("|".join(slots).encode()).digest()[0] % 5 == 0


def fits(split: Split, *slots: str) -> bool:
    """Whether the combination may be used in that split."""
    return held_out(*slots) == (split == "test")


def ioi(rng: random.Random, split: Split) -> Document:
    """Indirect object identification (Wang et al. 2023): names A B .. B .. A, or B A .. B .. A."""
    while True:
        giver, taker = rng.sample(NAMES, 2)
        if fits(split, "ioi", giver, taker):
            break
    first = (taker, giver) if rng.random() < 0.5 else (giver, taker)
    slots = {"place": rng.choice(PLACES), "thing": rng.choice(OBJECTS)}
    prompt = rng.choice(STORIES).format(a=first[0], b=first[1], s=giver, **slots)
    kind = "abba" if first[0] == taker else "baba"
    return Document(f"ioi/{kind}", ((prompt, False), (f" {taker}", True), (".", False)), (f" {giver}",))


def sva(rng: random.Random, split: Split) -> Document:
    """Subject-verb agreement (Linzen et al. 2016; stimuli in the manner of Finlayson et al. 2021)."""
    kind = rng.choice(("simple", "nounpp", "rc", "within_rc"))
    plural, plural2 = rng.random() < 0.5, rng.random() < 0.5
    pool = {"nounpp": THINGS, "rc": PEOPLE, "within_rc": PEOPLE}
    while True:
        subject, verb = rng.choice(SUBJECTS), rng.choice(tuple(VERBS))
        second = rng.choice(pool[kind]) if kind in pool else verb
        if fits(split, f"sva/{kind}", subject, second):
            break
    middle = {"simple": "", "nounpp": f" {rng.choice(PREPOSITIONS)} the {_number(second, plural2)}",
              "rc": f" that the {_number(second, plural2)}", "within_rc": f" that the {_number(second, plural2)}"}[kind]
    pieces = [(f"The {_number(subject, plural)}{middle}", False)]
    if kind == "rc":
        inner = rng.choice(tuple(RELATIVE))
        pieces.append((f" {RELATIVE[inner] if plural2 else inner}", False))
    many = plural2 if kind == "within_rc" else plural
    right, wrong = (VERBS[verb], verb) if many else (verb, VERBS[verb])
    return Document(f"sva/{kind}", (*pieces, (f" {right}", True), (TAILS[verb], False)), (f" {wrong}",))


def dictionary(rng: random.Random, split: Split) -> Document:
    """A dictionary at a Python prompt; some keys asked for are missing."""
    size, table = rng.randint(2, 5), rng.choice(TABLES)
    while True:
        keys = rng.sample(NAMES, size + 2)
        values = [str(v) for v in rng.sample(range(1, 10), size)]
        pairs, missing = dict(zip(keys, values, strict=False)), keys[size:]
        if split == "test":
            found = [("dict/present", k) for k, v in pairs.items() if held_out("dict", k, v)]
            found += [("dict/absent", m) for m in missing if held_out("dict", m, keys[0])]
            if found:
                asked = [rng.choice(found)]
                break
        elif not any(held_out("dict", k, v) for k, v in pairs.items()):
            absent = [("dict/absent", m) for m in missing if not held_out("dict", m, keys[0])]
            asked = [("dict/present", k) for k in pairs] + absent[:1]
            asked = rng.sample(asked, min(4, len(asked)))
            break
    body = ", ".join(f"'{k}': {v}" for k, v in pairs.items())
    pieces = [(f">>> {table} = {{{body}}}", False)]
    for _, key in asked:
        pieces += [(f"\n>>> {table}['{key}']\n", False), (pairs.get(key, "Traceback"), True)]
    kind, key = asked[-1]
    wrong = tuple(v for v in (*values, "Traceback") if v != pairs.get(key, "Traceback"))
    return Document(kind, tuple(pieces), wrong)


def induction(rng: random.Random, split: Split) -> Document:
    """A list of words, some of which in a row are said again (Olsson et al. 2022)."""
    words = _words(rng, split, "induction", rng.randint(4, 10))
    if split == "train":
        start, end = rng.randrange(len(words) - 1), len(words)
    else:
        at = _held_at(words, "induction")
        start, end = rng.randint(max(0, at - 3), at), at + 2
    again = words[start:end]
    pieces = [(", ".join(words) + f"; {again[0]}", False)]
    for word in again[1:]:
        pieces += [(",", False), (f" {word}", True)]
    return Document("induction", tuple(pieces), tuple(f" {w}" for w in words if w != again[-1]))


def lookup(rng: random.Random, split: Split) -> Document:
    """What follows a word in a list, or `none` if the word is not in it: `boat, lamp, moon | lamp -> moon`."""
    words = _words(rng, split, "lookup", rng.randint(3, 7))
    absent = [w for w in rng.sample(WORDS, len(WORDS)) if w not in words and fits(split, "lookup", w, words[0])]
    if absent and rng.random() < 0.25:
        kind, asked, answer = "lookup/absent", absent[0], "none"
    else:
        at = _held_at(words, "lookup") if split == "test" else rng.randrange(len(words) - 1)
        kind, asked, answer = "lookup/present", words[at], words[at + 1]
    wrong = tuple(f" {w}" for w in (*words, "none") if w not in (asked, answer))
    return Document(kind, ((", ".join(words) + f" | {asked} ->", False), (f" {answer}", True)), wrong)


FAMILIES = {"ioi": ioi, "sva": sva, "dict": dictionary, "induction": induction, "lookup": lookup}


def documents(family: str, split: Split, seed: int) -> Iterator[Document]:
    """An endless stream of documents of one family."""
    rng = random.Random(f"{family} {split} {seed}")
    while True:
        yield FAMILIES[family](rng, split)


def _number(noun: str, plural: bool) -> str:
    return PLURALS.get(noun, noun + "s") if plural else noun


def _words(rng: random.Random, split: Split, family: str, size: int) -> list[str]:
    """Different words; no two neighbours are held out (train), or some are (test)."""
    while True:
        words = rng.sample(WORDS, size)
        held = any(held_out(family, a, b) for a, b in pairwise(words))
        if held == (split == "test"):
            return words


def _held_at(words: list[str], family: str) -> int:
    return next(i for i in range(len(words) - 1) if held_out(family, words[i], words[i + 1]))


def main() -> None:
    """Print training documents of all families in turn, a blank line between them: a corpus for harvesting."""
    streams = [documents(family, "train", 1) for family in FAMILIES]
    print("\n\n".join(next(streams[i % len(streams)]).text for i in range(int(sys.argv[1]))))


if __name__ == "__main__":
    main()
