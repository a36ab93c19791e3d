"""The laws of judges, proven on a planted word."""

from __future__ import annotations

from typing import Any

import torch

from reprbasis.interfaces.judge import Explanation, Judge, Passage

from ..toys import LinearModel, toy_model
from .base import ComponentContract

WORDS = tuple(f" {w}" for w in ("red", "tree", "stone", "walks", "under", "green", "seven", "paper", "river", "cold"))
"""What passages are made of; the planted feature is the word WORDS[6]."""
PLANTED = 6
LENGTH = 5


class JudgeContract(ComponentContract):
    """Suite of kind `judge`: passages of random words, and one word that the feature stands for.

        class TestLexical(JudgeContract):
            name = "lexical"

    Half of the passages hold the word, and it is marked there. The model is the toy model, whose tokenizer knows hardly more
    words than these: a judge that asks a language model is given one of its own.
    """

    kind = "judge"

    def passages(self, model: LinearModel, count: int, seed: int, *, planted: bool) -> list[Passage]:
        """Random passages with the planted word in one place, marked, or without it, unmarked."""
        generator, out = torch.Generator().manual_seed(seed), []
        others = [i for i in range(len(WORDS)) if i != PLANTED]
        for _ in range(count):
            words = [others[int(i)] for i in torch.randint(len(others), (LENGTH,), generator=generator)]
            place = int(torch.randint(LENGTH, (), generator=generator))
            if planted:
                words[place] = PLANTED
            tokens = tuple(WORDS[w] for w in words)
            ids = tuple(int(model.tokenizer.encode(t)[0]) for t in tokens)
            out.append(Passage(tokens, ids, (place,) if planted else ()))
        return out

    def explained(self) -> tuple[LinearModel, Judge[Any], Explanation]:
        """A model, the judge, and what it took the planted feature for."""
        model, judge = toy_model(), self.create()
        shown, contrast = (self.passages(model, 8, seed, planted=p) for seed, p in ((0, True), (1, False)))
        explanation: Explanation = judge.explain(shown, contrast, model=model)
        return model, judge, explanation

    def test_an_explanation_can_be_read(self) -> None:
        """One line of text. If it fails, say in words what was found, also where it is little."""
        _, _, explanation = self.explained()
        assert explanation.text.strip()
        assert "\n" not in explanation.text

    def test_one_score_per_passage(self) -> None:
        """[n] finite numbers between 0 and 1, for no passage none. If it fails, squash or clamp what comes out."""
        model, judge, explanation = self.explained()
        asked = self.passages(model, 5, 2, planted=True)
        scores = judge.match(explanation, asked, model=model)
        assert scores.shape == (5,)
        assert bool(((scores >= 0) & (scores <= 1)).all()), scores
        assert judge.match(explanation, [], model=model).shape == (0,)

    def test_contrast_may_be_missing(self) -> None:
        """It explains what it is shown also without passages to set it against."""
        model, judge = toy_model(), self.create()
        shown = self.passages(model, 4, 0, planted=True)
        explanation = judge.explain(shown, model=model)
        assert bool(judge.match(explanation, shown, model=model).isfinite().all())

    def test_judging_is_deterministic_and_leaves_the_model(self) -> None:
        """Twice the same. If it fails, seed what is drawn, and answer greedily."""
        model, judge, explanation = self.explained()
        kept = {name: p.clone() for name, p in model.parameters().items()}
        asked = self.passages(model, 4, 2, planted=True)
        scores = judge.match(explanation, asked, model=model)
        assert self.explained()[2].text == explanation.text
        assert torch.equal(judge.match(explanation, asked, model=model), scores)
        assert all(torch.equal(p, kept[name]) for name, p in model.parameters().items())

    def test_passages_are_judged_one_by_one(self) -> None:
        """Order and company do not matter. If it fails, compare with the explanation and not with each other."""
        model, judge, explanation = self.explained()
        asked = self.passages(model, 4, 2, planted=True) + self.passages(model, 4, 3, planted=False)
        scores = judge.match(explanation, asked, model=model)
        assert torch.allclose(judge.match(explanation, asked[::-1], model=model), scores.flip(0), atol=1e-5)
        assert torch.allclose(judge.match(explanation, asked[:1], model=model), scores[:1], atol=1e-5)

    def test_a_planted_word_is_found_in_passages(self) -> None:
        """Unmarked passages with the word score higher than those without."""
        model, judge, explanation = self.explained()
        has = [Passage(p.tokens, p.ids) for p in self.passages(model, 6, 4, planted=True)]
        lacks = self.passages(model, 6, 5, planted=False)
        yes, no = (judge.match(explanation, some, model=model) for some in (has, lacks))
        assert float(yes.min()) > float(no.max()), (explanation.text, yes, no)

    def test_marks_matter(self) -> None:
        """The same passage scores higher with the word marked than with another. If it fails, look at the marked tokens alone."""
        model, judge, explanation = self.explained()
        right = self.passages(model, 6, 6, planted=True)
        wrong = [Passage(p.tokens, p.ids, ((p.marked[0] + 1) % LENGTH,)) for p in right]
        yes, no = (judge.match(explanation, some, model=model) for some in (right, wrong))
        assert float(yes.min()) > float(no.max()), (explanation.text, yes, no)
