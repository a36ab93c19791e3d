"""What prompts with answers say about a model, whatever weights it has at the moment: for judging edits.

Shapes: B batch rows, A accepted answers, N prompts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..interfaces.model import ModelAdapter
from ..interfaces.scorer import ContrastBatch
from ..interfaces.tokens import Example, TokenBatch, TokenSequence
from ..runtime.batches import best_of, last_logits

MEASURES = {
    "logit_diff": "logit of the answer minus logit of the wrong answer",
    "choice": "the answer is likelier than the wrong answer",
    "answer_top1": "the answer is the likeliest token",
    "wrong_top1": "the wrong answer is the likeliest token: what a counterfactual edit is for (argmax, nothing forced)",
    "answer_prob": "probability of the answer",
    "wrong_prob": "probability of the wrong answer",
    "kept": "the likeliest token is that of the unchanged model (of probes that are to stay)",
}
"""Number of a prompt -> what it is. CounterFact's "success" is 1 - `choice`, its "accuracy" is `wrong_top1`."""


@torch.no_grad()
def rows(model: ModelAdapter[Any], given: Sequence[ContrastBatch]) -> dict[str, Tensor]:
    """Each of `MEASURES` but `kept`, and `top` (the likeliest token): [N], in the order of the batches. One forward a batch.

    Raises:
        DataError: a batch has no answers or no wrong answers.
    """
    found: dict[str, list[Tensor]] = {}
    for item in given:
        if item.targets.answer is None or item.targets.wrong is None:
            raise DataError("there is nothing to compare the answer with", do="give batches with answers and wrong answers")
        logits, answer, wrong = last_logits(model, item.clean).cpu(), item.targets.answer.cpu(), item.targets.wrong.cpu()
        right, other, top, total = best_of(logits, answer), best_of(logits, wrong), logits.argmax(1), logits.logsumexp(1)
        row = {"logit_diff": right - other, "choice": right > other, "answer_top1": (top[:, None] == answer).any(1),
               "wrong_top1": (top[:, None] == wrong).any(1), "answer_prob": (right - total).exp(),
               "wrong_prob": (other - total).exp(), "top": top}
        for name, value in row.items():
            found.setdefault(name, []).append(value.double())
    return {name: torch.cat(values) for name, values in found.items()}


def said_twice(model: ModelAdapter[Any], *, length: int = 20, n: int = 12, seed: int = 0) -> list[TokenSequence]:
    """Random tokens said twice [2 * length]: a model with induction heads predicts the second half (Olsson et al. 2022)."""
    g = torch.Generator().manual_seed(seed)
    special = set(model.tokenizer.all_special_ids)
    usual = torch.tensor([i for i in range(min(model.info.vocab, len(model.tokenizer))) if i not in special])
    halves = [usual[torch.randint(len(usual), (length,), generator=g)] for _ in range(n)]
    return [TokenSequence(torch.cat([half, half]), sequence=i) for i, half in enumerate(halves)]


class Neutral:
    """KL divergence to the unchanged model on texts, token by token. Keeps that model's log-probabilities.

    Position 0 is left out: what follows one token says little.

    Args:
        model: unchanged.
        texts: to measure on.
        together: texts in one forward.
        tokens: of each text at most.

    Attributes:
        group: [tokens] index of the text of each token.
    """

    def __init__(self, model: ModelAdapter[Any], texts: Sequence[Example], *, together: int = 8, tokens: int = 256) -> None:
        sequences = model.tokenize(list(texts), max_tokens=tokens)
        self.batches = [TokenBatch.pad(sequences[i:i + together], pad_id=model.pad_id).to(model.device)
                        for i in range(0, len(sequences), together)]
        self.before = [self._log_probs(model, batch) for batch in self.batches]
        self.group = torch.cat([torch.zeros(0, dtype=torch.long), *(b.sequences[self._where(b)].cpu() for b in self.batches)])

    @staticmethod
    def _where(batch: TokenBatch) -> Tensor:
        return batch.mask & (batch.positions > 0)

    @torch.no_grad()
    def _log_probs(self, model: ModelAdapter[Any], batch: TokenBatch) -> Tensor:
        logits = model.forward(batch).logits
        assert logits is not None
        return logits[self._where(batch)].float().log_softmax(-1).cpu()

    def kl(self, model: ModelAdapter[Any]) -> Tensor:
        """[tokens] KL(before || now) in nats."""
        pairs = zip(self.before, self.batches, strict=True)
        return torch.cat([torch.zeros(0, dtype=torch.float64),
                          *((a.exp() * (a - self._log_probs(model, b))).sum(-1).double() for a, b in pairs)])
