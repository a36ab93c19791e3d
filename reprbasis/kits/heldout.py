"""Held-out text, run once: the vectors of chosen sites at its tokens, and what is known of each token.

Shapes: N tokens, D width of a site.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..interfaces.evaluator import EvaluationInputs
from ..interfaces.model import ModelAdapter
from ..interfaces.tokens import TokenBatch, TokenSequence
from ..sites import Site
from .tokenwise import predicts

UNSEEN = "unseen"
"""Flag of tokens whose text so far begins no training sequence, see `Activations.unseen`."""


def marked(inputs: EvaluationInputs, *, tokens: int, sequence_tokens: int) -> list[TokenSequence]:
    """Held-out sequences, each cut to its first `sequence_tokens`, up to `tokens` in all, new tokens flagged `UNSEEN`."""
    chosen: list[TokenSequence] = []
    for sequence in inputs.held_out():
        sequence = sequence.cut(sequence_tokens)
        if chosen and sum(len(s) for s in chosen) + len(sequence) > tokens:
            break
        chosen.append(sequence)
    return [replace(s, flags={**s.flags, UNSEEN: new})
            for s, new in zip(chosen, inputs.activations.unseen(chosen), strict=True)]


@dataclass(frozen=True)
class HeldOut:
    """Tokens of whole held-out sequences, each forwarded as if alone, row by row of the batches.

    Args:
        model: that was run.
        batches: what it was run on.
        rows: site -> [N, D].
        ids, following: [N] token, and the one after it (-1 where the sequence ends).
        group: [N] sequence; first: [N] position 0; fresh: [N] the text so far begins no training sequence; image: [N].
    """

    model: ModelAdapter[Any]
    batches: Sequence[TokenBatch]
    rows: Mapping[Site, Tensor]
    ids: Tensor
    following: Tensor
    group: Tensor
    first: Tensor
    fresh: Tensor
    image: Tensor

    @classmethod
    def run(cls, inputs: EvaluationInputs, sites: Sequence[Site], *, tokens: int, sequence_tokens: int) -> HeldOut:
        """Run up to so many tokens, of each sequence the first `sequence_tokens`.

        Raises:
            DataError: no token is new: every one repeats the beginning of a training sequence.
        """
        model, chosen = inputs.model, marked(inputs, tokens=tokens, sequence_tokens=sequence_tokens)
        batches = list(TokenBatch.pack(chosen, length=max(256, *map(len, chosen)), rows=2, pad_id=model.pad_id))
        found: dict[Site, list[Tensor]] = {s: [] for s in sites}
        for batch in batches:
            result = model.forward(batch.to(model.device), capture=sites, logits="none")
            for site in sites:
                found[site].append(result.sites[site].cpu()[batch.mask])

        def real(of: Callable[[TokenBatch], Tensor]) -> Tensor:
            return torch.cat([of(b)[b.mask] for b in batches])

        out = cls(model, batches, {s: torch.cat(v) for s, v in found.items()}, real(lambda b: b.ids),
                  real(lambda b: torch.where(predicts(b), b.ids.roll(-1, 1), -1)), real(lambda b: b.sequences),
                  real(lambda b: b.positions == 0), real(lambda b: b.flag(UNSEEN)), real(lambda b: b.flag("image")))
        if not bool((out.fresh & ~out.first).any()):
            raise DataError("every held-out token that is used repeats the beginning of a training sequence",
                            do="raise sequence_tokens, or harvest more varied text")
        return out

    @property
    def body(self) -> Tensor:
        """[N] tokens that are measured: new ones, without position 0."""
        return self.fresh & ~self.first
