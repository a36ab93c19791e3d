"""Corpus `scenes`: dialogues about synthetic images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from random import Random

from reprbasis.interfaces.corpus import Corpus, CorpusContext
from reprbasis.interfaces.tokens import Example, Message
from reprbasis.kits.png import data_uri

from .config import ScenesConfig
from .scenes import Question, Scene, scenes
from .vocabulary import SIZE


class ScenesCorpus(Corpus[ScenesConfig]):
    """Questions about scenes, with their answers. A test scene's first question is about its held-out object."""

    def examples(self, *, seed: int = 0, context: CorpusContext | None = None) -> Iterator[Example]:
        """Dialogues in a fixed order given `seed`."""
        draw = Random(f"{self.config.split}:{seed}:{self.config.turns}")
        found = (s for s in scenes(self.config.split, seed) if len(s.things) <= self.config.objects)
        for number, scene in enumerate(islice(found, self.config.count)):
            first = draw.choice(scene.things[0].questions())
            others = [q for thing in scene.things for q in thing.questions() if q != first]
            asked = [first, *draw.sample(others, min(self.config.turns - 1, len(others)))]
            yield example(scene, asked, f"{self.config.split}-{seed}-{number}")


def example(scene: Scene, asked: list[Question], key: str) -> Example:
    """A dialogue about a scene.

    `meta["regions"]` names, for each object, its `labels` and its `box`: left, top, right and bottom as shares of the image.
    """
    turns = [m for q in asked for m in (Message("user", q.text), Message("assistant", q.answer))]
    turns[0] = Message("user", turns[0].content, images=(0,))
    regions = [{"image": 0, "labels": [t.colour, t.shape], "box": [v / SIZE for v in t.box]} for t in scene.things]
    return Example(messages=tuple(turns), key=key, images=(data_uri(scene.image),),
                   meta={"regions": regions, "kinds": [q.kind for q in asked]})
