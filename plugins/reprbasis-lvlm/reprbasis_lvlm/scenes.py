"""Synthetic scenes: one to three objects with colour, shape and place on a 3 x 3 grid, and questions about them.

An image has `SIZE` x `SIZE` pixels on a dark noisy ground; each object fills most of one cell, at a random offset and size.
In a scene all colours, shapes and places differ, so that every question has one right answer. A fixed share of all
(colour, shape, place) combinations is held out: training scenes contain none of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .vocabulary import CELL, COLOURS, PLACES, SHAPES, SIZE

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Question:
    """A question about a scene, its answer, and what it asks for: `colour`, `shape`, `place` or `content`."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Thing:
    """One object: what it is, where it is, and its box in pixels (left, top, right, bottom; right and bottom excluded)."""

    colour: str
    shape: str
    place: str
    box: tuple[int, int, int, int]

    def questions(self) -> tuple[Question, ...]:
        """One question of each kind about this object.

        The place is asked by shape alone: asked by colour and shape, a model learns in training which places such a question
        rules out, because some combinations never occur, and answers wrongly where they do.
        """
        return (Question(f"What colour is the {self.shape}?", self.colour, "colour"),
                Question(f"What shape is the {self.colour} object?", self.shape, "shape"),
                Question(f"Where is the {self.shape}?", self.place, "place"),
                Question(f"What is at the {self.place}?", f"{self.colour} {self.shape}", "content"))


@dataclass(frozen=True)
class Scene:
    """An image [SIZE, SIZE, 3] of uint8 and the objects in it; the first is the one a test is about."""

    image: NDArray[np.uint8]
    things: tuple[Thing, ...]


@lru_cache
def held_out(share: float = 0.15) -> frozenset[tuple[str, str, str]]:
    """The (colour, shape, place) combinations that training scenes never show. The same in every process."""
    combinations = list(product(COLOURS, SHAPES, PLACES))
    return frozenset(random.Random(0).sample(combinations, round(share * len(combinations))))


def scenes(split: Split, seed: int) -> Iterator[Scene]:
    """An endless stream of scenes. In `test` the first object of each scene is a held-out combination."""
    draw = random.Random(f"{split}:{seed}")
    noise = np.random.default_rng([seed, split == "test"])
    hidden = sorted(held_out())
    while True:
        count = draw.choice((1, 1, 2, 2, 3))
        first = [draw.choice(hidden)] if split == "test" else []
        chosen = _complete(first, count, draw)
        yield drawn(chosen, draw, noise)


def _complete(chosen: list[tuple[str, str, str]], count: int, draw: random.Random) -> list[tuple[str, str, str]]:
    """Add seen combinations up to `count` objects; no colour, shape or place twice."""
    while len(chosen) < count:
        new = (draw.choice(tuple(COLOURS)), draw.choice(SHAPES), draw.choice(PLACES))
        if new not in held_out() and all(a != b for old in chosen for a, b in zip(old, new, strict=True)):
            chosen.append(new)
    return chosen


def drawn(chosen: Sequence[tuple[str, str, str]], draw: random.Random, noise: np.random.Generator) -> Scene:
    """A scene with objects of these (colour, shape, place).

    Sizes, offsets, brightness and noise come from the two generators: with equal ones, scenes that differ in a colour are the
    same in everything else.
    """
    ground = draw.randint(10, 60)
    canvas = np.full((SIZE, SIZE, 3), ground, dtype=np.float64)
    things = []
    for colour, shape, place in chosen:
        size = draw.randint(12, 15)
        row, column = divmod(PLACES.index(place), 3)
        left = column * CELL + draw.randint(0, CELL - size)
        top = row * CELL + draw.randint(0, CELL - size)
        tone = np.array(COLOURS[colour]) * draw.uniform(0.8, 1.0)
        window = canvas[top:top + size, left:left + size]
        window[_mask(shape, size)] = tone
        things.append(Thing(colour, shape, place, (left, top, left + size, top + size)))
    canvas += noise.normal(0, 6, canvas.shape)
    return Scene(canvas.clip(0, 255).astype(np.uint8), tuple(things))


@lru_cache
def _mask(shape: str, size: int) -> NDArray[np.bool_]:
    """[size, size] pixels of a shape."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    y, x = axis[:, None], axis[None, :]
    far = np.hypot(x, y)
    masks = {"circle": far <= 1, "square": np.maximum(abs(x), abs(y)) <= 0.85, "triangle": abs(x) <= (y + 1) / 2,
             "cross": np.minimum(abs(x), abs(y)) <= 0.3, "ring": (far <= 1) & (far >= 0.55)}
    return np.broadcast_to(masks[shape], (size, size))
