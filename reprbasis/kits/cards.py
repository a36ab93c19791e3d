"""What a person sees of a few chosen latents: where they are active on harvested text, and what they promote.

Shapes: K latents, C chosen ones, N rows, V vocabulary, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..interfaces.evaluator import FeatureCard
from ..interfaces.model import ModelAdapter
from ..runtime.activations import Activations
from ..runtime.basis import Basis
from ..sites import Site
from .circuits import Coder
from .contexts import distinct

Words = list[tuple[str, float]]
RANKED, ALIKE = 200, 2
"""Top tokens of a latent at a site among which distinct contexts are chosen; most contexts with the same token at the peak."""


def promoted(model: ModelAdapter[Any], basis: Basis, latents: Sequence[int], most: int) -> list[tuple[Words, Words]]:
    """Tokens with the largest and the smallest logit along the direction of each latent, through the unembedding.

    The direction is in the dictionary's units, so values compare within one latent; the mean over the vocabulary is taken off.

    Raises:
        CapabilityError: the decoder is not affine.
    """
    way_out = model.unembedding()
    weight = way_out.weight.float() * way_out.gain.float()
    # in the units of a site the direction is divided by that site's scale, which changes no ranking, so it is left out
    rows = basis.directions(basis.sites[0]) * basis.normaliser.scale[0]
    logits = rows[list(latents)].float() @ (weight - weight.mean(0)).T
    best, worst = logits.topk(most, dim=1), logits.topk(most, dim=1, largest=False)

    def words(values: Tensor, ids: Tensor) -> Words:
        return [(str(model.tokenizer.decode([int(i)])), float(v)) for v, i in zip(values, ids, strict=True)]

    return [(words(best.values[r], best.indices[r]), words(worst.values[r], worst.indices[r])) for r in range(len(latents))]


def cards(model: ModelAdapter[Any], basis: Basis, activations: Activations | None, latents: Mapping[int, Sequence[Site]], *,
          contexts: int = 6, window: int = 8, words: int = 8, tokens: int = 20_000) -> dict[int, FeatureCard]:
    """Cards of chosen latents, each read at the sites given with it.

    Args:
        model: gives tokenizer and unembedding.
        basis: with an affine decoder.
        activations: of its sites, to take contexts from; None: no contexts.
        latents: latent -> sites where it is looked at.
        contexts, window: contexts of each, and tokens shown on each side.
        words: promoted and suppressed tokens.
        tokens: training tokens read (repeated beginnings and position 0, the attention sink, are left out).

    Cost: tokens * 2 * D * C FLOPs at each site.
    """
    chosen = sorted(latents)
    said = promoted(model, basis, chosen, words) if chosen else []
    seen = {} if activations is None else _read(basis, activations, latents, tokens)
    out = {}
    for latent, (up, down) in zip(chosen, said, strict=True):
        top, rates = seen.get(latent, ([], {}))
        total = sum(t for _, t in rates.values()) or 1.0
        shown = [] if activations is None else distinct(activations, basis, model.tokenizer, latent,
                                                         ((at, site) for _, at, site in top), most=contexts, window=window)
        out[latent] = FeatureCard(
            latent, sum(r for r, _ in rates.values()) / max(len(rates), 1), top[0][0] if top else 0.0,
            {str(s): round(t / total, 5) for s, (_, t) in rates.items()}, shown, up, down)
    return out


def _read(basis: Basis, activations: Activations, latents: Mapping[int, Sequence[Site]],
          tokens: int) -> dict[int, tuple[list[tuple[float, int, Site]], dict[Site, tuple[float, float]]]]:
    """Latent -> its largest activations (value, row of the token table, site), and by site how often and how much it is on."""
    usable = activations.fresh()[:tokens]
    wanted: dict[Site, list[int]] = {}
    for latent, sites in latents.items():
        for site in sites:
            wanted.setdefault(site, []).append(latent)
    top: dict[int, list[tuple[float, int, Site]]] = {k: [] for k in latents}
    rates: dict[int, dict[Site, tuple[float, float]]] = {k: {} for k in latents}
    for site, mine in wanted.items():
        coder = Coder.of(basis, site, torch.tensor(mine))
        parts = [coder.encode(activations.take(site, rows)) for rows in torch.split(usable, 4096) if len(rows)]
        z = torch.cat(parts) if parts else torch.zeros(0, len(mine))
        for column, latent in enumerate(mine):
            best = z[:, column].topk(min(RANKED, len(z)))
            top[latent] += [(float(v), int(usable[i]), site) for v, i in zip(best.values, best.indices, strict=True) if v > 0]
            rates[latent][site] = float((z[:, column] > 0).double().mean()) if len(z) else 0.0, float(z[:, column].sum())
    return {k: (_varied(top[k], activations.table.shown), rates[k]) for k in latents}


def _varied(rows: list[tuple[float, int, Site]], shown: Tensor) -> list[tuple[float, int, Site]]:
    """Largest first, every row of the table once, and no token more than `ALIKE` times."""
    out: dict[int, tuple[float, int, Site]] = {}
    count: Counter[int] = Counter()
    for row in sorted(rows, key=lambda r: -r[0]):
        token = int(shown[row[1]])
        if row[1] not in out and count[token] < ALIKE:
            out[row[1]] = row
            count[token] += 1
    return list(out.values())
