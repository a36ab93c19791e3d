"""Does what was moved to another model work there? Steering vectors and dictionaries, beside native ones and controls.

Shapes: B batch, T tokens, D width, K latents, N rows, P prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import torch
from torch import Tensor

from ..errors import DataError
from ..interfaces.aligner import Alignment
from ..interfaces.evaluator import Measurement
from ..interfaces.model import Edit, ModelAdapter, Replace, Start
from ..interfaces.tokens import Example, TokenBatch
from ..runtime.basis import Basis
from ..runtime.pairs import PairedRows
from ..sites import Site
from .intervals import Estimate, mean, ratio
from .tokenwise import Reference, predicts
from .transfer import transfer_basis

STEERED: Final = {
    "native": "made in the second model itself: what can be reached",
    "mapped": "made in the first model, moved through the alignment",
    "wrong-feature": "control: another direction of the first model, moved alike",
    "random": "control: several random directions",
    "unmapped": "control: the first model's direction as it stands (cut, or filled with zeros, to the width)",
}
STITCHED: Final = {
    "native": "a dictionary learned in the second model",
    "mapped": "the first model's dictionary, moved through the alignment",
    "wrong-feature": "control: the same with decoder rows exchanged among the latents",
    "random": "control: moved through a random (semi-)orthogonal map instead",
    "unmapped": "control: not moved, widths cut or filled with zeros",
    "mean": "control: every row replaced by the mean",
}


@dataclass(frozen=True)
class Add:
    """An `Edit` that adds a vector [D] to a site at every token, or at the last of each row."""

    site: Site
    vector: Tensor
    tokens: Literal["all", "last"] = "all"

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        new = x + self.vector.to(x)
        if self.tokens == "all":
            return new
        last = torch.arange(x.shape[1], device=x.device) == batch.last()[:, None]
        return torch.where(last[..., None], new, x)


@dataclass(frozen=True)
class BeyondFirst:
    """Another edit, at all tokens but position 0: an attention sink, which no pair of rows has shown to an aligner."""

    edit: Edit

    @property
    def site(self) -> Site:
        """That of the other edit."""
        return self.edit.site

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return torch.where((batch.positions > 0)[..., None], self.edit(x, batch), x)


@dataclass(frozen=True)
class Contrast:
    """Two sets of prompts, and the words by which it is seen which set a prompt is like.

    Even prompts make the direction, odd ones test it.

    Args:
        name: of the contrast.
        positive, negative: prompts.
        toward, away: next words that belong to each set; each is one token of every model used, or begins with one.
    """

    name: str
    positive: Sequence[str]
    negative: Sequence[str]
    toward: Sequence[str]
    away: Sequence[str]

    def direction(self, model: ModelAdapter[Any], site: Site) -> Tensor:
        """[D] mean of the positive prompts minus mean of the negative ones, at the last token of the even prompts."""
        means = [last_values(model, site, prompts[::2]).mean(0) for prompts in (self.positive, self.negative)]
        return means[0] - means[1]

    def effect(self, model: ModelAdapter[Any], edits: Sequence[Edit] = ()) -> Tensor:
        """[P] mean logit of `toward` minus mean logit of `away` after each odd negative prompt."""
        ids = [first_tokens(model, words) for words in (self.toward, self.away)]
        if both := set(ids[0]) & set(ids[1]):
            raise DataError(f"{self.name}: a word of both sides begins with the same token ({both})",
                            do="choose words that begin with different tokens")
        logits = model.forward(model.batch([Example(text=t) for t in self.negative[1::2]]), edits=edits, logits="last").logits
        assert logits is not None
        return (logits[:, 0, ids[0]].mean(-1) - logits[:, 0, ids[1]].mean(-1)).float().cpu()


def last_values(model: ModelAdapter[Any], site: Site, prompts: Sequence[str]) -> Tensor:
    """[P, D] values of a site at the last token of each prompt."""
    batch = model.batch([Example(text=t) for t in prompts])
    found = model.forward(batch, capture=[site], logits="none", stop_at=site)[site]
    return found[torch.arange(len(found)), batch.last()].float().cpu()


def first_tokens(model: ModelAdapter[Any], words: Sequence[str]) -> list[int]:
    """Id of the first token of each word that is not special, each once."""
    out = []
    for word, sequence in zip(words, model.tokenize([Example(text=w) for w in words]), strict=True):
        special = sequence.flags.get("special", torch.zeros(len(sequence), dtype=torch.bool))
        ids = sequence.ids[~special].tolist()
        if not ids:
            raise DataError(f"'{word}' gives no token", do="choose another word")
        out.append(int(ids[0]))
    return list(dict.fromkeys(out))


class Neutral:
    """Plain text by which it is measured how much an edit changes a model at large.

    Args:
        model: the model.
        texts: a few.
        site: where edits will be made; if it is in the stream (`embed`, `resid.L`), the model is run only from there on.
        max_tokens: of each text.
    """

    def __init__(self, model: ModelAdapter[Any], texts: Sequence[str], site: Site | None = None, *, max_tokens: int = 64) -> None:
        self.model, self.site = model, site if site is not None and site.name in ("embed", "resid") else None
        self.batch = model.batch([Example(text=t) for t in texts], max_tokens=max_tokens)
        self.clean = model.forward(self.batch, capture=[] if self.site is None else [self.site])
        assert self.clean.logits is not None
        self.reference = Reference(self.clean.logits, self.batch)
        self.group = self.batch.sequences[predicts(self.batch)].cpu()

    def compare(self, edits: Sequence[Edit]) -> tuple[Tensor, Tensor]:
        """Cross-entropy [P] and divergence from the unchanged model [P], nats."""
        start = None
        if self.site is not None and all(edit.site == self.site for edit in edits):
            value = self.clean[self.site]
            for edit in edits:
                value = edit(value, self.batch)
            start, edits = Start(self.site, value), []
        logits = self.model.forward(self.batch, edits=edits, start=start).logits
        assert logits is not None
        loss, kl = self.reference.compare(logits)
        return loss.cpu(), kl.cpu()

    def kl(self, edits: Sequence[Edit]) -> float:
        """Mean divergence, nats."""
        return float(self.compare(edits)[1].mean())


def fit_width(v: Tensor, width: int) -> Tensor:
    """[..., A] -> [..., width]: cut, or filled with zeros."""
    return torch.nn.functional.pad(v, (0, width - v.shape[-1]))


def steering_vectors(model_a: ModelAdapter[Any], model_b: ModelAdapter[Any], alignment: Alignment, site_a: Site, site_b: Site,
                     contrast: Contrast, wrong: Contrast | None = None, *, draws: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """A contrast's direction in the second model by every way of `STEERED`, [D], or [draws, D] for `random`.

    `wrong-feature` needs another contrast.
    """
    mine, native = contrast.direction(model_a, site_a), contrast.direction(model_b, site_b)
    other = torch.randn(draws, len(native), generator=torch.Generator().manual_seed(seed))
    out = {"native": native, "mapped": alignment.direction(mine)}
    if wrong is not None:
        out["wrong-feature"] = alignment.direction(wrong.direction(model_a, site_a))
    return out | {"random": other, "unmapped": fit_width(mine, len(native))}


def controls(basis: Basis, alignment: Alignment, site: Site, *, seed: int = 0) -> dict[str, Basis]:
    """A dictionary in the second model: `mapped` and the controls of `STITCHED` that need no training."""
    wide, (a, b) = max(alignment.matrix.shape), alignment.matrix.shape
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(wide, wide, generator=generator)).Q[:a, :b].to(alignment.matrix)
    eye = torch.eye(a, b).to(alignment.matrix)
    mapped = transfer_basis(basis, alignment, site)
    order = torch.randperm(basis.d_dict, generator=generator)
    state = dict(mapped.dictionary.state_dict())
    state["W_dec"] = state["W_dec"][order]
    means = alignment.mean_a, alignment.mean_b
    return {"mapped": mapped, "wrong-feature": mapped.with_dictionary(basis.learner.restore(b, state)),
            "random": transfer_basis(basis, Alignment(turn, turn.T, *means), site),
            "unmapped": transfer_basis(basis, Alignment(eye, eye.T, *means), site)}


def steering(model: ModelAdapter[Any], site: Site, contrast: Contrast, vectors: Mapping[str, Tensor], neutral: Neutral, *,
             strength: float = 1.0, resamples: int = 1000) -> list[Measurement]:
    """What directions do to the second model: the effect at matched norm, and at matched divergence on neutral text.

    Args:
        model: the second model.
        site: of it.
        contrast: the behaviour.
        vectors: condition (see `STEERED`) -> direction [D], or several [n, D]; `native` is there, and one.
        neutral: text for the divergence; edits act at all its tokens.
        strength: length of every direction, as a multiple of the native one's.
        resamples: bootstrap draws over prompts; for several directions over these.

    Returns:
        For each condition: `effect` (logits) and `ratio` (of the native effect) at the native length, `kl` there (nats), and
        `effect-at-kl`, `ratio-at-kl` at the length at which the divergence is that of `native` (missing if no
        length up to 128 times that reaches it).
    """
    native = vectors["native"]
    length = strength * float(native.norm())
    before = contrast.effect(model)
    out: list[Measurement] = []

    def edits(v: Tensor, size: float, tokens: Literal["all", "last"]) -> list[Edit]:
        return [Add(site, v * (size / float(v.norm().clamp_min(1e-30))), tokens)]

    def divergence(v: Tensor, size: float) -> float:
        return neutral.kl(edits(v, size, "all"))

    def add(condition: str, rows: Tensor, sizes: Sequence[float], suffix: str = "") -> None:
        values = torch.stack([contrast.effect(model, edits(v, s, "last")) for v, s in zip(rows, sizes, strict=True)]) - before
        unit = torch.arange(values.shape[1]) if len(rows) == 1 else torch.arange(len(rows))[:, None]
        group = unit.expand_as(values).flatten()
        for name, found, scale in (
                ("effect", mean(values.flatten(), group, resamples=resamples), "logits"),
                ("ratio", ratio(values.flatten(), reached.expand_as(values).flatten(), group, resamples=resamples), "")):
            out.append(Measurement(name + suffix, found.value, found.n, found.low, found.high, condition, str(site), scale))

    reached = contrast.effect(model, edits(native, length, "last")) - before
    target = divergence(native, length)
    for condition, given in vectors.items():
        rows = given if given.ndim == 2 else given[None]
        add(condition, rows, [length] * len(rows))
        kl = torch.stack([neutral.compare(edits(v, length, "all"))[1] for v in rows])
        found = mean(kl.flatten(), neutral.group.expand_as(kl).flatten(), resamples=resamples)
        out.append(Measurement("kl", found.value, found.n, found.low, found.high, condition, str(site), "nats"))
        sizes = [length if condition == "native" else solve(partial(divergence, v), target, length) for v in rows]
        if all(s is not None for s in sizes):
            add(condition, rows, [s for s in sizes if s is not None], "-at-kl")
    return out


def solve(function: Callable[[float], float], target: float, start: float, *, tolerance: float = 0.02,
          steps: int = 12) -> float | None:
    """The length at which a rising function reaches `target`, within `tolerance` of it, by secants on a double logarithmic scale.

    A divergence grows with the square of a small length, so that a few steps are enough. None: not reached within `steps`, or
    beyond 128 times the start.
    """
    size, slope, last = start, 2.0, None
    for _ in range(steps):
        value = max(function(size), 1e-30)
        if abs(value / target - 1) <= tolerance:
            return size
        if last is not None and last[0] != size:
            slope = min(max(math.log(value / last[1]) / math.log(size / last[0]), 0.5), 6.0)
        last = (size, value)
        size *= min(max((target / value) ** (1 / slope), 1 / 16), 16.0)
        if size > 128 * start:
            return None
    return None


def stitched(model: ModelAdapter[Any], bases: Mapping[str, Basis], rows: Tensor, group: Tensor, neutral: Neutral,
             middle: Tensor, *, resamples: int = 1000) -> list[Measurement]:
    """What dictionaries explain of a site of the second model, and what it loses when it sees only that (beyond position 0).

    Args:
        model: the second model.
        bases: condition (see `STITCHED`) -> basis of one site of it, the same for all.
        rows: [N, D] held-out values of the site; group: [N] text of each.
        neutral: text for the cross-entropy.
        middle: [D] mean of the site in training.
        resamples: bootstrap draws over texts.

    Returns:
        For each condition `fvu` and `l0`, `ce-increase` (nats) and `ce-recovered` (1: none lost, 0: as bad as the mean).
    """
    (site,) = {s for basis in bases.values() for s in basis.sites}
    out: list[Measurement] = []

    def add(name: str, found: Estimate, condition: str, unit: str = "") -> None:
        out.append(Measurement(name, found.value, found.n, found.low, found.high, condition, str(site), unit))

    spread = (rows - middle).square().sum(-1)
    ablated = neutral.compare([BeyondFirst(Replace(site, middle))])[0] - neutral.reference.loss.cpu()
    add("ce-increase", mean(ablated, neutral.group, resamples=resamples), "mean", "nats")
    for condition, basis in bases.items():
        z = basis.encode(site, rows)
        lost = (basis.decode(site, z).float() - rows).square().sum(-1)
        add("fvu", ratio(lost, spread, group, resamples=resamples), condition)
        add("l0", mean((z != 0).sum(-1).double(), group, resamples=resamples), condition, "latents")
        more = neutral.compare([BeyondFirst(e) for e in basis.splice(error="none")])[0] - neutral.reference.loss.cpu()
        add("ce-increase", mean(more, neutral.group, resamples=resamples), condition, "nats")
        add("ce-recovered", ratio(more, ablated, neutral.group, resamples=resamples).complement(), condition)
    return out


def table_agreement(native: Tensor, guesses: Mapping[str, Tensor], *, resamples: int = 1000, seed: int = 0) -> list[Measurement]:
    """Rank correlation of a moved table with the second model's own, with 95 % bootstrap intervals over entries.

    Args:
        native: [J] the second model's own numbers.
        guesses: condition (`mapped`, `wrong-feature`, `random`, `unmapped`) -> [J].
        resamples: bootstrap draws.
        seed: of the draws.
    """
    draws = torch.randint(len(native), (resamples, len(native)), generator=torch.Generator().manual_seed(seed))
    draws, out = torch.cat([torch.arange(len(native))[None], draws]), []
    for condition, guess in guesses.items():
        value, *other = rank_correlation(native[draws], guess[draws]).tolist()
        low, high = torch.tensor(other).quantile(torch.tensor([0.025, 0.975])).tolist()
        out.append(Measurement("spearman", value, len(native), low, high, condition))
    return out


def rank_correlation(x: Tensor, y: Tensor) -> Tensor:
    """[..., n], [..., n] -> [...] Spearman's; ties share their mean rank; 0 where all are tied."""
    def ranks(v: Tensor) -> Tensor:
        below = torch.searchsorted(v.sort(-1).values, v, right=False) + torch.searchsorted(v.sort(-1).values, v, right=True)
        return below.double() - v.shape[-1]

    one, two = ranks(x.contiguous()), ranks(y.contiguous())
    found: Tensor = torch.linalg.vecdot(one, two) / (one.norm(dim=-1) * two.norm(dim=-1)).clamp_min(1e-12)
    return found


def same_features(basis_a: Basis, basis_b: Basis, rows: PairedRows, *, seed: int = 0) -> list[Measurement]:
    """Do moved latents fire on the same tokens? Correlation of each latent's codes in both models over held-out pairs.

    Args:
        basis_a: one site of the first model; basis_b: the moved one.
        rows: paired rows; those of `test` are used.

    Returns:
        `code-correlation`, the mean over latents that fire in the first model, weighted by how often, and `latents`, how many
        these are; condition `mapped`, and `permuted`: against another latent's codes. Interval: bootstrap over latents.
    """
    a, b = (rows.a[basis_a.sites[0]][rows.test], rows.b[basis_b.sites[0]][rows.test])
    one, two = basis_a.encode(basis_a.sites[0], a), basis_b.encode(basis_b.sites[0], b)
    alive = (one != 0).sum(0) >= 5
    if not bool(alive.any()):
        raise DataError("no latent fires five times on the held-out pairs", do="pair more text")
    one, two = one[:, alive].double(), two[:, alive].double()
    share = (one != 0).double().mean(0)
    order = torch.randperm(one.shape[1], generator=torch.Generator().manual_seed(seed))
    out, site = [], str(basis_b.sites[0])
    for condition, other in (("mapped", two), ("permuted", two[:, order])):
        x, y = one - one.mean(0), other - other.mean(0)
        r = (x * y).sum(0) / (x.norm(dim=0) * y.norm(dim=0)).clamp_min(1e-12)
        found = ratio(share * r, share, torch.arange(len(r)))
        out.append(Measurement("code-correlation", found.value, found.n, found.low, found.high, condition, site))
    return [*out, Measurement("latents", float(alive.sum()), len(a), condition="mapped", site=site, unit="latents")]
