"""Steer at several strengths, score the answers, and find the largest strength that keeps their quality.

Shapes: N prompts, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from reprbasis.interfaces.model import Sampling

from .scores import answer, divergence, loss, passes, reference, repetition, tokenized
from .steer import Steer


@dataclass(frozen=True)
class Outcome:
    """What came out of one run over all prompts.

    Args:
        texts: the answers.
        ce: [N] loss of each answer under the unsteered model, nats per token.
        repetition: [N] share of repeated trigrams.
        failed: [N] 1 where the answer does not pass its check.
        kl: [N] KL(unsteered || steered) over the unsteered answers, nats per token; None if it was not asked for.
    """

    texts: tuple
    ce: Tensor
    repetition: Tensor
    failed: Tensor
    kl: Tensor | None = None


@dataclass(frozen=True)
class Limits:
    """How much worse than without steering the means may be."""

    ce: float
    repetition: float
    failures: float

    def kept(self, outcome, plain, where):
        """Whether the answers to the prompts `where` [N] bool keep the quality of the plain ones."""
        worse = [float((getattr(outcome, name) - getattr(plain, name))[where].mean()) for name in ("ce", "repetition", "failed")]
        return all(w <= most for w, most in zip(worse, (self.ce, self.repetition, self.failures), strict=True))


class Bench:
    """A model, prompts with checks, and how answers are made; `plain` is the outcome without steering."""

    def __init__(self, model, prompts, *, max_new):
        self.model, self.prompts = model, prompts
        self.sampling = Sampling(max_new)
        self.sequences = tokenized(model, prompts)
        self.written = model.generate(self.sequences, sampling=self.sampling)
        self.plain = self._score(self.written, torch.zeros(len(prompts)))
        self._reference = None

    def run(self, edits, *, kl=False):
        """Answer all prompts with these edits; `kl` also compares the distributions along the plain answers."""
        written = self.model.generate(self.sequences, edits=edits, sampling=self.sampling)
        if not kl:
            return self._score(written)
        if self._reference is None:
            self._reference = reference(self.model, self.written)
        return self._score(written, divergence(self.model, self.written, self._reference, edits))

    def _score(self, written, kl=None):
        texts = tuple(answer(self.model, s) for s in written)
        repeated = [repetition(s.ids[s.flags["generated"]].tolist()) for s in written]
        failed = [not passes(text, check) for text, (_, check) in zip(texts, self.prompts, strict=True)]
        return Outcome(texts, loss(self.model, written).double(), torch.tensor(repeated, dtype=torch.float64),
                       torch.tensor(failed).double(), kl)


@dataclass(frozen=True)
class Sweep:
    """One direction at all strengths, and how far it can be taken.

    Args:
        outcomes: strength -> outcome, ascending; those of the grid and those the search tried.
        largest: strength; 0 if already the least that was tried spoils the answers.
        bounded: whether some strength that was tried was too much (else `largest` is only the end of the grid).
        confirmed: whether quality is kept at `largest` on the prompts that did not choose it.
    """

    outcomes: dict
    largest: float
    bounded: bool
    confirmed: bool


def sweep(bench, site, unit, alphas, limits, *, rounds, positions="all"):
    """Run a direction at each strength; then bisect between the last that keeps quality and the first that does not.

    The largest strength is chosen on every other prompt and confirmed on the rest. On the grid, quality counts as kept up to the
    first strength that spoils it, whatever comes after.

    Args:
        bench: model, prompts and the plain answers.
        site: where.
        unit: [D] what strength 1 adds.
        alphas: strengths of the grid, above 0.
        limits: what keeping quality means.
        rounds: bisections (of the logarithm, if both ends are above 0).
        positions: see `Steer`.
    """
    chooses = torch.arange(len(bench.prompts)) % 2 == 0

    def run(alpha, kl=False):
        return bench.run([Steer(site, alpha * unit, positions)], kl=kl)

    outcomes = {alpha: run(alpha, kl=True) for alpha in sorted(alphas)}
    good, bad = 0.0, None
    for alpha, outcome in outcomes.items():
        if not limits.kept(outcome, bench.plain, chooses):
            bad = alpha
            break
        good = alpha
    for _ in range(rounds if bad is not None else 0):
        middle = (good * bad) ** 0.5 if good else bad / 2
        outcomes[middle] = run(middle)
        good, bad = (middle, bad) if limits.kept(outcomes[middle], bench.plain, chooses) else (good, middle)
    best = outcomes[good] if good else bench.plain
    return Sweep(dict(sorted(outcomes.items())), good, bad is not None, limits.kept(best, bench.plain, ~chooses))
