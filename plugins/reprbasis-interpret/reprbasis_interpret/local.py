"""Judge `local`: a language model on this machine names what passages share, and says how likely its answer is Yes.

The score is P(Yes) / (P(Yes) + P(No)) of the first token of the answer, so that a model that leans to one side still ranks.
"""

import torch

import reprbasis as rb
from reprbasis.interfaces.judge import Explanation, Judge
from reprbasis.interfaces.model import Sampling
from reprbasis.interfaces.tokens import Example, Message, TokenBatch

from . import questions
from .config import LocalConfig


class Local(Judge[LocalConfig]):
    """See the module."""

    def explain(self, shown, contrast=(), *, model):
        """The first line of a greedy answer."""
        judge = self._judge(model)
        [prompt] = judge.tokenize([_asked(questions.explain(shown, contrast))])
        [written] = judge.generate([prompt], sampling=Sampling(self.config.max_new))
        new = written.ids[written.flags["generated"] & ~written.flags["special"]]
        return Explanation(questions.phrase(judge.tokenizer.decode(new.tolist(), skip_special_tokens=True)))

    def match(self, explanation, passages, *, model):
        """How likely Yes is."""
        judge, out = self._judge(model), []
        yes, no = (_first(judge, word) for word in (questions.YES, questions.NO))
        prompts = judge.tokenize([_asked(questions.ask(p, explanation.text)) for p in passages]) if passages else []
        for start in range(0, len(prompts), self.config.batch):
            some = prompts[start:start + self.config.batch]
            logits = judge.forward(TokenBatch.pad(some, pad_id=judge.pad_id).to(judge.device), logits="last").logits[:, 0].float()
            out.append((logits[:, yes] - logits[:, no]).sigmoid().cpu())
        return torch.cat(out) if out else torch.zeros(0)

    def _judge(self, model):
        """The judging model, loaded once."""
        if self.config.model is None:
            return model
        if not hasattr(self, "_own"):
            self._own = rb.registry().build(self.config.model)
        return self._own


def _asked(text):
    return Example(messages=(Message("user", text),), add_prompt=True)


def _first(model, word):
    return int(model.tokenize([Example(text=word)])[0].ids[-1])
