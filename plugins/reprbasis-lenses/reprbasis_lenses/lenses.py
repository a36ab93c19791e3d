"""The lenses. All but `logit` move a site's vector to where the last site's vectors are, by an affine map, and read it there.

    logit        x                                   nothing is learned (nostalgebraist 2020)
    contrastive  m_L + (s_L / s) (x - m)             what sets this vector apart from the site's mean, as if at the last site
    ridge        least squares from x to x_L         closed form
    tuned        least KL of the reading             trained, starting at the identity (Belrose et al. 2023)

m, s: mean and spread of the site over training tokens; index L: the last site of the stream. At `final` and at the last site all
of them are the model's own way out.

Shapes: D residual width, V vocabulary, N training tokens, K directions, B tokens of a step, M of the vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from reprbasis.errors import DataError, ShapeError, SiteError
from reprbasis.interfaces.base import C
from reprbasis.interfaces.lens import Lens, LensFit
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.reporter import Progress, Silent
from reprbasis.kits.components import at_unit_rms, read
from reprbasis.kits.moments import PairMoments
from reprbasis.runtime.activations import Activations
from reprbasis.runtime.products import linear
from reprbasis.sites import Site

from .config import ContrastiveConfig, LogitConfig, RidgeConfig, TunedConfig

FINAL = Site("final")
BLOCK = 1024
"""Rows whose logits are held at once."""


def last_site(model: ModelAdapter[Any]) -> Site:
    """The last site of the stream, which the final norm reads."""
    return Site("resid", model.info.n_layers - 1)


def way_out(model: ModelAdapter[Any], x: Tensor, site: Site, *, norm: bool = True) -> Tensor:
    """[..., D] -> [..., V] through the model's own final norm (which `final` has behind it) and unembedding."""
    out = model.unembedding()
    return linear(out.norm(x) if norm and site != FINAL else x, out.weight, out.bias)


def directions_out(model: ModelAdapter[Any], rows: Tensor, site: Site, *, norm: bool = True) -> Tensor:
    """Directions [K, D] -> [K, V], each at root mean square 1, through the linear part of the way out, centred over V."""
    out = model.unembedding()
    logits = (read(out.norm, rows) if norm and site != FINAL else at_unit_rms(rows)) @ out.weight.T
    return logits - logits.mean(-1, keepdim=True)


class LogitLens(Lens[LogitConfig]):
    """Every site is read as if it were the last one."""

    def read(self, model: ModelAdapter[Any], x: Tensor, site: Site) -> Tensor:
        """[..., D] at `site` -> [..., V] logits."""
        return way_out(model, x, site, norm=self.config.norm)

    def read_directions(self, model: ModelAdapter[Any], rows: Tensor, site: Site) -> Tensor:
        """[K, D] -> [K, V], centred."""
        return directions_out(model, rows, site, norm=self.config.norm)


class AffineLens(Lens[C]):
    """Reads `x @ matrix + bias` as if it were at the last site. Values: `SITE/matrix` [D, D] or [] (a scale), `SITE/bias` [D]."""

    values: Mapping[str, Tensor] = {}

    def restore(self, fit: LensFit) -> Self:
        """This lens with the maps of `fit`."""
        out = copy.copy(self)
        out.values = dict(fit.values)
        return out

    def map(self, site: Site, x: Tensor) -> tuple[Tensor, Tensor]:
        """Matrix (or scale) and bias of a site, like `x`.

        Raises:
            SiteError: the lens has not learned to read it.
        """
        try:
            return self.values[f"{site}/matrix"].to(x), self.values[f"{site}/bias"].to(x)
        except KeyError:
            known = ", ".join(name.removesuffix("/bias") for name in self.values if name.endswith("/bias"))
            raise SiteError(f"this lens has not learned to read '{site}'",
                            do=f"it reads {known}" if known else "fit it first, or load a fit with lens.restore") from None

    def read(self, model: ModelAdapter[Any], x: Tensor, site: Site) -> Tensor:
        """[..., D] at `site` -> [..., V] logits."""
        if site not in (FINAL, last_site(model)):
            matrix, bias = self.map(site, x)
            x = (x @ matrix if matrix.ndim else x * matrix) + bias
        return way_out(model, x, site)

    def read_directions(self, model: ModelAdapter[Any], rows: Tensor, site: Site) -> Tensor:
        """[K, D] -> [K, V], centred; the bias stays out."""
        if site not in (FINAL, last_site(model)):
            matrix, _ = self.map(site, rows)
            rows = rows @ matrix if matrix.ndim else rows * matrix
        return directions_out(model, rows, site)


def to_learn(model: ModelAdapter[Any], activations: Activations, sites: Sequence[Site]) -> list[Site]:
    """Those of the sites that need a map.

    Raises:
        SiteError: one of them, or the last site of the stream, was not harvested.
        ShapeError: one has another width than the stream.
    """
    last = last_site(model)
    for site in (*sites, last):
        if site not in activations.sites:
            raise SiteError(f"site '{site}' was not harvested", do="harvest the sites to be read and the last site of the stream")
        if model.info.widths[site] != model.info.d_model:
            raise ShapeError(f"site '{site}' is {model.info.widths[site]} wide, the stream {model.info.d_model}",
                             do="leave it out")
    return [s for s in sites if s not in (FINAL, last)]


def training_rows(activations: Activations, most: int, seed: int) -> Tensor:
    """[N] rows of the token table: at most so many, drawn from those that count (see `Activations.fresh`), in order.

    Raises:
        DataError: there are fewer than 16.
    """
    fresh = activations.fresh()
    if len(fresh) < 16:
        raise DataError(f"{len(fresh)} training tokens cannot teach a lens", do="harvest more")
    order = torch.randperm(len(fresh), generator=torch.Generator().manual_seed(seed))[:most]
    return fresh[order].sort().values


class ContrastiveLens(AffineLens[ContrastiveConfig]):
    """What sets a vector apart from its site's mean, seen as a deviation from the mean of the last site.

    It shares nothing but means and spreads with the last site, so what it reads is in the vector itself; and the constant that
    makes every token of a site read alike (the mean, outlier dimensions) is gone.
    """

    def fit(self, model: ModelAdapter[Any], activations: Activations, sites: Sequence[Site], *, seed: int = 0,
            progress: Progress | None = None) -> LensFit:
        """Means and spreads as harvested."""
        stats, last, values = activations.stats, last_site(model), {}
        for site in to_learn(model, activations, sites):
            ratio = (stats.variance(last) / max(stats.variance(site), 1e-12)) ** 0.5 if self.config.rescale else 1.0
            values[f"{site}/matrix"] = torch.tensor(ratio)
            values[f"{site}/bias"] = (stats.mean[last].double() - ratio * stats.mean[site].double()).float()
        return LensFit(values)


class RidgeLens(AffineLens[RidgeConfig]):
    """The affine map that best predicts the last site's vector, in closed form."""

    def fit(self, model: ModelAdapter[Any], activations: Activations, sites: Sequence[Site], *, seed: int = 0,
            progress: Progress | None = None) -> LensFit:
        """Least squares in float64; the penalty is chosen on a fifth of the training texts, then all are used."""
        rows = training_rows(activations, self.config.rows, seed)
        apart = activations.table.sequences[rows] % 5 == 4
        y, values, chosen = activations.take(last_site(model), rows), {}, {}
        learned = to_learn(model, activations, sites)
        with (progress or Silent()).task("ridge lens", total=len(learned), unit="sites") as task:
            for done, site in enumerate(learned):
                x = activations.take(site, rows)
                parts = [PairMoments.of(zip(x[w].split(4096), y[w].split(4096), strict=True)) if bool(w.any()) else None
                         for w in (~apart, apart)]
                matrix, bias, penalty = ridge([p for p in parts if p is not None], self.config.penalties)
                values[f"{site}/matrix"], values[f"{site}/bias"] = matrix.float().contiguous(), bias.float()
                chosen[str(site)] = penalty
                task.update(done + 1)
        return LensFit(values, {"penalty": chosen, "rows": len(rows)})


def ridge(parts: Sequence[PairMoments], penalties: Sequence[float]) -> tuple[Tensor, Tensor, float]:
    """Matrix [D, D], bias [D] and penalty of `y = x @ matrix + bias`; penalties fit the first part, the second judges them."""
    def solve(moments: PairMoments, penalty: float) -> Tensor:
        unit = moments.aa.trace() / len(moments.aa)
        return torch.linalg.solve(moments.aa + penalty * unit * torch.eye(len(moments.aa)).to(unit), moments.ab)

    best = penalties[0]
    if len(parts) > 1 and len(penalties) > 1:
        first = parts[0].centred()
        best = min(penalties, key=lambda p: parts[1].error(solve(first, p), first.mean_a, first.mean_b))
    both = (parts[0] + parts[1] if len(parts) > 1 else parts[0]).centred()
    matrix = solve(both, best)
    return matrix, both.mean_b - both.mean_a @ matrix, best


@dataclass(frozen=True)
class Goal:
    """What the model says at the training tokens, to be matched.

    Args:
        last: [N, D] vectors at the last site.
        total: [N] log-sum-exp of the model's logits there.
        often: [M / 2] the tokens with the most probability in all, in order; rest: all others.
    """

    model: ModelAdapter[Any]
    last: Tensor
    total: Tensor
    often: Tensor
    rest: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: ModelAdapter[Any], last: Tensor, vocabulary: int | None) -> Goal:
        """Cost: 2 N D V FLOPs."""
        total, mass = [], torch.zeros(model.info.vocab)
        for part in last.split(BLOCK):
            logits = way_out(model, part, last_site(model)).float()
            total.append(logits.logsumexp(-1))
            mass += (logits - total[-1][:, None]).exp_().sum(0).cpu()
        known = model.info.vocab if vocabulary is None or vocabulary >= model.info.vocab else vocabulary // 2
        order = mass.argsort(descending=True, stable=True)
        return cls(model, last, torch.cat(total), order[:known], order[known:])

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """[M] tokens and [M] log weights: the frequent ones, and as many of the rest, each standing for several."""
        if not len(self.rest):
            return self.often, torch.zeros(len(self.often))
        some = self.rest[torch.randint(len(self.rest), (len(self.often),), generator=generator)]
        up = torch.tensor(len(self.rest) / len(some)).log()
        return torch.cat([self.often, some]), torch.cat([torch.zeros(len(self.often)), up.expand(len(some))])

    def divergence(self, rows: Tensor, guess: Tensor, tokens: Tensor, weight: Tensor) -> Tensor:
        """Mean KL(model || reading) in nats of `guess` [B, D] at training tokens `rows` [B], estimated on `tokens`."""
        out = self.model.unembedding()
        matrix, bias = out.weight[tokens], None if out.bias is None else out.bias[tokens]
        with torch.no_grad():
            log_p = linear(out.norm(self.last[rows]), matrix, bias).float() - self.total[rows, None]
            p = (log_p + weight).exp()
        logits = linear(out.norm(guess), matrix, bias).float()
        return ((p * (log_p - logits)).sum(-1) + p.sum(-1) * (logits + weight).logsumexp(-1)).mean()


class TunedLens(AffineLens[TunedConfig]):
    """An affine map per site, trained so that its reading diverges least from what the model says in the end.

    Parameters are in units where both ends have mean square 1: `y = x + s_L ((x - m) / s @ A + b)`, A = 0 and b = 0 at the start.
    Cost of a step: 8 B D M FLOPs.
    """

    def fit(self, model: ModelAdapter[Any], activations: Activations, sites: Sequence[Site], *, seed: int = 0,
            progress: Progress | None = None) -> LensFit:
        """Train every site on the same tokens; `details["history"]` has the divergence on each tenth of the way."""
        rows = training_rows(activations, self.config.rows, seed)
        learned = to_learn(model, activations, sites)
        start = _start(self.config, model, activations, learned, seed)
        goal = Goal.of(model, activations.take(last_site(model), rows).to(model.device, torch.float32), self.config.vocabulary)
        values, history = {}, {}
        with (progress or Silent()).task("tuned lens", total=len(learned), unit="sites") as task:
            for done, site in enumerate(learned):
                x = activations.take(site, rows).to(model.device, torch.float32)
                matrix, bias, curve = train(goal, x, self.config, torch.Generator().manual_seed(seed), start.get(site))
                values[f"{site}/matrix"], values[f"{site}/bias"] = matrix.cpu().contiguous(), bias.cpu()
                history[str(site)] = curve
                task.update(done + 1, kl=curve[-1])
        return LensFit(values, {"history": history, "rows": len(rows)})


def _start(config: TunedConfig, model: ModelAdapter[Any], activations: Activations, sites: Sequence[Site],
           seed: int) -> dict[Site, tuple[Tensor, Tensor]]:
    if config.start == "identity":
        return {}
    found = RidgeLens(RidgeConfig()).fit(model, activations, sites, seed=seed).values
    return {s: (found[f"{s}/matrix"].to(model.device), found[f"{s}/bias"].to(model.device)) for s in sites}


def train(goal: Goal, x: Tensor, config: TunedConfig, generator: torch.Generator,
          start: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, list[float]]:
    """Matrix [D, D], bias [D] and ten points of the training curve (mean KL in nats) for the rows x [N, D] of one site."""
    d = x.shape[1]
    base, shift = (torch.eye(d).to(x), x.new_zeros(d)) if start is None else start
    mean, size = x.mean(0), float(goal.last.square().mean().sqrt())
    unit = (x - mean) / float((x - mean).square().mean().sqrt().clamp_min(1e-12))
    a, b = torch.zeros(d, d).to(x).requires_grad_(), x.new_zeros(d).requires_grad_()
    optimiser = torch.optim.Adam([a, b], lr=config.lr)
    seen: list[float] = []
    for step, rows in enumerate(_batches(len(x), config, generator)):
        tokens, weight = (t.to(x.device) for t in goal.draw(generator))
        with torch.enable_grad():
            guess = x[rows] @ base + shift + size * (unit[rows] @ a + b)
            loss = goal.divergence(rows, guess, tokens, weight)
        a.grad, b.grad = torch.autograd.grad(loss, [a, b])
        optimiser.param_groups[0]["lr"] = config.lr * (1 - step / config.steps)
        optimiser.step()
        seen.append(float(loss.detach()))
    scale = size / float((x - mean).square().mean().sqrt().clamp_min(1e-12))
    a, b = a.detach(), b.detach()
    points = [seen[i * len(seen) // 10:max((i + 1) * len(seen) // 10, i * len(seen) // 10 + 1)] for i in range(10)]
    return base + scale * a, shift + size * b - scale * (mean @ a), [sum(p) / len(p) for p in points]


def _batches(n: int, config: TunedConfig, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of each step; every token is met once before any is met again."""
    order = torch.empty(0, dtype=torch.long)
    for _ in range(config.steps):
        while len(order) < min(config.batch, n):
            order = torch.cat([order, torch.randperm(n, generator=generator)])
        rows, order = order[:config.batch], order[config.batch:]
        yield rows
