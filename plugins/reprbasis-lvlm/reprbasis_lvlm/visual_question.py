"""Task `visual-question`: one question about two images that differ in one thing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import numpy as np

from reprbasis.errors import DataError
from reprbasis.interfaces.task import ContrastPair, Split, Task
from reprbasis.interfaces.tokens import Example, Message, TokenSequence
from reprbasis.kits.contexts import runs

from .config import VisualQuestionConfig
from .corpus import example
from .labels import coverage
from .scenes import Question, Scene, Thing, drawn
from .vocabulary import CELL, COLOURS, PLACES, SHAPES, SIZE

_SLOTS = {"colour": tuple(COLOURS), "shape": SHAPES, "place": PLACES}
_PARTS: Mapping[Split, tuple[int, ...]] = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}
_PATIENCE = 2000
_INSIDE = 0.4  # share of an image token that lies in a cell, for the token to be the cell's


class VisualQuestion(Task[VisualQuestionConfig]):
    """What colour is the square? The clean image shows a red one, the patch image a blue one, and nothing else differs.

    With `rival` another object is blue in the clean image and red in the patch image: only the word tells which is meant.

    Both images have the same sizes, offsets, brightness and noise. A pair is followed by the same pair with its sides swapped.
    Splits share no combination of the two properties that are not asked for: what is found on some shapes at some places is
    tested on other shapes there. Cases are the answers.

    Roles, in the tokens of the model at hand: `object` (image tokens in the object's cell of the grid), `elsewhere` (with
    `ask: place`, the cell where it is in the patch image), `rival` (that object's cell, unless it is `elsewhere`), `background`
    (all other image tokens), `word` (the word of the question that names the object) and `end`. `meta` holds the properties,
    `regions` as in the corpus `scenes`, and `others`, the same question about each other object with its answer.
    """

    def pairs(self, tokenizer: Any, split: Split, seed: int) -> Iterator[ContrastPair]:
        """At most `size` pairs.

        Raises:
            DataError: the split is left without a combination by the options, or all answers begin with one token.
        """
        c, draw = self.config, Random(f"{split}:{seed}")
        allowed = {"colour": c.colours, "shape": c.shapes, "place": c.places}
        one, two = (name for name in _SLOTS if name != c.ask)
        free = [(a, b) for a in allowed[one] for b in allowed[two]
                if (_SLOTS[one].index(a) + _SLOTS[two].index(b)) % 5 in _PARTS[split]]
        first = {name: tokenizer(name, add_special_tokens=False)["input_ids"][0] for name in allowed[c.ask]}
        if not free or len(set(first.values())) < 2:
            raise DataError(f"visual-question has no {split} pairs with these options",
                            do="allow more colours, shapes or places")
        seen: set[str] = set()
        for number in range(_PATIENCE + 20 * c.size):
            if len(seen) >= c.size:
                return
            a, b = draw.choice(free)
            right, wrong = draw.sample(allowed[c.ask], 2)
            if first[right] == first[wrong]:
                continue
            fixed = {one: a, two: b}
            others = self._others({a, b, right, wrong}, draw)
            look = f"{split}:{seed}:{number}"
            sides = [_scene(self._things({**fixed, c.ask: answer}, others, other), look)
                     for answer, other in ((right, wrong), (wrong, right))]
            for clean, corrupt in (sides, sides[::-1]):
                pair = self._pair(clean, corrupt, first)
                if pair.key not in seen and len(seen) < c.size:
                    seen.add(pair.key)
                    yield pair

    def _things(self, asked: Mapping[str, str], others: list[tuple[str, str, str]], wrong: str) -> list[tuple[str, str, str]]:
        if self.config.rival:
            rival = dict(zip(_SLOTS, others[0], strict=True)) | {self.config.ask: wrong}
            others = [_thing(rival), *others[1:]]
        return [_thing(asked), *others]

    def _others(self, used: set[str], draw: Random) -> list[tuple[str, str, str]]:
        """Further objects that share nothing with either of the two, nor with each other."""
        free = {name: [v for v in values if v not in used] for name, values in _SLOTS.items()}
        chosen = [draw.sample(free[name], self.config.objects - 1) for name in _SLOTS]
        return list(zip(*chosen, strict=True))

    def _pair(self, clean: Scene, corrupt: Scene, first: Mapping[str, int]) -> ContrastPair:
        sides, answers = [], []
        for scene in (clean, corrupt):
            asked = self._question(scene.things[0])
            whole = example(scene, [asked], "")
            key = hashlib.sha256("\0".join((asked.text, *whole.images)).encode()).hexdigest()[:16]
            sides.append(Example(messages=(Message("user", asked.text, images=(0,)),), images=whole.images, add_prompt=True,
                                 key=f"{asked.answer}/{key}", meta=whole.meta))
            answers.append(asked.answer)
        things = {side: {"colour": s.things[0].colour, "shape": s.things[0].shape, "place": s.things[0].place}
                  for side, s in (("clean", clean), ("corrupt", corrupt))}
        meta = {"case": answers[0], "ask": self.config.ask, "answer": answers[0], "wrong": answers[1],
                "regions": sides[0].meta["regions"],
                "others": [(q.text, q.answer) for q in map(self._question, clean.things[1:])],
                **({"rival": clean.things[1].place} if self.config.rival else {}), **things}
        key = hashlib.sha256((sides[0].key + sides[1].key).encode()).hexdigest()[:16]
        return ContrastPair(sides[0], sides[1], (first[answers[0]],), (first[answers[1]],), {}, f"{answers[0]}/{key}", meta)

    def _question(self, thing: Thing) -> Question:
        return next(q for q in thing.questions() if q.kind == self.config.ask)

    def locate(self, pair: ContrastPair, clean: TokenSequence) -> Mapping[str, tuple[int, ...]]:
        """See the class. Where an image is cut into tiles, the object is looked for in the last frame, which shows it whole."""
        image = clean.flags["image"]
        start, size, rows, columns = list(runs(image, clean.extra["image_grid"]))[-1]
        cells = {"object": pair.meta["clean"]["place"]}
        if self.config.ask == "place":
            cells["elsewhere"] = pair.meta["corrupt"]["place"]
        elif self.config.rival:
            cells["rival"] = pair.meta["rival"]
        roles, background = {}, image.clone()
        for name, place in cells.items():
            inside = (coverage(_cell(place), rows, columns).flatten()[:size] >= _INSIDE).nonzero().flatten() + start
            roles[name] = tuple(inside.tolist())
            background[inside] = False
        roles["background"] = tuple(background.nonzero().flatten().tolist())
        return {**roles, "word": _word(pair, clean), "end": (len(clean) - 1,)}


def _thing(slots: Mapping[str, str]) -> tuple[str, str, str]:
    return slots["colour"], slots["shape"], slots["place"]


def _scene(chosen: list[tuple[str, str, str]], look: str) -> Scene:
    """The same look gives the same sizes, offsets, brightness and noise."""
    number = int.from_bytes(hashlib.sha256(look.encode()).digest()[:8], "big")
    return drawn(chosen, Random(number), np.random.default_rng(number))


def _cell(place: str) -> list[float]:
    """Left, top, right and bottom of a place, as shares of the image."""
    row, column = divmod(PLACES.index(place), 3)
    return [v * CELL / SIZE for v in (column, row, column + 1, row + 1)]


def _word(pair: ContrastPair, clean: TokenSequence) -> tuple[int, ...]:
    """Tokens of the question that hold the word by which the object is named: its shape, or its colour."""
    thing = pair.meta["clean"]
    word = thing["colour"] if pair.meta["ask"] == "shape" else thing["shape"]
    text = (pair.clean.messages or ())[0].content
    if clean.offsets is None:
        raise DataError("this tokenizer gives no character offsets, so words cannot be found", do="use a fast tokenizer")
    content = ~clean.flags["special"] & ~clean.flags["image"]
    begin = int(clean.offsets[content][:, 0].min()) + text.index(word)
    start, end = clean.offsets.unbind(1)
    return tuple((content & (start < begin + len(word)) & (end > begin)).nonzero().flatten().tolist())
