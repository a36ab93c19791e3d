"""The loop that all baselines share which train weights.

Shapes: B batch, T tokens, V vocabulary, D residual width.
"""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import ClassVar

import torch
from torch import Tensor

from reprbasis.errors import DataError, SiteError
from reprbasis.interfaces.base import C
from reprbasis.interfaces.editor import Editor, EditPlan, EditRequest
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.kits.prefixes import last_logits, longest
from reprbasis.kits.tuning import inner, restored
from reprbasis.runtime.basis import Basis
from reprbasis.runtime.batches import best_of

log = logging.getLogger(__name__)


class Trained(Editor[C]):
    """Trains weights with AdamW; the plan is what has changed. The config must be a `TrainConfig`."""

    locality: ClassVar[str] = "full back-propagation"

    @abstractmethod
    def loss(self, model: ModelAdapter, item: ContrastBatch, text: TokenBatch | None, before: Mapping[str, Tensor]) -> Tensor:
        """What is minimised: a batch of the request, a batch of texts to keep (if there are any), and what `before` gave."""

    def before(self, model: ModelAdapter, item: ContrastBatch, text: TokenBatch | None) -> Mapping[str, Tensor]:
        """What the loss needs of the unchanged model on the same batches."""
        return {}

    def trainable(self, model: ModelAdapter) -> list[str]:
        """Names of the parameters that are trained."""
        names, layers = inner(model), self.config.layers
        return names if layers is None else [n for n in names if any(str(i) in n.split(".") for i in layers)]

    def edit(self, model: ModelAdapter, basis: Basis, request: EditRequest) -> EditPlan:
        """See the class.

        Raises:
            DataError: the goal is met already.
            SiteError: there are no such layers.
        """
        c, names = self.config, self.trainable(model)
        if not names:
            raise SiteError(f"the model has no weights in layers {c.layers}", do=f"use 0 to {model.info.n_layers - 1}")
        texts = texts_of(model, request, c.keep_tokens, c.keep_texts)
        endless = zip(cycle(request.change), cycle(texts or [None]), strict=False)
        batches = list(islice(endless, min(c.steps, len(request.change) * max(len(texts), 1))))
        known = [self.before(model, item, text) for item, text in batches]
        margins: list[float] = []
        steps = 0
        with restored(model, names) as (weights, start):
            tuned = self.parametrised(weights, start)
            optimiser = torch.optim.AdamW(tuned.variables, lr=c.lr, weight_decay=c.weight_decay)
            for steps in range(1, c.steps + 1):
                item, text = batches[(steps - 1) % len(batches)]
                if c.goal is not None:
                    margins.append(margin(model, item))
                    if margins[-1] <= c.goal:
                        steps -= 1
                        break
                tuned.backward(self.loss(model, item, text, known[(steps - 1) % len(batches)]))
                torch.nn.utils.clip_grad_norm_(tuned.variables, c.clip)
                optimiser.step()
                tuned.write()
            del optimiser, tuned
            deltas = {name: p.detach() - start[name] for name, p in weights.items()}
        if not steps:
            raise DataError(f"the mean logit difference of the prompts to change is {margins[0]:.3g}, the goal {c.goal:g}",
                            do="give prompts that the model answers as it should not, or a lower goal")
        return EditPlan({n: d for n, d in deltas.items() if bool(d.any())}, {
            "editor": self.full_name, "locality": self.locality, "options": c.model_dump(mode="json"),
            "margins": margins, "steps": steps})

    def parametrised(self, weights: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> "Direct":
        """What the optimiser changes: the weights themselves; `start` is a copy of them as they were."""
        return Direct(weights)


class Direct:
    """Weights that are trained themselves."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights
        self.variables = [p.requires_grad_() for p in weights.values()]

    def backward(self, loss: Tensor) -> None:
        """Set the gradients of the variables."""
        for p in self.variables:
            p.grad = None
        loss.backward()

    def write(self) -> None:
        """Bring the weights up to date with the variables."""


def texts_of(model: ModelAdapter, request: EditRequest, tokens: int, together: int = 2) -> list[TokenBatch]:
    """The texts to keep, cut, in small batches."""
    found = [s.cut(tokens) for s in model.tokenize(list(request.keep))]
    return [TokenBatch.pad(found[i:i + together], pad_id=model.pad_id).to(model.device) for i in range(0, len(found), together)]


def answer_nll(logits: Tensor, targets: Targets) -> Tensor:
    """[B] -log of the probability of all accepted answers together, from logits [B, V]."""
    ids = targets.answer
    if ids is None:
        raise DataError("an edit needs answers", do="give batches whose targets name the answer to change")
    return logits.logsumexp(1) - logits.gather(1, ids.clamp_min(0)).masked_fill(ids < 0, -torch.inf).logsumexp(1)


def other_nll(logits: Tensor, targets: Targets) -> Tensor:
    """[B] the same of the wrong answers: what shall be said instead."""
    if targets.wrong is None:
        raise DataError("this editor needs to know what to say instead", do="give batches whose targets name wrong answers")
    return answer_nll(logits, Targets(targets.wrong))


def logits_of(model: ModelAdapter, batch: TokenBatch, *, grad: bool = True) -> Tensor:
    """[B, V] after the prompts."""
    return last_logits(model, batch, grad=grad).float()


def answers_of(x: Tensor, batch: TokenBatch, *, mean: bool = False) -> Tensor:
    """[B] of the tokens -> sum (or mean) over the tokens of each answer: the rows that one text holds (see `longest`)."""
    row = longest(batch)[1]
    total = x.new_zeros(int(row.max()) + 1).index_add(0, row, x)
    return total / row.bincount() if mean else total


def margins_of(logits: Tensor, targets: Targets) -> Tensor:
    """[B] answer minus wrong answer (without any: log-probability of the answer)."""
    assert targets.answer is not None
    other = logits.logsumexp(1) if targets.wrong is None else best_of(logits, targets.wrong)
    return best_of(logits, targets.answer) - other


@torch.no_grad()
def margin(model: ModelAdapter, item: ContrastBatch) -> float:
    """Mean of `margins_of`. One forward."""
    return float(margins_of(last_logits(model, item.clean), item.targets).mean())


def text_nll(model: ModelAdapter, text: TokenBatch) -> Tensor:
    """Mean loss of the tokens of texts."""
    logits = model.forward(text, grad=True).logits
    assert logits is not None
    real = text.mask[:, 1:]
    return torch.nn.functional.cross_entropy(logits[:, :-1][real].float(), text.ids[:, 1:][real])


def log_probs(model: ModelAdapter, text: TokenBatch, *, grad: bool) -> Tensor:
    """[tokens, V]."""
    logits = model.forward(text, grad=grad).logits
    assert logits is not None
    return logits[text.mask].float().log_softmax(-1)


def kl(before: Tensor, now: Tensor) -> Tensor:
    """Mean KL(before || now) of log-probabilities [tokens, V]."""
    return (before.exp() * (before - now)).sum(-1).mean()


def second_moment(reads: Sequence[Tensor]) -> Tensor:
    """[M, M] mean of k k^T over rows [N, M] of all, in float64."""
    rows = torch.cat(list(reads)).double()
    return rows.T @ rows / max(len(rows), 1)
