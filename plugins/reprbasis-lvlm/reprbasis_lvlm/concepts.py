"""Latents that mean a concept wherever it occurs: in the pieces of an image and in words.

1. Image tokens that show an object get its label, from the boxes that the corpus tells; word tokens that spell a label get it.
   A concept is told from the others of its group alone: `red` from other colours, on coloured objects and colour words.
2. A token's score for a latent is the latent's activation, added up over the sites of the basis.
3. On training tokens, each concept gets the latent with the largest min(AUROC on image tokens, AUROC on words).
4. On held-out tokens, that latent's two areas are measured apart; intervals come from drawing whole sequences.

Conditions: `global`: the basis. `random`: as many random directions as there are latents, rectified, chosen in the same way: what
choosing the best of many gives. `shuffled`: the basis again, with labels dealt out anew to objects and words. `means`: no latent;
at each site the direction from the mean of the other labels to that of a label, on training tokens of both kinds (added up): what
is linearly there to be found. `..., by image` and `..., by word`: chosen on one kind of token alone, so that the other tells
whether the meaning carries over. Each kind alone is an easy task (a word is one vector at `embed`); the claim is in one latent
doing both.

Shapes: S sites, n labelled tokens, K latents, D width, L labels, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

import reprbasis
from reprbasis.errors import DataError
from reprbasis.interfaces.corpus import CorpusContext
from reprbasis.interfaces.evaluator import EvaluationInputs, Evaluator, FeatureCard, Figure, Findings, Measurement
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.kits.contexts import context
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .auroc import auroc, resampled
from .config import ConceptsConfig
from .labels import Labelled, patches, words

_KINDS = ("image", "word")
_Scores = dict[tuple[str, str], Tensor]  # (group, kind of token) -> [n, K]
_Truth = dict[tuple[str, str], Labelled]
_Contrasts = dict[tuple[str, str], dict[Site, Tensor]]


@dataclass(frozen=True)
class _Choice:
    """The latent chosen for a concept, and its areas on held-out tokens by kind of token."""

    label: str
    latent: int
    area: Mapping[str, float]
    drawn: Mapping[str, Tensor]


class Concepts(Evaluator[ConceptsConfig]):
    """See the module."""

    def evaluate(self, inputs: EvaluationInputs) -> Findings:
        """Areas of the chosen latents, for every concept and on average, and their cards.

        Raises:
            DataError: no group has two labels that occur both in the training and in the held-out tokens.
        """
        basis = inputs.basis.at(self.config.sites)
        regions = self._regions(inputs)
        spelled = [inputs.model.tokenizer.decode([i]) for i in range(inputs.model.info.vocab)]
        parts = [_first(s, self.config.tokens) for s in (inputs.activations.sequences("train"), inputs.held_out())]
        truths = [self._truth(p, regions, spelled) for p in parts]
        common = truths[0].keys() & truths[1].keys()
        truths = [{key: t[key] for key in t if key in common} for t in truths]
        if not common:
            raise DataError("no group of concepts has two labels both in the training and in the held-out tokens",
                            do="harvest more, name words of the text in `groups`, or name the corpus that knows the images")
        generator = torch.Generator().manual_seed(inputs.seed)
        directions = normalize(torch.randn(basis.d_dict, inputs.model.info.d_model, generator=generator), dim=1)
        both = [_scores(inputs, basis, directions, p, t) for p, t in zip(parts, truths, strict=True)]
        latents, random = zip(*both, strict=True)
        shuffled = [{key: _shuffled(found, generator) for key, found in t.items()} for t in truths]
        measurements: list[Measurement] = []
        chosen: dict[str, list[_Choice]] = {}
        for condition, scores, truth, by in (
                ("global", latents, truths, _KINDS), ("random", random, truths, _KINDS), ("shuffled", latents, shuffled, _KINDS),
                ("global, by image", latents, truths, ("image",)), ("random, by image", random, truths, ("image",)),
                ("global, by word", latents, truths, ("word",)), ("random, by word", random, truths, ("word",))):
            if len(by) == 1 and {kind for _, kind in common} != set(_KINDS):
                continue
            chosen[condition] = [c for group in self.config.groups for c in self._choose(group, scores, truth, by, inputs.seed)]
            measurements += self._measured(chosen[condition], condition, truth[1])
        contrasts = _contrasts(inputs, basis, parts[0], truths[0], self.config.groups)
        if {kind for _, kind in common} == set(_KINDS):
            for condition, by in (("means", _KINDS), ("means, by image", ("image",)), ("means, by word", ("word",))):
                along = _along(inputs, basis, contrasts, by, parts[1], truths[1])
                chosen[condition] = [c for group in self.config.groups for c in self._given(group, along, truths[1], inputs.seed)]
                measurements += self._measured(chosen[condition], condition, truths[1])
        counts = {kind: sum(len(t) for (_, k), t in truths[1].items() if k == kind) for kind in _KINDS}
        notes = [f"{len(chosen['global'])} concepts, told apart within their groups on {counts['image']} held-out image tokens "
                 f"and {counts['word']} held-out words, by latents chosen on training tokens; {basis.d_dict} latents at "
                 f"{len(basis.sites)} sites, activations added up over sites."]
        return Findings(measurements, _figures(chosen), self._cards(inputs, basis, chosen["global"]), notes)

    def _regions(self, inputs: EvaluationInputs) -> dict[str, Sequence[Mapping[str, Any]]]:
        if self.config.corpus is None:
            return {}
        corpus = reprbasis.registry().build(self.config.corpus)
        examples = corpus.examples(seed=inputs.seed, context=CorpusContext(inputs.model))
        return {e.key: e.meta["regions"] for e in examples if "regions" in e.meta}

    def _truth(self, sequences: Sequence[TokenSequence], regions: Mapping[str, Sequence[Mapping[str, Any]]],
               spelled: Sequence[str]) -> _Truth:
        found: _Truth = {}
        for group, labels in self.config.groups.items():
            found[group, "image"] = patches(sequences, regions, labels, self.config.share)
            found[group, "word"] = words(sequences, spelled, labels)
        return {key: labelled for key, labelled in found.items() if len(labelled.label.unique()) > 1}

    def _choose(self, group: str, scores: Sequence[_Scores], truth: Sequence[_Truth], by: Sequence[str],
                seed: int) -> Iterator[_Choice]:
        """Choose on the first part, measure on the second."""
        labels = self.config.groups[group]
        kinds = [kind for kind in _KINDS if (group, kind) in truth[0]]
        deciding = [kind for kind in kinds if kind in by]
        areas = {}
        for kind in deciding:
            areas[kind] = auroc(scores[0][group, kind], one_hot(truth[0][group, kind].label, len(labels)).bool())
        for index in range(len(labels)):
            held = {kind: truth[1][group, kind].label == index for kind in kinds}
            columns = [area[:, index] for area in areas.values()]
            if not columns or any(bool(c.isnan().all()) for c in columns) or any(h.all() or not h.any() for h in held.values()):
                continue
            latent = int(torch.stack(columns).amin(0).argmax())
            yield self._judged(group, index, latent, kinds, scores[1], truth[1], seed)

    def _given(self, group: str, scores: _Scores, truth: _Truth, seed: int) -> Iterator[_Choice]:
        """Each label with the score of its own number, where both sides of it occur."""
        kinds = [kind for kind in _KINDS if (group, kind) in truth]
        for index in range(len(self.config.groups[group])):
            held = [truth[group, kind].label == index for kind in kinds]
            if kinds and all(h.any() and not h.all() for h in held):
                yield self._judged(group, index, index, kinds, scores, truth, seed)

    def _judged(self, group: str, index: int, column: int, kinds: Sequence[str], scores: _Scores, truth: _Truth,
                seed: int) -> _Choice:
        """A score of a label on held-out tokens, by kind of token."""
        area, drawn = {}, {}
        for kind in kinds:
            values, held = scores[group, kind][:, column], truth[group, kind].label == index
            area[kind] = float(auroc(values[:, None], held[:, None]))
            drawn[kind] = resampled(values, held, truth[group, kind].sequence, self.config.resamples,
                                    torch.Generator().manual_seed(seed))
        return _Choice(self.config.groups[group][index], column, area, drawn)

    def _measured(self, chosen: Sequence[_Choice], condition: str, truth: _Truth) -> list[Measurement]:
        out = []
        for kind in _KINDS:
            own = [c for c in chosen if kind in c.area]
            n = sum(len(t) for (_, k), t in truth.items() if k == kind)
            if own:
                mean = sum(c.area[kind] for c in own) / len(own)
                out.append(_measurement(f"auroc_{kind}", mean, torch.stack([c.drawn[kind] for c in own]).mean(0), n, condition))
            for c in own:
                size = next(len(truth[g, kind]) for g, labels in self.config.groups.items()
                            if c.label in labels and (g, kind) in truth)
                out.append(_measurement(f"auroc_{kind} {c.label}", c.area[kind], c.drawn[kind], size, condition))
        return out

    def _cards(self, inputs: EvaluationInputs, basis: Basis, chosen: Sequence[_Choice]) -> list[FeatureCard]:
        """What the chosen latents respond to most among all training tokens, in images and in text."""
        latents = sorted({c.latent for c in chosen})
        table, activations = inputs.activations.table, inputs.activations
        best, where = torch.zeros(0, len(latents)), torch.zeros(0, len(latents), dtype=torch.long)
        total, count = torch.zeros(len(basis.sites), len(latents)), 0
        tokens = 0
        for shard, (start, stop) in enumerate(pairwise([0, *accumulate(activations.shards)])):
            if start >= self.config.tokens:
                break
            z = torch.stack([basis.encode(site, activations.read(site, shard))[:, latents].float().cpu() for site in basis.sites])
            z[:, table.positions[start:stop] == 0] = 0
            total, count, tokens = total + z.sum(1), count + (z > 0).sum((0, 1)), stop
            largest = z.max(0)
            best, where = torch.cat([best, largest.values]), torch.cat([where, largest.indices])
        image = table.flags.get("image", torch.zeros(len(table), dtype=torch.bool))[:tokens]
        cards = []
        for column, latent in enumerate(latents):
            if not int(count[column]):
                continue
            half = self.config.contexts // 2
            places = _distinct(best[:, column] * image, table.sequences, half)
            places += _distinct(best[:, column] * ~image, table.sequences, self.config.contexts - len(places))
            shown = [context(activations, basis, inputs.model.tokenizer, at, basis.sites[int(where[at, column])], latent)
                     for at in places]
            shown.sort(key=lambda c: -c.values[c.peak])
            share = total[:, column] / total[:, column].sum()
            notes = {f"auroc {kind} {c.label}": c.area[kind] for c in chosen if c.latent == latent for kind in c.area}
            cards.append(FeatureCard(latent, int(count[column]) / (tokens * len(basis.sites)), float(best[:, column].max()),
                                     {str(s): round(float(share[i]), 5) for i, s in enumerate(basis.sites) if share[i] > 5e-4},
                                     shown, notes=notes))
        return cards


def _first(sequences: Sequence[TokenSequence], tokens: int) -> list[TokenSequence]:
    """The first whole sequences with at most this many tokens, numbered anew."""
    kept = [s for s, total in zip(sequences, accumulate(map(len, sequences)), strict=True) if total <= tokens] or sequences[:1]
    return [replace(s, sequence=i) for i, s in enumerate(kept)]


def _rows(inputs: EvaluationInputs, basis: Basis, sequences: Sequence[TokenSequence],
          truth: _Truth) -> Iterator[tuple[tuple[str, str], Tensor, dict[Site, Tensor]]]:
    """Labelled tokens, a batch after the other: (group, kind), which of its tokens [m], and their values [m, D] at every site."""
    length = max(256, *map(len, sequences))
    for batch in TokenBatch.pack(sequences, length=length, rows=16, pad_id=inputs.model.pad_id):
        batch = batch.to(inputs.model.device)
        found = inputs.model.forward(batch, capture=basis.sites, stop_at=basis.sites[-1], logits="none")
        place = {(int(s), int(p)): (b, t) for b, t in batch.mask.nonzero().tolist()
                 for s, p in [(batch.sequences[b, t], batch.positions[b, t])]}
        for key, labelled in truth.items():
            pairs = zip(labelled.sequence.tolist(), labelled.token.tolist(), strict=True)
            here = [(i, *place[pair]) for i, pair in enumerate(pairs) if pair in place]
            if here:
                index, b, t = torch.tensor(here).T
                yield key, index, {site: found.sites[site][b, t].float().cpu() for site in basis.sites}


def _scores(inputs: EvaluationInputs, basis: Basis, directions: Tensor, sequences: Sequence[TokenSequence],
            truth: _Truth) -> tuple[_Scores, _Scores]:
    """Scores of the labelled tokens: of the latents, and of the random directions."""
    many = (basis.d_dict, len(directions))
    out: tuple[_Scores, _Scores] = tuple({key: torch.zeros(len(t), k) for key, t in truth.items()} for k in many)  # type: ignore
    for key, index, values in _rows(inputs, basis, sequences, truth):
        for site, x in values.items():
            out[0][key][index] += basis.encode(site, x).float()
            out[1][key][index] += torch.relu(basis.normaliser.apply(x, basis.index(site)) @ directions.T)
    return out


def _contrasts(inputs: EvaluationInputs, basis: Basis, sequences: Sequence[TokenSequence], truth: _Truth,
               groups: Mapping[str, Sequence[str]]) -> _Contrasts:
    """(group, kind) -> site -> [L, D] unit vectors: the mean of a label's tokens minus the mean of the others' means."""
    total = {key: {site: torch.zeros(len(groups[key[0]]), inputs.model.info.d_model) for site in basis.sites} for key in truth}
    for key, index, values in _rows(inputs, basis, sequences, truth):
        for site, x in values.items():
            total[key][site].index_add_(0, truth[key].label[index], basis.normaliser.apply(x, basis.index(site)))
    out: _Contrasts = {}
    for key, sites in total.items():
        count = torch.bincount(truth[key].label, minlength=len(groups[key[0]])).clamp_min(1)[:, None]
        means = {site: sums / count for site, sums in sites.items()}
        out[key] = {site: normalize(m - (m.sum(0) - m) / (len(m) - 1), dim=1) for site, m in means.items()}
    return out


def _along(inputs: EvaluationInputs, basis: Basis, contrasts: _Contrasts, by: Sequence[str], sequences: Sequence[TokenSequence],
           truth: _Truth) -> _Scores:
    """Scores [n, L] of the labelled tokens along each label's contrast, that of one kind of token or the sum of both."""
    out = {key: torch.zeros(len(t), len(next(iter(contrasts[key].values())))) for key, t in truth.items()}
    for key, index, values in _rows(inputs, basis, sequences, truth):
        for site, x in values.items():
            ways = [contrasts[key[0], kind][site] for kind in by if (key[0], kind) in contrasts]
            out[key][index] += basis.normaliser.apply(x, basis.index(site)) @ torch.stack(ways).sum(0).T
    return out


def _shuffled(found: Labelled, generator: torch.Generator) -> Labelled:
    """The same labels dealt out anew to the objects or words."""
    units, member = torch.unique(found.unit, return_inverse=True)
    own = torch.zeros(len(units), dtype=torch.long).scatter(0, member, found.label)
    return replace(found, label=own[torch.randperm(len(units), generator=generator)][member])


def _distinct(values: Tensor, sequences: Tensor, most: int) -> list[int]:
    """Places of the largest positive values, one of each sequence."""
    out: dict[int, int] = {}
    for at in values.argsort(descending=True, stable=True).tolist():
        if len(out) == most or values[at] <= 0:
            break
        out.setdefault(int(sequences[at]), at)
    return list(out.values())


def _measurement(name: str, value: float, drawn: Tensor, n: int, condition: str) -> Measurement:
    known = drawn[~drawn.isnan()]
    low, high = known.quantile(torch.tensor([0.025, 0.975], dtype=known.dtype)).tolist() if len(known) else (value, value)
    return Measurement(name, value, n, min(low, value), max(high, value), condition)


def _figures(chosen: Mapping[str, Sequence[_Choice]]) -> list[Figure]:
    kinds = [kind for kind in _KINDS if any(kind in c.area for c in chosen["global"])]
    names = [c.label for c in chosen["global"]]
    series = {}
    for condition in ("global", "random", "shuffled"):
        known = {c.label: c.area for c in chosen[condition]}
        for kind in kinds:
            series[f"{kind}, {condition}"] = [round(known.get(name, {}).get(kind, 0.5), 4) for name in names]
    return [Figure("bar", "Concepts across images and words",
                   "For each concept the area under the ROC curve, on held-out tokens, of one latent that was chosen on training "
                   "tokens: how well its activation tells the concept from the others of its group. 0.5 is chance. Random: the "
                   "best of as many random directions, chosen likewise. Shuffled: the labels dealt out anew.", series, names,
                   x_label="concept", y_label="AUROC")]
