"""How far to go: a forward-only search for the strength of an edit.

Shapes: B prompts, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from reprbasis.errors import DataError
from reprbasis.interfaces.editor import EditPlan
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.runtime.batches import best_of, last_logits

from .config import SearchConfig


@dataclass(frozen=True)
class Trial:
    """A strength, the mean logit difference of the prompts to change, and the KL divergence (nats a token) on texts to keep."""

    strength: float
    margin: float
    kl: float


class Judge:
    """Measures a plan by forward passes. Keeps the unchanged model's log-probabilities on the texts to keep."""

    def __init__(self, model: ModelAdapter, change: Sequence[ContrastBatch], texts: Sequence[TokenBatch]) -> None:
        self.model, self.change, self.texts = model, change, texts
        self.before = [self._log_probs(batch) for batch in texts]

    def _log_probs(self, batch: TokenBatch) -> torch.Tensor:
        logits = self.model.forward(batch).logits
        assert logits is not None
        return logits[batch.mask].float().log_softmax(-1)

    def margin(self) -> float:
        """Mean over prompts of the best answer's logit minus the best wrong answer's (without any: its log-probability)."""
        found = []
        for item in self.change:
            logits, targets = last_logits(self.model, item.clean), item.targets
            if targets.answer is None:
                raise DataError("an edit needs answers", do="give batches whose targets name the answer to change")
            other = logits.logsumexp(-1) if targets.wrong is None else best_of(logits, targets.wrong)
            found.append(best_of(logits, targets.answer) - other)
        return float(torch.cat(found).mean())

    def kl(self) -> float:
        """Mean over tokens of KL(before || now); 0 without texts."""
        if not self.texts:
            return 0.0
        now = [self._log_probs(batch) for batch in self.texts]
        return float(torch.cat([(a.exp() * (a - b)).sum(-1) for a, b in zip(self.before, now, strict=True)]).mean())

    def trial(self, plan: EditPlan, strength: float) -> Trial:
        """Under a plan that was made for this strength."""
        with plan.applied(self.model):
            return Trial(strength, self.margin(), self.kl())


def search(judge: Judge, plan_of: Callable[[float], EditPlan], config: SearchConfig) -> tuple[float, dict[str, object]]:
    """The smallest strength tried that meets the goal within the budget; failing that, the one that comes nearest.

    More is not always better: what an edit does to a layer, later layers may overdo. A trial worse than the best is too strong.

    Args:
        judge: measures.
        plan_of: strength -> plan.
        config: goal, first strength, budget, tries.

    Returns:
        The strength, and what to say of it; 0 if the goal is met without the edit.

    Raises:
        DataError: no strength stays within the budget.
    """
    with plan_of(0.0).applied(judge.model):
        start = judge.margin()
    if config.goal is not None and start <= config.goal:
        return 0.0, {"margin_before": start, "margin_fitted": start, "reached": True, "trials": []}
    trials: list[Trial] = []
    low, high, strength = 0.0, None, config.strength
    for _ in range(config.tries if config.goal is not None else 1):
        now = judge.trial(plan_of(strength), strength)
        trials.append(now)
        met = config.goal is not None and now.margin <= config.goal
        if met or now.kl > config.budget or now.margin > min((t.margin for t in trials if t.kl <= config.budget), default=start):
            high = strength
        else:
            low = strength
        if high is not None and high - low <= 0.02 * high:
            break
        strength = 2 * strength if high is None else (low + high) / 2
    allowed = [t for t in trials if t.kl <= config.budget]
    if not allowed:
        raise DataError(f"the weakest edit tried changes the texts to keep by {min(t.kl for t in trials):.3g} nats a token",
                        do=f"raise the budget of {config.budget:g}, lower the strength, or edit other components")
    reached = [t for t in allowed if config.goal is not None and t.margin <= config.goal]
    best = min(reached, key=lambda t: t.strength) if reached else min(allowed, key=lambda t: t.margin)
    return best.strength, {"margin_before": start, "margin_fitted": best.margin, "kl_keep": best.kl, "reached": bool(reached),
                           "trials": [asdict(t) for t in trials]}
