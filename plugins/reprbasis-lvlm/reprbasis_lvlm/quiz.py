"""How often a model names colour, shape and place of objects it has never seen combined so, and how often without seeing.

An answer counts as right if every one of its tokens is the most likely one after the question: what greedy generation gives.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any, Literal

import numpy as np

from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.tokens import Example

from .corpus import example
from .scenes import Question, Scene, scenes

Sight = Literal["own", "noise", "other"]
KINDS = ("colour", "shape", "place")


@dataclass(frozen=True)
class Score:
    """Right answers of `n`, with the 95 % interval of Wilson (1927); `chance`: the share the best constant answer gets."""

    right: int
    n: int
    chance: float

    @property
    def share(self) -> float:
        """Right answers among all."""
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high."""
        z, n, p = 1.96, self.n, self.share
        middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def quiz(model: ModelAdapter[Any], *, scenes_asked: int = 300, objects: int = 1, seed: int = 1, sight: Sight = "own",
         batch: int = 64) -> dict[str, Score]:
    """One question of each kind about the held-out object of each test scene.

    Args:
        model: what is asked.
        scenes_asked: scenes; each gives one question of a kind.
        objects: objects in each scene.
        seed: of the scenes.
        sight: which image goes with the questions: the scene's own, noise, or that of another scene.
        batch: examples run together.

    Returns:
        Kind of question (`colour`, `shape`, `place`) -> score. A scene whose question names the object by its colour asks for
        the shape, and so on, so the question alone does not tell.
    """
    found = list(islice((s for s in scenes("test", seed) if len(s.things) == objects), scenes_asked))
    shown = [s.image for s in found]
    if sight == "noise":
        noise = np.random.default_rng(seed)
        shown = [noise.integers(0, 256, i.shape, dtype=np.uint8) for i in shown]
    elif sight == "other":
        shift = Random(seed).randrange(1, len(found))
        shown = [*shown[shift:], *shown[:shift]]
    out = {}
    for kind in KINDS:
        asked = [next(q for q in s.things[0].questions() if q.kind == kind) for s in found]
        examples = [_shown(s, image, q, i) for i, (s, image, q) in enumerate(zip(found, shown, asked, strict=True))]
        right = sum(_right(model, examples[at:at + batch]) for at in range(0, len(examples), batch))
        out[kind] = Score(right, len(examples), max(Counter(q.answer for q in asked).values()) / len(asked))
    return out


def _shown(scene: Scene, image: Any, question: Question, number: int) -> Example:
    return example(Scene(image, scene.things), [question], str(number))


def _right(model: ModelAdapter[Any], examples: list[Example]) -> int:
    batch = model.batch(examples)
    best = model.forward(batch).logits.argmax(-1)[:, :-1]
    answer = batch.flag("assistant")[:, 1:]
    return int(((best == batch.ids[:, 1:]) | ~answer).all(1).sum())
