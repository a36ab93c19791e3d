"""Is there an alignment? Held-out figures of a map, each beside what it would be if there were none.

Shapes: N training pairs, M held-out pairs, A and B widths of the two spaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import DataError
from ..interfaces.aligner import ENOUGH, Aligner, Alignment
from ..interfaces.evaluator import Figure, Findings, Measurement
from ..runtime.pairs import PairedRows
from ..sites import Site
from .intervals import Estimate, mean, ratio
from .similarity import centred_cosine, cka, mutual_knn, permuted_within, relative, retrieval

CONDITIONS: Final = {
    "map": "the map, fitted to the training pairs",
    "permuted": "control: fitted to the same rows, paired at random",
    "same-frequency": "control: fitted to rows paired at random among tokens of about the same frequency",
    "random": "control: a random (semi-)orthogonal map between the means",
    "identity": "baseline: no map but the means, for equal widths",
    "train": "the map on the very pairs that it was fitted to; a result of nothing",
}
MEASURES: Final = {
    "r2": "share of the held-out variance that is explained; negative: worse than the mean",
    "r2-dimension": "the same for each dimension on its own, median: no few large dimensions decide it",
    "cosine": "cosine to the truth, both centred with the training mean",
    "cosine-context": "the same with the mean of the row's token in training taken off: what is known beyond the token",
    "retrieval@1": "the right row is the nearest of all held-out rows (CSLS)",
    "retrieval@5": "it is among the nearest five",
}
ANCHORS: Final = 1024
"""Paired training rows to which held-out rows are compared for `relative@1`."""
LARGEST: Final = 4096
"""Held-out rows used for figures that compare all rows with all rows."""


def judge(aligner: Aligner[Any], train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], group: Tensor, *,
          tokens: Tensor | None = None, test_tokens: Tensor | None = None, anchors: tuple[Tensor, Tensor] | None = None,
          seed: int = 0, resamples: int = 1000) -> tuple[Alignment, list[Measurement]]:
    """Fit to the training pairs and measure on the others.

    Args:
        aligner: makes the map.
        train: [N, A], [N, B]; test: [M, A], [M, B]: rows of other texts.
        group: [M] text of each held-out row; intervals resample whole texts.
        tokens: [N] token ids of the training rows, for the control `same-frequency`; None leaves it out.
        test_tokens: [M] those of the held-out rows; with `tokens`, for `cosine-context`. The stream of a model that was never
            trained maps to that of a trained one as far as both tell which token they are at.
        anchors: fit to these paired rows instead (of both unembeddings, see `reprbasis.kits.anchors`); the means are still those
            of the training pairs, which unembedding rows do not know.
        seed: of the controls.
        resamples: bootstrap draws.

    Returns:
        The map (with the figures of condition `map` in its details), and a measurement for each of `MEASURES` and each of
        `CONDITIONS` that applies. `train` is there only if `train_scores` does not refuse it.

    Raises:
        DataError: fewer than 20 held-out rows, or the aligner understands unembedding rows only and gets none.
    """
    if len(test[0]) < 20:
        raise DataError(f"{len(test[0])} held-out pairs cannot judge an alignment", do="pair more text")
    if aligner.rows == "unembedding" and anchors is None:
        raise DataError("this map is fitted to unembedding rows, not to activations", do="give anchors (--anchors vocabulary)")
    generator = torch.Generator().manual_seed(seed)
    a, b = train
    mean_a, mean_b = a.mean(0), b.mean(0)

    def fitted(x: Tensor, y: Tensor) -> Alignment:
        return aligner.fit(x, y) if anchors is None else replace(aligner.fit(x, y), mean_a=mean_a, mean_b=mean_b)

    x, y = train if anchors is None else anchors
    found = fitted(x, y)
    maps = {"map": found, "permuted": fitted(x, y[torch.randperm(len(y), generator=generator)])}
    if tokens is not None and anchors is None:
        maps["same-frequency"] = fitted(a, b[permuted_within(deciles(tokens), generator)])
    wide = max(a.shape[1], b.shape[1])
    turn = torch.linalg.qr(torch.randn(wide, wide, generator=generator)).Q[:a.shape[1], :b.shape[1]].to(a)
    maps["random"] = Alignment(turn, turn.T, mean_a, mean_b)
    if a.shape[1] == b.shape[1]:
        eye = torch.eye(a.shape[1]).to(a)
        maps["identity"] = Alignment(eye, eye, mean_a, mean_b)
    out: list[Measurement] = []
    for condition, one in maps.items():
        for name, estimate in held_out(one, *test, group, mean_b, resamples=resamples).items():
            out.append(Measurement(name, estimate.value, estimate.n, estimate.low, estimate.high, condition))
        if tokens is not None and test_tokens is not None:
            rows, cosine = within_token(one, train, tokens, test, test_tokens)
            if len(rows) >= 20:
                found_in = mean(cosine, group[rows], resamples=resamples)
                out.append(Measurement("cosine-context", found_in.value, found_in.n, found_in.low, found_in.high, condition))
    if anchors is None and len(a) >= ENOUGH * wide:
        out += train_scores(found, a, b)
    details = {**found.details, "held_out": {m.name: m.value for m in out if m.condition == "map"}}
    return replace(found, details=details), out


def within_token(alignment: Alignment, train: tuple[Tensor, Tensor], tokens: Tensor, test: tuple[Tensor, Tensor],
                 test_tokens: Tensor, *, least: int = 5) -> tuple[Tensor, Tensor]:
    """Which held-out rows [m] have a token that occurs `least` times in training, and their cosines [m] beyond that token.

    The mean of the token over the training rows is taken off the prediction and off the truth.
    """
    known, place, counts = torch.unique(tokens, return_inverse=True, return_counts=True)
    at = torch.searchsorted(known, test_tokens).clamp_max(len(known) - 1)
    rows = torch.nonzero((known[at] == test_tokens) & (counts[at] >= least)).flatten()
    both = []
    for fitted, held in ((alignment.forward(train[0]), alignment.forward(test[0][rows])), (train[1], test[1][rows])):
        sums = fitted.new_zeros(len(known), fitted.shape[1]).index_add_(0, place, fitted)
        both.append(normalize(held - (sums / counts[:, None])[at[rows]], dim=-1))
    return rows, (both[0] * both[1]).sum(-1)


def train_scores(alignment: Alignment, a: Tensor, b: Tensor) -> list[Measurement]:
    """R² and cosine on the pairs [N, A], [N, B] that a map was fitted to; only to be laid beside held-out ones.

    Raises:
        DataError: fewer than `ENOUGH` pairs for each dimension. There the score is high whatever the spaces are: a rotation fits
            N <= D pairs of independent Gaussians perfectly.
    """
    wide = max(alignment.matrix.shape)
    if len(a) < ENOUGH * wide:
        raise DataError(f"a score on {len(a)} fitted pairs of {wide} dimensions says nothing: the map fits noise",
                        do=f"measure on held-out pairs, or fit {ENOUGH * wide} pairs or more")
    guess, middle = alignment.forward(a), b.mean(0)
    r2 = 1 - float((guess - b).square().sum() / (b - middle).square().sum())
    return [Measurement("r2", r2, len(a), condition="train"),
            Measurement("cosine", float(centred_cosine(guess, b, middle).mean()), len(a), condition="train")]


def held_out(alignment: Alignment, a: Tensor, b: Tensor, group: Tensor, middle: Tensor, *,
             resamples: int = 1000) -> dict[str, Estimate]:
    """The figures of `MEASURES` on held-out pairs; `middle` [B] is the mean of the second space in training."""
    guess = alignment.forward(a)
    few = slice(0, LARGEST)
    ranks = retrieval(guess[few] - middle, b[few] - middle)
    lost, spread = (guess - b).square(), (b - middle).square()
    return {"r2": ratio(lost.sum(-1), spread.sum(-1), group, resamples=resamples).complement(),
            "r2-dimension": _median_r2(lost, spread, group, resamples),
            "cosine": mean(centred_cosine(guess, b, middle), group, resamples=resamples),
            "retrieval@1": mean((ranks < 1).double(), group[few], resamples=resamples),
            "retrieval@5": mean((ranks < 5).double(), group[few], resamples=resamples)}


def _median_r2(lost: Tensor, spread: Tensor, group: Tensor, resamples: int) -> Estimate:
    """Median over dimensions of 1 - lost / spread ([M, B] each), resampling whole texts."""
    labels, member = torch.unique(group, return_inverse=True)
    top, bottom = (x.new_zeros(len(labels), x.shape[1], dtype=torch.float64).index_add_(0, member, x.double())
                   for x in (lost, spread))

    def median(weights: Tensor) -> Tensor:
        return (1 - (weights @ top) / (weights @ bottom).clamp_min(1e-300)).median(-1).values

    value = float(median(torch.ones(1, len(labels), dtype=torch.float64)))
    if len(labels) < 2:
        return Estimate(value, None, None, len(group), 1)
    draws = torch.randint(len(labels), (resamples, len(labels)), generator=torch.Generator().manual_seed(0))
    times = torch.zeros(resamples, len(labels), dtype=torch.float64)
    times.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
    low, high = median(times).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value, low, high, len(group), len(labels))


def without_map(a: Tensor, b: Tensor, group: Tensor, *, anchors: tuple[Tensor, Tensor] | None = None, k: int = 10, seed: int = 0,
                resamples: int = 1000) -> list[Measurement]:
    """Figures that need no map, beside the same with the pairing broken.

    `mutual-knn@k`, `cka` (unbiased, linear), and with anchors `relative@1`: how often a row is found in the other space by its
    cosines to the anchors alone (Moschella et al. 2023).

    Args:
        a: [M, A]; b: [M, B]; group: [M].
        anchors: [m, A], [m, B] paired rows of other texts.
        k: neighbours; chance is k / (M - 1).
    """
    a, b, group = a[:LARGEST], b[:LARGEST], group[:LARGEST]
    near = None
    if anchors is not None:
        near = [relative(x - x.mean(0), y - x.mean(0)) for x, y in ((a, anchors[0]), (b, anchors[1]))]
    a, b = a - a.mean(0), b - b.mean(0)
    order = torch.randperm(len(b), generator=torch.Generator().manual_seed(seed))
    out = []
    for condition, chosen in (("map", torch.arange(len(b))), ("permuted", order)):
        other = b[chosen]
        shared = mean(mutual_knn(a, other, k), group, resamples=resamples)
        out.append(Measurement(f"mutual-knn@{k}", shared.value, shared.n, shared.low, shared.high, condition))
        out.append(Measurement("cka", cka(normalize(a, dim=-1), normalize(other, dim=-1)), len(a), None, None, condition))
        if near is not None:
            found = mean((retrieval(near[0], near[1][chosen]) < 1).double(), group, resamples=resamples)
            out.append(Measurement("relative@1", found.value, found.n, found.low, found.high, condition))
    return out


@dataclass(frozen=True)
class Match:
    """How well every layer of one model maps to every layer of another.

    Args:
        a, b: the layers.
        cosine: [len(a), len(b)] mean centred cosine on validation texts.
    """

    a: tuple[Site, ...]
    b: tuple[Site, ...]
    cosine: Tensor

    def best(self) -> dict[Site, Site]:
        """For each layer of the first model the layer of the second that it maps to best.

        Chosen on validation texts, so it must be judged on others: the largest of many is too large by chance.
        """
        return {site: self.b[int(row.argmax())] for site, row in zip(self.a, self.cosine, strict=True)}


def match_layers(aligner: Aligner[Any], a: Mapping[Site, Tensor], b: Mapping[Site, Tensor], train: Tensor,
                 validation: Tensor) -> Match:
    """Fit a map between every two layers on training rows, and measure it on validation rows.

    Args:
        aligner: makes the maps.
        a: site -> [N, A]; b: site -> [N, B], paired.
        train, validation: [N] bool, of different texts; test rows are in neither.
    """
    table = torch.zeros(len(a), len(b))
    for i, x in enumerate(a.values()):
        for j, y in enumerate(b.values()):
            guess = aligner.fit(x[train], y[train]).forward(x[validation])
            table[i, j] = float(centred_cosine(guess, y[validation], y[train].mean(0)).mean())
    return Match(tuple(a), tuple(b), table)


def deciles(tokens: Tensor) -> Tensor:
    """[N] decile of how often each row's token occurs among the rows."""
    _, where, counts = torch.unique(tokens, return_inverse=True, return_counts=True)
    often = counts[where].double()
    edges = torch.quantile(often, torch.linspace(0.1, 0.9, 9, dtype=torch.float64))
    return torch.bucketize(often, edges)


def verdict(measurements: Sequence[Measurement]) -> str:
    """In words: is the map better than every control? `identity` is none: spaces that are alike unmapped are aligned, too."""
    best = {c: next((m for m in measurements if m.name == "cosine" and m.condition == c), None)
            for c in CONDITIONS if c not in ("identity", "train")}
    ours = best.pop("map")
    rivals = {c: m for c, m in best.items() if m is not None}
    if ours is None or not rivals:
        return "nothing to compare"
    name, rival = max(rivals.items(), key=lambda item: item[1].value)
    low = ours.value if ours.low is None else ours.low
    high = rival.value if rival.high is None else rival.high
    if low > high:
        return f"aligned: held-out cosine {ours.value:.3f} against {rival.value:.3f} of the best control ({name})"
    return f"no alignment shown: held-out cosine {ours.value:.3f}, the control '{name}' reaches {rival.value:.3f}"



@dataclass(frozen=True)
class Judged:
    """One map between two sites and what was found about it.

    Args:
        a, b: the sites.
        aligner: a name for the map.
        alignment: the map.
        measurements: those of `judge` and `without_map`.
    """

    a: Site
    b: Site
    aligner: str
    alignment: Alignment
    measurements: Sequence[Measurement]

    @property
    def verdict(self) -> str:
        """In words."""
        return verdict(self.measurements)


def judge_sites(aligners: Mapping[str, Aligner[Any]], rows: PairedRows, sites: Sequence[tuple[Site, Site]], *,
                anchors: tuple[Tensor, Tensor] | None = None, seed: int = 0, resamples: int = 1000) -> list[Judged]:
    """Fit every map to every two sites on all rows but those of `test`, and judge it on these.

    Args:
        aligners: name -> what makes the map.
        rows: of the sites.
        sites: of the first model and of the second.
        anchors: see `judge`.
        seed: of the controls.
        resamples: bootstrap draws.
    """
    out, held = [], rows.test
    for one, two in sites:
        a, b = rows.a[one], rows.b[two]
        few = torch.randperm(int((~held).sum()), generator=torch.Generator().manual_seed(seed))[:ANCHORS]
        free = without_map(a[held], b[held], rows.group[held], anchors=(a[~held][few], b[~held][few]), seed=seed,
                           resamples=resamples)
        for name, aligner in aligners.items():
            alignment, found = judge(aligner, (a[~held], b[~held]), (a[held], b[held]), rows.group[held],
                                     tokens=rows.tokens[~held], test_tokens=rows.tokens[held], anchors=anchors, seed=seed,
                                     resamples=resamples)
            out.append(Judged(one, two, name, alignment, [*found, *free]))
    return out


def findings(judged: Sequence[Judged], match: Match | None = None) -> dict[str, Findings]:
    """What is to be shown: a heading for the layers (if they were matched) and one for each aligner, with figures."""
    out: dict[str, Findings] = {}
    if match is not None:
        told = ", ".join(f"{a} to {b} ({float(match.cosine[i].max()):.3f})" for i, (a, b) in enumerate(match.best().items()))
        figure = Figure("heatmap", "Which layers correspond", "Mean centred cosine, on validation texts, of a map fitted between "
                        "every two layers. The best column of a row was chosen here and judged on other texts.",
                        {"cosine": match.cosine.tolist()}, [str(s) for s in match.b], [str(s) for s in match.a],
                        x_label="site of B", y_label="site of A")
        out["layers"] = Findings(figures=[figure], notes=[f"Best layer of B on validation texts (cosine): {told}."])
    for name in dict.fromkeys(j.aligner for j in judged):
        chosen = [j for j in judged if j.aligner == name]
        once = len({j.a for j in chosen}) == len(chosen)
        labels = [str(j.a) if once else f"{j.a}:{j.b}" for j in chosen]
        rows = [replace(m, site=label) for j, label in zip(chosen, labels, strict=True) for m in j.measurements]
        figures = []
        for measure in ("cosine", "r2", "retrieval@1"):
            values: dict[str, list[float]] = {}
            for j in chosen:
                for m in j.measurements:
                    if m.name == measure and m.condition != "train":
                        values.setdefault(m.condition, []).append(max(m.value, -1.0))
            whole = {c: v for c, v in values.items() if len(v) == len(chosen)}
            caption = f"{MEASURES[measure].capitalize()}; on texts the map was not fitted to. Values below -1 are drawn at -1."
            figures.append(Figure("bar" if len(chosen) == 1 else "line", f"{measure} by site", caption, whole, labels,
                                  x_label="site of A", y_label=measure))
        notes = [f"{j.a} to {j.b}: {j.verdict}." for j in chosen]
        notes += dict.fromkeys(f"Warning: {j.alignment.details['warning']}." for j in chosen if "warning" in j.alignment.details)
        if not any(f.measurements for f in out.values()):
            told = "; ".join(f"{c}: {words}" for c, words in CONDITIONS.items() if any(m.condition == c for m in rows))
            notes.append(f"Conditions: {told}.")
        out[name] = Findings(rows, figures, notes=notes)
    return out
