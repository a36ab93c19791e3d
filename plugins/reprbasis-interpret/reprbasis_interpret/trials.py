"""What a judge is shown of a latent, and what it is asked.

Passages that explain and passages that test come from different sequences. Those where the latent is active are drawn from all
strata of strength, no two with the same tokens around the peak as long as there are others.

Shapes: W passages of w tokens, K latents.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch

MARK = 0.3
"""Tokens at least this share as active as the peak of their passage are marked."""


@dataclass(frozen=True)
class Trial:
    """One latent.

    Args:
        latent: index.
        shown, contrast: passages to explain it by, with all its active tokens marked; and passages where it is silent.
        members: the same as `shown` with the peak alone marked (ComSem shows these, and nothing else).
        asked: indices of the passages that have it, for the tests.
        tests: protocol -> (passages that have it, passages that have not).
    """

    latent: int
    shown: list
    contrast: list
    members: list
    asked: tuple
    tests: dict = field(default_factory=dict)


class Deck:
    """Draws trials from the passages of a text.

    Args:
        text: the passages.
        active: [W, w, K] activity.
        shown, tests: passages of each sort.
        seed: of all draws.
        decode: token id -> text.
    """

    def __init__(self, text, active, *, shown, tests, seed, decode):
        self.text, self.active, self.decode = text, active, decode
        self.shown, self.tests, self.seed = shown, tests, seed
        known = text.sequences.unique()
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
        self.testing = torch.isin(text.sequences, known[order[: len(order) // 2]])

    def eligible(self):
        """Latents with enough passages of every sort on both sides, [n] indices; and the number of latents that fire at all."""
        on = (self.active > 0).any(1)
        enough = torch.ones(on.shape[1], dtype=torch.bool)
        for half, need in ((~self.testing, self.shown), (self.testing, self.tests)):
            fired = on[half].sum(0)
            enough &= (fired >= need) & (int(half.sum()) - fired >= need)
        return enough.nonzero().flatten(), int(on.any(0).sum())

    def trials(self, latents):
        """The trials of these latents; negatives of ComSem come in part from the other latents."""
        drawn = [self._draw(k) for k in latents]
        for trial in drawn:
            trial.tests["comsem"] = (trial.tests["comsem"][0], self._strangers(trial, drawn))
        return drawn

    def _draw(self, latent):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + latent)
        size = self.active[:, :, latent]
        peak = size.amax(1)

        def some(where, count):
            found = where.nonzero().flatten()
            return found[torch.randperm(len(found), generator=generator)][:count].tolist()

        def passages(indices, marks):
            return [self.text.passage(i, marks(i), self.decode) for i in indices]

        def true(i):
            return (size[i] >= MARK * peak[i]).nonzero().flatten().tolist()

        def top(i):
            return [int(size[i].argmax())]

        def wrong(i):
            silent = (size[i] == 0).nonzero().flatten()
            return sorted(silent[torch.randperm(len(silent), generator=generator)][: len(true(i))].tolist())

        on = self._strata(latent, peak, ~self.testing, self.shown, generator)
        asked = self._strata(latent, peak, self.testing, self.tests, generator)
        off = [some((peak == 0) & half, count) for half, count in ((~self.testing, self.shown), (self.testing, self.tests))]
        both = [i for i in asked if bool((size[i] == 0).any())]
        tests = {"detection": (passages(asked, lambda i: ()), passages(off[1], lambda i: ())),
                 "fuzzing": (passages(both, true), passages(both, wrong)),
                 "comsem": (passages(asked, top), [])}
        return Trial(latent, passages(on, true), passages(off[0], lambda i: ()), passages(on, top), tuple(asked), tests)

    def _strata(self, latent, peak, half, count, generator):
        """Passages where it is active: one from each of `count` strata of strength, distinct around the peak if possible."""
        found = ((peak > 0) & half).nonzero().flatten()
        found = found[torch.randperm(len(found), generator=generator)].tolist()
        first = {}
        for i in found:
            at = int(self.active[i, :, latent].argmax())
            first.setdefault(tuple(self.text.ids[i, max(at - 2, 0):at + 1].tolist()), i)
        distinct = list(first.values()) if len(first) >= count else found
        order = sorted(distinct, key=lambda i: -float(peak[i]))
        edges = [round(j * len(order) / count) for j in range(count + 1)]
        return [order[int(torch.randint(a, b, (), generator=generator))] for a, b in pairwise(edges)]

    def _strangers(self, trial, drawn):
        """Single tokens where the latent is silent: half of them peaks of the other latents, the rest anywhere."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + trial.latent + 1)
        size = self.active[:, :, trial.latent]
        peaks = [(i, int(self.active[i, :, other.latent].argmax())) for other in drawn for i in other.asked]
        peaks = sorted({(i, at) for i, at in peaks if size[i, at] == 0})
        silent = ((size == 0) & self.testing[:, None]).nonzero()
        chosen = [peaks[int(j)] for j in torch.randperm(len(peaks), generator=generator)[:self.tests // 2]]
        rest = torch.randperm(len(silent), generator=generator)[:self.tests - len(chosen)]
        chosen += [tuple(silent[int(j)].tolist()) for j in rest]
        return [self.text.passage(i, (at,), self.decode) for i, at in chosen]
