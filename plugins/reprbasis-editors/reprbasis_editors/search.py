"""How far to go: a forward-only search for the strength of an edit.

Shapes: B prompts, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from reprbasis.errors import DataError
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.model import ModelAdapter, Start
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.kits.components import stream_before
from reprbasis.runtime.batches import best_of

from .config import SearchConfig

_NEAR = 0.05
"""A trial that overshoots the goal by at most this share of the way ends the search."""

@dataclass(frozen=True)
class Trial:
    """A strength, the mean logit difference of the prompts to change, and the KL divergence (nats a token) on texts to keep, if
    it was measured.
    """

    strength: float
    margin: float
    kl: float | None = None

    def within(self, budget: float) -> bool:
        """Whether the KL divergence is known and small enough."""
        return self.kl is not None and self.kl <= budget


def margins(logits: Tensor, targets: Targets) -> Tensor:
    """[B] best answer's logit minus the best wrong answer's (without any: minus the log of the sum), from [B, V].

    Raises:
        DataError: there are no answers.
    """
    if targets.answer is None:
        raise DataError("an edit needs answers", do="give batches whose targets name the answer to change")
    return best_of(logits, targets.answer) - (logits.logsumexp(-1) if targets.wrong is None else best_of(logits, targets.wrong))


def merged(change: Sequence[ContrastBatch], rows: int = 32) -> list[ContrastBatch]:
    """The same prompts in few large batches, padded on the right, without roles: a forward of one row costs nearly that of many.

    Batches that hold more than tokens (images) stay as they are.
    """
    out = [item for item in change if item.clean.extra]
    plain = [item for item in change if not item.clean.extra]
    for mirrored in (False, True):
        items = [item for item in plain if (item.corrupt is not None) == mirrored]
        clean = [s for item in items for s in _sequences(item.clean)]
        corrupt = [s for item in items for s in _sequences(item.corrupt)]
        answer, wrong = (_stacked([getattr(item.targets, name) for item in items]) for name in ("answer", "wrong"))
        for i in range(0, len(clean), rows):
            part = slice(i, i + rows)
            targets = Targets(*(None if t is None else t[part] for t in (answer, wrong)))
            device = items[0].clean.ids.device
            out.append(ContrastBatch(TokenBatch.pad(clean[part]).to(device),
                                     TokenBatch.pad(corrupt[part]).to(device) if mirrored else None, targets))
    return out


def _sequences(batch: TokenBatch | None) -> list[TokenSequence]:
    if batch is None:
        return []
    return [TokenSequence(batch.ids[i, mask].cpu(), {name: flag[i, mask].cpu() for name, flag in batch.flags.items()},
                          int(batch.sequences[i, mask][0])) for i, mask in enumerate(batch.mask)]


def _stacked(given: Sequence[Tensor | None]) -> Tensor | None:
    """[N, A] rows of token ids, padded with -1."""
    there = [t for t in given if t is not None]
    if not there or len(there) < len(given):
        return None
    wide = max(t.shape[1] for t in there)
    return torch.cat([torch.nn.functional.pad(t, (0, wide - t.shape[1]), value=-1) for t in there])


class Judge:
    """Measures a plan by forward passes. Keeps the unchanged model's log-probabilities on the texts to keep.

    Args:
        model: the model.
        change: the prompts to change.
        texts: to keep.
        layer: the first layer that a plan changes; forwards begin there, at streams that are kept.
    """

    def __init__(self, model: ModelAdapter, change: Sequence[ContrastBatch], texts: Sequence[TokenBatch], layer: int = 0) -> None:
        self.model, self.change, self.texts = model, merged(change), texts
        self.starts = [[self._start(batch, layer) for batch in batches] for batches in ([i.clean for i in self.change], texts)]
        self.before = self._log_probs()
        self.prompts = sum(len(item.clean.ids) for item in change)

    def _start(self, batch: TokenBatch, layer: int) -> Start | None:
        if not layer or batch.extra:  # images may join the stream later
            return None
        site = stream_before(layer)
        return Start(site, self.model.forward(batch, capture=[site], stop_at=site, logits="none")[site])

    def _log_probs(self) -> list[Tensor]:
        out = []
        for batch, start in zip(self.texts, self.starts[1], strict=True):
            logits = self.model.forward(batch, start=start).logits
            assert logits is not None
            out.append(logits[batch.mask].float().log_softmax(-1))
        return out

    def margin(self) -> float:
        """Mean over prompts of the best answer's logit minus the best wrong answer's (without any: its log-probability)."""
        found = []
        for item, start in zip(self.change, self.starts[0], strict=True):
            logits = self.model.forward(item.clean, start=start, logits="last").logits
            assert logits is not None
            found.append(margins(logits[:, 0].float(), item.targets))
        return float(torch.cat(found).mean())

    def kl(self) -> float:
        """Mean over tokens of KL(before || now); 0 without texts."""
        if not self.texts:
            return 0.0
        now = self._log_probs()
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


def search(margin_of: Callable[[float], float], kl_of: Callable[[float], float], start: float, config: SearchConfig) -> Found:
    """The smallest strength tried that meets the goal within the budget; failing that, the one that comes nearest.

    More is not always better: what an edit does to a layer, later layers may overdo. A trial worse than a weaker one is too much.

    Args:
        margin_of: strength -> mean logit difference of the prompts to change.
        kl_of: strength -> KL divergence on the texts to keep; asked only where the goal is met, and for what is given.
        start: logit difference without the edit.
        config: goal, first strength, budget, tries.

    Raises:
        DataError: no strength stays within the budget.
    """
    goal = config.goal
    if goal is not None and start <= goal:
        return Found(0.0, {"margin_before": start, "margin": start, "reached": True, "trials": []})
    trials: list[Trial] = []
    low, high, strength, tight = 0.0, None, config.strength, False
    for _ in range(config.tries if goal is not None else 1):
        margin = margin_of(strength)
        met = goal is not None and margin <= goal
        now = Trial(strength, margin, kl_of(strength) if met or tight else None)
        weaker = min((t.margin for t in trials if t.strength < strength), default=start)
        trials.append(now)
        over = now.kl is not None and not now.within(config.budget)
        if over and not tight:  # what seemed weak enough may not have been
            tight, low = True, 0.0
        if met or over or margin > weaker:
            high = strength
        else:
            low = strength
        near = met and goal is not None and margin >= goal - _NEAR * (start - goal) and now.within(config.budget)
        if near or (high is not None and high - low <= 0.02 * high):
            break
        strength = 2 * strength if high is None else (low + high) / 2
    reached = [t for t in trials if t.within(config.budget) and goal is not None and t.margin <= goal]
    best = min(reached, key=lambda t: t.strength, default=None)
    kls = [t.kl for t in trials if t.kl is not None]
    for t in sorted(trials, key=lambda t: t.margin):
        if best is None:
            t = t if t.kl is not None else replace(t, kl=kl_of(t.strength))
            kls.append(t.kl)
            best = t if t.within(config.budget) else None
    if best is None:
        raise DataError(f"the weakest edit tried changes the texts to keep by {min(kls):.3g} nats a token",
                        do=f"raise the budget of {config.budget:g}, lower the strength, or edit other components")
    return Found(best.strength, {"margin_before": start, "margin": best.margin, "kl_keep": best.kl, "reached": bool(reached),
                                 "trials": [asdict(t) for t in trials]})
