"""Judges that score one token at a time: a passage is as good as its marked tokens, or as its best token where none is marked.

Shapes: n passages.
"""

from abc import abstractmethod

import torch

from reprbasis.interfaces.judge import Explanation, Judge


class TokenJudge(Judge):
    """Base of `lexical` and `semantic`: subclasses learn to weigh tokens.

    The unmarked tokens of the passages that are shown serve as contrast too. The score is sigmoid(sharpness * (value - middle)):
    `middle` lies half way between what the marked tokens and the best of the others reach on the passages shown.
    """

    sharpness = 1.0

    @abstractmethod
    def learn(self, yes, no, model):
        """(text, details) from the marked tokens and the others; each a list of (passage, place)."""

    @abstractmethod
    def value(self, details, passage, place, model):
        """How much a token is like the marked ones."""

    def explain(self, shown, contrast=(), *, model):
        """See `Judge.explain`."""
        yes = [(p, i) for p in shown for i in p.marked]
        no = [(p, i) for p in (*shown, *contrast) for i in range(len(p.tokens)) if i not in p.marked]
        text, details = self.learn(yes, no, model)
        high = sum(self.value(details, p, i, model) for p, i in yes) / len(yes)
        best = {}
        for p, i in no:
            best[id(p)] = max(best.get(id(p), -float("inf")), self.value(details, p, i, model))
        low = sum(best.values()) / len(best) if best else high - 1
        return Explanation(text, {**details, "middle": (high + low) / 2})

    def match(self, explanation, passages, *, model):
        """See `Judge.match`: mean over the marked tokens, or maximum over all."""
        out = []
        for p in passages:
            values = [self.value(explanation.details, p, i, model) for i in p.marked or range(len(p.tokens))]
            out.append(sum(values) / len(values) if p.marked else max(values))
        return torch.sigmoid(self.sharpness * (torch.tensor(out, dtype=torch.float64) - explanation.details["middle"])).float()
