"""Held-out text, run once through the unchanged model, for evaluators that compare other runs with it.

Shapes: B batch, T tokens, D width, N real tokens of all batches in row order, P positions whose next token is predicted,
V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reprbasis.errors import DataError
from reprbasis.interfaces.evaluator import EvaluationInputs
from reprbasis.interfaces.model import Edit, ForwardResult, ModelAdapter, Replace, Start
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.kits.heldout import UNSEEN, marked
from reprbasis.kits.tokenwise import Reference, predicts
from reprbasis.sites import Site

KINDS = (("image", "text"), ("thinking", "answer"))
"""Pairs of kinds of tokens."""


class HeldOut:
    """Whole held-out sequences, each forwarded as if alone.

    Holds 4 V bytes for each of the P positions and 4 D bytes for each token and site.

    Args:
        inputs: model, basis and activations.
        tokens: tokens at most; sequences that would exceed them are left out.
        sequence_tokens: each sequence is cut to this many.

    Attributes:
        batches, clean: what was run, and the unchanged model's values.
        references: its predictions at the `unseen` positions; group: [P] sequence of each.
        owner: [N] sequence; first: [N] position 0; special: [N] template tokens; body: [N] unseen and not position 0.
        kinds: parts of `body` that the model tells apart, by name (image and text, thinking and answer); empty if all are alike.
        predicting: [P] positions whose next token is of each of these kinds.
        tokens, groups, positions: numbers of tokens, sequences and P; original: mean loss of the unchanged model, nats.
    """

    def __init__(self, inputs: EvaluationInputs, *, tokens: int, sequence_tokens: int) -> None:
        self.inputs = inputs
        self.model: ModelAdapter[Any] = inputs.model
        sequences = marked(inputs, tokens=tokens, sequence_tokens=sequence_tokens)
        self.batches = [b.to(self.model.device) for b in TokenBatch.pack(
            sequences, length=max(512, *map(len, sequences)), rows=2, pad_id=self.model.pad_id)]
        self.tokens, self.groups = sum(map(len, sequences)), len(sequences)
        self.clean: list[ForwardResult] = []
        self.references: list[Reference] = []
        for batch in self.batches:
            clean = self.model.forward(batch, capture=self.model.info.sites)
            self.references.append(Reference(logits(clean), batch, batch.flag(UNSEEN)))
            self.clean.append(replace(clean, logits=None))  # as large as all sites together
        self.group = torch.cat([b.sequences[predicts(b) & b.flag(UNSEEN)] for b in self.batches])
        self.owner = torch.cat([b.sequences[b.mask] for b in self.batches])
        self.first = torch.cat([b.positions[b.mask] == 0 for b in self.batches])
        self.special = self.flag("special")
        self.body = self.flag(UNSEEN) & ~self.first
        kinds = kinds_of(self.flag)
        self.kinds = {name: where & self.body for name, where in kinds.items()}
        next_one = torch.cat([(predicts(b) & b.flag(UNSEEN))[b.mask] for b in self.batches]).nonzero().flatten() + 1
        self.predicting = {name: where[next_one] for name, where in kinds.items() if bool(where[next_one].any())}
        if not len(self.group):
            raise DataError("every held-out token that is used repeats the beginning of a training sequence",
                            do="raise sequence_tokens, or harvest more varied text")
        self.original = float(torch.cat([r.loss for r in self.references]).mean())
        self.positions = len(self.group)

    def flag(self, name: str) -> Tensor:
        """[N] bool."""
        return torch.cat([b.flag(name)[b.mask] for b in self.batches])

    def values(self, site: Site) -> list[Tensor]:
        """[B, T, D] of each batch."""
        return [c.sites[site] for c in self.clean]

    def real(self, values: Sequence[Tensor]) -> Tensor:
        """[N, D]: the rows of real tokens."""
        return torch.cat([v[b.mask] for v, b in zip(values, self.batches, strict=True)])

    def mean(self, site: Site) -> Tensor:
        """[D] mean of the site in training."""
        return self.inputs.activations.stats.mean[site].float().to(self.model.device)

    def continued(self, site: Site, replaced: Sequence[Tensor]) -> Iterator[ForwardResult]:
        """Continue the model from the replaced site, from the nearest stream value before it, batch by batch."""
        for clean, value in zip(self.clean, replaced, strict=True):
            edits: list[Edit] = []
            if _in_stream(site):
                start = Start(site, value)
            else:
                before = [s for s in self.model.info.sites[:self.model.info.depth(site)] if _in_stream(s)][-1]
                start, edits = Start(before, clean.sites[before]), [Replace(site, value)]
            yield self.model.forward(clean.batch, start=start, edits=edits)

    def compare(self, results: Iterable[ForwardResult]) -> list[tuple[Tensor, Tensor]]:
        """Loss and divergence from the unchanged model at the P positions, for each batch."""
        return [reference.compare(logits(r)) for reference, r in zip(self.references, results, strict=True)]


def kinds_of(flag: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """[N] where each kind of token is, of those kinds that do not stand alone; `flag` gives [N] bool for a name."""
    image, thinking, said = (flag(name) for name in ("image", "thinking", "assistant"))
    found = zip(KINDS, ((image, ~image), (thinking, said & ~thinking)), strict=True)
    return {name: where for names, pair in found if all(bool(w.any()) for w in pair)
            for name, where in zip(names, pair, strict=True)}


def logits(result: ForwardResult) -> Tensor:
    """The logits, which were asked for."""
    assert result.logits is not None
    return result.logits


def _in_stream(site: Site) -> bool:
    return site.name in ("embed", "resid")
