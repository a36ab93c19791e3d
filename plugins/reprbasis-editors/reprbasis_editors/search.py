"""How far to go: a forward-only search for the strength of an edit.

Shapes: B prompts, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from reprbasis.errors import DataError
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.runtime.batches import best_of, last_logits

from .config import SearchConfig

_NEAR = 0.05
"""A trial that overshoots the goal by at most this share of the way ends the search."""

@dataclass(frozen=True)
class Trial:
    """A strength, the mean logit difference of the prompts to change, and the KL divergence (nats a token) on texts to keep."""

    strength: float
    margin: float
    kl: float


def margins(logits: Tensor, targets: Targets) -> Tensor:
    """[B] best answer's logit minus the best wrong answer's (without any: minus the log of the sum), from [B, V].

    Raises:
        DataError: there are no answers.
    """
    if targets.answer is None:
        raise DataError("an edit needs answers", do="give batches whose targets name the answer to change")
    return best_of(logits, targets.answer) - (logits.logsumexp(-1) if targets.wrong is None else best_of(logits, targets.wrong))


class Judge:
    """Measures a plan by forward passes. Keeps the unchanged model's log-probabilities on the texts to keep."""

    def __init__(self, model: ModelAdapter, change: Sequence[ContrastBatch], texts: Sequence[TokenBatch]) -> None:
        self.model, self.change, self.texts = model, change, texts
        self.before = [self._log_probs(batch) for batch in texts]
        self.prompts = sum(len(item.clean.ids) for item in change)

    def _log_probs(self, batch: TokenBatch) -> torch.Tensor:
        logits = self.model.forward(batch).logits
        assert logits is not None
        return logits[batch.mask].float().log_softmax(-1)

    def margin(self) -> float:
        """Mean over prompts of the best answer's logit minus the best wrong answer's (without any: its log-probability)."""
        return float(torch.cat([margins(last_logits(self.model, item.clean), item.targets) for item in self.change]).mean())

    def kl(self) -> float:
        """Mean over tokens of KL(before || now); 0 without texts."""
        if not self.texts:
            return 0.0
        now = [self._log_probs(batch) for batch in self.texts]
        return float(torch.cat([(a.exp() * (a - b)).sum(-1) for a, b in zip(self.before, now, strict=True)]).mean())


@dataclass(frozen=True)
class Found:
    """What the search settled on.

    Args:
        strength: 0 if the goal is met without an edit.
        about: numbers to say of it.
    """

    strength: float
    about: dict[str, object]


def search(trial: Callable[[float], Trial], start: float, config: SearchConfig) -> Found:
    """The smallest strength tried that meets the goal within the budget; failing that, the one that comes nearest.

    More is not always better: what an edit does to a layer, later layers may overdo. A trial worse than the best is too strong.

    Args:
        trial: measures a strength.
        start: logit difference without the edit.
        config: goal, first strength, budget, tries.

    Raises:
        DataError: no strength stays within the budget.
    """
    if config.goal is not None and start <= config.goal:
        return Found(0.0, {"margin_before": start, "margin": start, "reached": True, "trials": []})
    trials: list[Trial] = []
    low, high, strength = 0.0, None, config.strength
    for _ in range(config.tries if config.goal is not None else 1):
        now = trial(strength)
        trials.append(now)
        met = config.goal is not None and now.margin <= config.goal
        if met or now.kl > config.budget or now.margin > min((t.margin for t in trials if t.kl <= config.budget), default=start):
            high = strength
        else:
            low = strength
        if (met and now.kl <= config.budget and now.margin >= config.goal - _NEAR * (start - config.goal)) or (
                high is not None and high - low <= 0.02 * high):
            break
        strength = 2 * strength if high is None else (low + high) / 2
    allowed = [t for t in trials if t.kl <= config.budget]
    if not allowed:
        raise DataError(f"the weakest edit tried changes the texts to keep by {min(t.kl for t in trials):.3g} nats a token",
                        do=f"raise the budget of {config.budget:g}, lower the strength, or edit other components")
    reached = [t for t in allowed if config.goal is not None and t.margin <= config.goal]
    best = min(reached, key=lambda t: t.strength) if reached else min(allowed, key=lambda t: t.margin)
    return Found(best.strength, {"margin_before": start, "margin": best.margin, "kl_keep": best.kl, "reached": bool(reached),
                                 "trials": [asdict(t) for t in trials]})
