"""Step `see-as`: make editors show one value of a property as another (red as blue), and measure what else changed.

Editors are given pairs of `visual-question` whose clean object has the first value and whose patch object has the second, from
the split `train`, and clean prompts about objects with other values to keep. Everything is measured on the split `test`: the
objects combine the two properties that are not asked for as no prompt of `train` does. An answer counts by the most likely of
all tokens.

Measurements, each a share of prompts with its 95 % interval (Wilson 1927):

* `says_target`: objects of the first value called by the second; `says_target, other wording`: the same when asked what is at
  the object's place (its colour comes first), which no editor was given.
* `neighbours` (more than one object): the same property of an object beside it, in the same image.
* `others_kept`: objects of other values whose answer is right.
* `other_questions`: the two other properties of objects of the first value, which the question calls by the second where it
  names it (who sees red as blue answers "What shape is the blue object?"); `other_questions, old name`: called by the first;
  `other_questions, others`: the two other properties of other objects.
* `blinded`: `says_target` when noise stands in the image's place; an edit of what is seen has nothing to say there.

`relative_size` is the norm of all changes over that of all changed matrices (n of them).

Conditions: `unchanged`, each editor, and after each `..., random`: changes of the same matrices, of the same size, in random
directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from reprbasis.interfaces.artifact import Artifact
from reprbasis.interfaces.editor import EditPlan, EditRequest
from reprbasis.interfaces.evaluator import Findings, Measurement
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.step import Step, StepContext
from reprbasis.interfaces.task import ContrastPair, Split
from reprbasis.interfaces.tokens import Example
from reprbasis.kits.png import data_uri
from reprbasis.kits.weights import random_edit
from reprbasis.runtime.basis import Basis
from reprbasis.runtime.batches import batches, last_logits

from .config import ASKS, SeeAsConfig
from .quiz import Score
from .vocabulary import SIZE

Asked = Sequence[tuple[Example, int]]
"""Prompts and the first token of the answer expected."""


class SeeAs(Step[SeeAsConfig]):
    """See the module."""

    def run(self, context: StepContext, **inputs: Artifact) -> Findings:
        """Takes `basis` (editors may use it); gives findings, with the plans' details as notes.

        Raises:
            DataError: the model's tokenizer begins both answers with one token.
        """
        basis, model = inputs["basis"], context.model
        assert isinstance(basis, Basis)
        fitted = self._pairs(context, "train", self.config.prompts, ask=self.config.ask, thing=True, **self._only())
        keep = [p.clean for ask in ASKS for p in self._pairs(context, "train", self.config.keep, ask=ask, thing=False)]
        request = EditRequest(batches(model, fitted), keep)
        asked = self._asked(context)
        rows, notes = _measured(model, asked, "unchanged"), []
        for use in self.config.editors:
            name = use.name.rpartition("/")[2]
            plan: EditPlan = context.registry.build(use).edit(model, basis, request)
            for condition, tried in ((name, plan), (f"{name}, random", random_edit(plan, context.seed))):
                with tried.applied(model):
                    rows += _measured(model, asked, condition)
            weights = {n: (d, model.parameters()[n]) for n, d in plan.deltas.items() if d.ndim > 1}
            moved, whole = (sum(float(pair[i].norm()) ** 2 for pair in weights.values()) ** 0.5 for i in (0, 1))
            rows.append(Measurement("relative_size", moved / whole if whole else 0.0, len(weights), condition=name))
            notes.append(f"{name} changes {len(weights)} matrices: {', '.join(weights)}.")
        return Findings(rows, (), (), notes)

    def _pairs(self, context: StepContext, split: Split, n: int, *, ask: str, thing: bool, **options: Any) -> list[ContrastPair]:
        """Pairs whose clean object has the first value (`thing`) or another."""
        c = self.config
        task = context.registry.create("task", "visual-question", ask=ask, size=20 * n, objects=c.objects, **options)
        found = (p for p in task.pairs(context.model.tokenizer, split, context.seed)
                 if (p.meta["clean"][c.ask] == c.thing) == thing)
        return list(islice(found, n))

    def _asked(self, context: StepContext) -> dict[str, Asked]:
        c, n = self.config, self.config.held_out
        rest = [a for a in ASKS if a != c.ask]
        mine = self._pairs(context, "test", n, ask=c.ask, thing=True, **self._only())
        noise = np.random.default_rng(context.seed)
        blind = [replace(p.clean, images=(data_uri(noise.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)),)) for p in mine]

        def right(asks: Sequence[str], thing: bool) -> list[ContrastPair]:
            return [p for ask in asks for p in self._pairs(context, "test", n, ask=ask, thing=thing)]

        out = {"says_target": [(p.clean, p.wrong[0]) for p in mine]}
        if c.ask == "colour":
            out["says_target, other wording"] = [(_asking(p, f"What is at the {p.meta['clean']['place']}?"), p.wrong[0])
                                                 for p in mine]
        if c.objects > 1:
            begin = context.model.tokenizer
            out["neighbours"] = [(_asking(p, text), begin(answer, add_special_tokens=False)["input_ids"][0])
                                 for p in mine for text, answer in p.meta["others"][:1]]
        about = right(rest, True)
        renamed = [(_asking(p, _question(p).replace(c.thing, c.target)), p.answer[0]) for p in about]
        return {**out, "others_kept": _plain(right([c.ask], False)), "other_questions": renamed,
                "other_questions, old name": _plain(about), "other_questions, others": _plain(right(rest, False)),
                "blinded": [(e, p.wrong[0]) for e, p in zip(blind, mine, strict=True)]}

    def _only(self) -> dict[str, Any]:
        return {f"{self.config.ask}s": (self.config.thing, self.config.target)}


def _plain(pairs: Sequence[ContrastPair]) -> Asked:
    return [(p.clean, p.answer[0]) for p in pairs]


def _question(pair: ContrastPair) -> str:
    [message] = pair.clean.messages or ()
    return message.content


def _asking(pair: ContrastPair, text: str) -> Example:
    """Another question about the clean image."""
    [message] = pair.clean.messages or ()
    return replace(pair.clean, messages=(replace(message, content=text),))


def _measured(model: ModelAdapter[Any], asked: dict[str, Asked], condition: str, together: int = 32) -> list[Measurement]:
    out = []
    for name, prompts in asked.items():
        right = 0
        for at in range(0, len(prompts), together):
            examples, answers = zip(*prompts[at:at + together], strict=True)
            right += int((last_logits(model, model.batch(examples)).argmax(1).cpu() == torch.tensor(answers)).sum())
        score = Score(right, len(prompts), 0.0)
        out.append(Measurement(name, score.share, score.n, *score.interval, condition=condition, unit="share"))
    return out
