"""Do the layers of a model share a manifold? Four ways to ask, each beside what would be seen if they did not (or had to).

1. Subspaces. `captured@d`: share of the variance d sites away that lies in the k principal directions of a site (found on
   training tokens, measured on held-out ones). Conditions: `other layer`; `own`, the site's own directions: the most that k hold;
   `pooled`, one subspace for all sites, which is also what layers get when their labels are shuffled; `haar`, random subspaces;
   `written between`: only what was added to the stream between the two sites, which leaves out what was merely carried along.
2. Latents. `explained@d`: share of the variance of a site that its reconstruction explains when only those latents may be used
   that have the most energy d steps of `every` sites away. Conditions: `other layer`; `own`; `random`, as many other latents that
   are alive; `all`; `untrained, other layer` and `untrained, own`: the dictionary before training.
3. The same latent at the same token. `stays@d`: share of the latents active at a site that are active d sites away. Conditions:
   `same token`; `other token`: the later site at another token, so that what stays is what is usually on (layers shuffled against
   each other token by token); `untrained`: the dictionary before training, same token: a stream that carries its vectors along
   lets any dictionary see them again. `spread_token`: variance of the site index where one latent is active at one token, over
   that of activation spread evenly; `spread`: the same of one latent over all tokens (Lawson et al. 2025). Conditions: `global`,
   `shuffled` (tokens of each site permuted), `untrained`.
4. Transport. `carried@d`: take a latent away at one token of a site, run on, and read it d sites later: share of its activation
   there that is gone. Conditions: `feature`; `identity`: the same if nothing in between had reacted (the vector itself taken away
   at the later site); `other feature`: another latent's direction of the same length taken away instead.

All sites are seen through the basis's normaliser: mean 0 and mean square 1 each. Tokens: held-out ones whose text so far begins
no training sequence, without position 0.

Shapes: L sites, N tokens, D width, K latents, k dimensions, B rows, T tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reprbasis.errors import DataError
from reprbasis.interfaces.evaluator import EvaluationInputs, Evaluator, Figure, Findings, Measurement
from reprbasis.interfaces.model import ModelAdapter, Start
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.kits.controls import untrained
from reprbasis.kits.heldout import HeldOut
from reprbasis.kits.intervals import Estimate, ratio
from reprbasis.kits.subspaces import covariance, draws, principal
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import ManifoldConfig
from .over_depth import captured, pairs, spread, stays, strongest

TRAINING = 4096
"""Training tokens from which principal directions are taken."""


class Manifold(Evaluator[ManifoldConfig]):
    """See the module."""

    @torch.no_grad()
    def evaluate(self, inputs: EvaluationInputs) -> Findings:
        """Measurements by distance over depth, figures, and a summary in words.

        Raises:
            DataError: fewer than two sites can be compared.
        """
        return _Run(self.config, inputs).all()


@dataclass
class _Run:
    config: ManifoldConfig
    inputs: EvaluationInputs
    rows: list[Measurement] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model: ModelAdapter[Any] = self.inputs.model
        self.basis: Basis = self.inputs.basis
        chosen = self.model.info.select(self.config.sites if isinstance(self.config.sites, str) else list(self.config.sites))
        self.sites = [s for s in chosen if s in self.basis.sites and s in self.inputs.activations.sites]
        if len(self.sites) < 2:
            raise DataError(f"{len(self.sites)} of the chosen sites are covered by the basis and harvested; two are needed",
                            do="choose sites of the basis")
        self.d = self.basis.d_in
        self.k = min(max(round(self.config.share * self.d), 1), self.d - 1)
        self.distances = [d for d in self.config.distances if d < len(self.sites)]

    def all(self) -> Findings:
        """Everything."""
        c = self.config
        self.text = HeldOut.run(self.inputs, self.sites, tokens=c.tokens, sequence_tokens=c.sequence_tokens)
        self.group = self.text.group[self.text.body]
        self.values = [self.seen(s, self.text.rows[s][self.text.body]) for s in self.sites]
        self.control = untrained(self.inputs)
        with self.inputs.progress.task("layers", total=4, unit="questions") as task:
            for done, part in enumerate((self.subspaces, self.latents, self.same_token, self.transport)):
                part()
                task.update(done + 1)
        note = (f"{len(self.group)} held-out tokens of {len(self.group.unique())} sequences at {len(self.sites)} sites; "
                f"subspaces of {self.k} of {self.d} dimensions. 95 % intervals: bootstrap over sequences.")
        return Findings(self.rows, self.figures, notes=[*self.notes, note])

    def seen(self, site: Site, x: Tensor) -> Tensor:
        """[N, D] through the basis's normaliser."""
        return self.basis.normaliser.apply(x.to(self.basis.normaliser.mean), self.basis.index(site)).cpu()

    def add(self, name: str, found: Estimate, condition: str, unit: str = "share") -> None:
        """A measurement over all sites."""
        self.rows.append(Measurement(name, found.value, found.n, found.low, found.high, condition, None, unit))

    def ratio(self, top: Tensor, bottom: Tensor, group: Tensor | None = None) -> Estimate:
        """Of sums, with an interval over sequences."""
        return ratio(top, bottom, self.group if group is None else group, resamples=self.config.resamples, seed=self.inputs.seed)

    def value(self, name: str, condition: str) -> float:
        """A measurement that was made."""
        return next(m.value for m in self.rows if (m.name, m.condition) == (name, condition))

    def series(self, prefix: str, distances: Sequence[int]) -> dict[str, list[float]]:
        """Condition -> value at each distance."""
        at = {(m.name, m.condition): m.value for m in self.rows}
        conditions = dict.fromkeys(m.condition for m in self.rows if m.name.startswith(f"{prefix}@"))
        return {c: [at[f"{prefix}@{d}", c] for d in distances] for c in conditions
                if all((f"{prefix}@{d}", c) in at for d in distances)}

    # 1

    def subspaces(self) -> None:
        """Principal directions of one layer on another."""
        activations, draw = self.inputs.activations, torch.Generator().manual_seed(self.inputs.seed)
        fresh = activations.fresh()
        rows = fresh[torch.randperm(len(fresh), generator=draw)[:TRAINING]].sort().values
        covs = [covariance(self.seen(s, activations.take(s, rows))) for s in self.sites]
        frames = [principal(c)[0][:, :self.k].float() for c in covs]
        pooled = principal(sum(covs, torch.zeros_like(covs[0])))[0][:, :self.k].float()
        values = [v - v.mean(0) for v in self.values]
        size = [v.square().sum(1) for v in values]
        table = [[captured(v, f) for v in values] for f in frames]  # [from][to] [N]
        chance = [captured(v, q[:, :self.k].float()) for q in draws(self.d, self.config.draws, self.inputs.seed)
                  for v in values[::max(len(values) // 4, 1)]]
        several = size[::max(len(values) // 4, 1)] * self.config.draws
        haar = self.ratio(torch.stack(chance).sum(0), torch.stack(several).sum(0))
        for distance in self.distances:
            name, both = f"captured@{distance}", list(pairs(len(values), distance))
            whole = torch.stack([size[b] for _, b in both]).sum(0)
            for condition, part in (("other layer", [table[a][b] for a, b in both]), ("own", [table[b][b] for _, b in both]),
                                    ("pooled", [captured(values[b], pooled) for _, b in both])):
                self.add(name, self.ratio(torch.stack(part).sum(0), whole), condition)
            self.add(name, haar, "haar")
            self.written(name, distance, frames)
        shares = [[round(float(t.sum() / s.sum()), 4) for t, s in zip(row, size, strict=True)] for row in table]
        names = [str(s) for s in self.sites]
        self.figures.append(Figure(
            "heatmap", "One layer's subspace on another", f"Row: the site whose {self.k} principal directions are kept (found on "
            "training tokens). Column: the site whose held-out variance they hold. The diagonal is the most there can be; "
            f"{self.k / self.d:.2f} is chance.", {"share": shares}, names, names, "variance of", "directions of"))
        self.line("captured", "Subspaces over depth", "Share of the variance that a site's principal directions hold, by "
                  "distance. `own`: the most there can be; `pooled`: one subspace for all sites; `haar`: random; `written "
                  "between`: of what was added to the stream between the two sites only.")
        far = self.distances[-1]
        self.notes.append(
            f"Subspaces: {self.k} directions of a site hold {self.value(f'captured@{self.distances[0]}', 'other layer'):.2f} of "
            f"the variance of its neighbours and {self.value(f'captured@{far}', 'other layer'):.2f} of that {far} sites away; "
            f"their own hold {self.value(f'captured@{far}', 'own'):.2f}, one subspace for all "
            f"{self.value(f'captured@{far}', 'pooled'):.2f}, random ones {haar.value:.2f}. "
            f"Of what is written in between they hold {self.value(f'captured@{far}', 'written between'):.2f}.")

    def written(self, name: str, distance: int, frames: Sequence[Tensor]) -> None:
        """The increments of the stream, in its own units, in the subspace of the site before them."""
        raw = [self.text.rows[s][self.text.body].float() for s in self.sites]
        top, bottom = [], []
        for i in range(len(raw) - distance):
            step = raw[i + distance] - raw[i]
            step = step - step.mean(0)
            scale = step.square().sum().clamp_min(1e-12)  # each pair counts the same
            top.append(captured(step, frames[i]) / scale)
            bottom.append(step.square().sum(1) / scale)
        self.add(name, self.ratio(torch.stack(top).sum(0), torch.stack(bottom).sum(0)), "written between")

    # 2

    def latents(self) -> None:
        """The latents that matter at one layer, used at another."""
        sites = list(range(0, len(self.sites), self.config.every))
        if len(sites) < 2:
            return
        distances = [d for d in (1, 2, 4) if d < len(sites)]
        count = max(round(self.config.latents * self.basis.d_dict), 1)
        take = slice(0, min(len(self.group), self.config.code_tokens))
        group = self.group[take]
        for prefix, basis in (("", self.basis), ("untrained, ", self.control)):
            codes = {i: self.codes(basis, i, take) for i in sites}
            energy = {i: self.energy(basis, i) for i in sites}
            masks = {i: strongest(e, count) for i, e in energy.items()}
            lost = {(i, j): self.lost(basis, j, codes[j], masks[i], take) for i in sites for j in sites}
            size = {j: (self.values[j][take] - self.values[j][take].mean(0)).square().sum(1) for j in sites}
            extra: dict[str, dict[int, Tensor]] = {}
            if not prefix:
                draw = torch.Generator().manual_seed(self.inputs.seed)
                alive = torch.nonzero(torch.stack(list(energy.values())).sum(0) > 0).flatten()
                some = torch.zeros(basis.d_dict, dtype=torch.bool)
                some[alive[torch.randperm(len(alive), generator=draw)[:count]]] = True
                extra = {"random": {j: self.lost(basis, j, codes[j], some, take) for j in sites},
                         "all": {j: self.lost(basis, j, codes[j], torch.ones_like(some), take) for j in sites}}
            for distance in distances:
                both = [(sites[a], sites[b]) for a, b in pairs(len(sites), distance)]
                whole = torch.stack([size[b] for _, b in both]).sum(0)
                kinds = {"other layer": [lost[p] for p in both], "own": [lost[b, b] for _, b in both]}
                kinds |= {name: [v[b] for _, b in both] for name, v in extra.items()}
                for condition, part in kinds.items():
                    found = self.ratio(torch.stack(part).sum(0), whole, group).complement()
                    self.add(f"explained@{distance * self.config.every}", found, f"{prefix}{condition}")
            if not prefix:
                names = [str(self.sites[i]) for i in sites]
                shares = [[round(max(1 - float(lost[i, j].sum() / size[j].sum()), 0.0), 4) for j in sites] for i in sites]
                self.figures.append(Figure(
                    "heatmap", "One layer's latents on another", f"Row: the site whose {count} latents of most energy may be "
                    "used. Column: the site whose held-out variance they explain (below 0: shown as 0).", {"explained": shares},
                    names, names, "variance of", "latents of"))
        steps = [d * self.config.every for d in distances]
        self.line("explained", "Latents over depth", f"Variance explained with {count} of {self.basis.d_dict} latents: those of "
                  "another layer, of the layer itself, at random, or all.", steps)
        far = steps[-1]
        at = {c: self.value(f"explained@{far}", c)
              for c in ("other layer", "own", "random", "untrained, other layer", "untrained, own")}
        self.notes.append(
            f"Latents: the {count} strongest of a site explain {at['other layer']:.2f} of the variance {far} sites away, its own "
            f"{at['own']:.2f}, as many at random {at['random']:.2f}; before training {at['untrained, other layer']:.2f} and "
            f"{at['untrained, own']:.2f}.")

    def codes(self, basis: Basis, at: int, take: slice) -> Tensor:
        """[n, K] codes of held-out tokens at a site."""
        x = self.text.rows[self.sites[at]][self.text.body][take]
        return basis.encode(self.sites[at], x.to(self.model.device)).cpu()

    def energy(self, basis: Basis, at: int) -> Tensor:
        """[K] squared activation times squared length of each latent's direction, on 512 training tokens of a site."""
        rows = self.inputs.activations.fresh()[:512]
        x = self.inputs.activations.take(self.sites[at], rows).float()
        return basis.encode(self.sites[at], x).square().mean(0) * basis.directions(self.sites[at]).square().sum(1)

    def lost(self, basis: Basis, at: int, codes: Tensor, mask: Tensor, take: slice) -> Tensor:
        """[n] squared error, in normalised units, of a site's reconstruction from these latents alone."""
        rebuilt = basis.dictionary.decode(codes * mask)
        return (self.values[at][take] - rebuilt).square().sum(1)

    # 3

    def same_token(self) -> None:
        """Which latents stay on along the depth, for the same token."""
        take = slice(0, min(len(self.group), self.config.code_tokens))
        group, draw = self.group[take], torch.Generator().manual_seed(self.inputs.seed)
        n = len(group)
        even = (len(self.sites) ** 2 - 1) / 12
        for condition, basis in (("global", self.basis), ("untrained", self.control)):
            codes = [self.codes(basis, i, take).clamp_min(0) for i in range(len(self.sites))]
            on = [z > 0 for z in codes]
            for distance in self.distances:
                steps = range(len(on) - distance)
                found = [stays(on[i], on[i + distance]) for i in steps]
                self.add(f"stays@{distance}", self.ratio(*(torch.stack(t).sum(0) for t in zip(*found, strict=True)), group),
                         "same token" if condition == "global" else "untrained")
                mixed = [stays(on[i], on[i + distance][torch.randperm(n, generator=draw)]) for i in steps]
                self.add(f"stays@{distance}", self.ratio(*(torch.stack(t).sum(0) for t in zip(*mixed, strict=True)), group),
                         "other token" if condition == "global" else "untrained, other token")
            kinds = {condition: codes}
            if condition == "global":
                kinds["shuffled"] = [z[torch.randperm(n, generator=draw)] for z in codes]
            for name, some in kinds.items():
                one, mass, every = spread(some)
                self.add("spread_token", self.ratio(one / even, mass, group), name)
                total = torch.stack([z.sum(0) for z in some]).sum(0)
                alive = total > 0
                self.add("spread", Estimate(float((every * total)[alive].sum() / total[alive].sum() / even), None, None,
                                            int(alive.sum()), 1), name)
        self.line("stays", "The same latent at the same token", "Share of the latents active at a site that are active some "
                  "sites later. `other token`: later at another token, which shows what is always on. "
                  "`untrained`: the dictionary before training.")
        far = self.distances[-1]
        at = {c: self.value(f"stays@{far}", c) for c in ("same token", "other token", "untrained", "untrained, other token")}
        self.notes.append(
            f"Same token: of the latents active at a site {at['same token']:.2f} are active {far} sites later (at another token "
            f"{at['other token']:.2f}; before training {at['untrained']:.2f} and {at['untrained, other token']:.2f}).")

    # 4

    def transport(self) -> None:
        """Take one latent away at one token and read it later."""
        count = self.config.removed
        starts = [i for i in sorted({0, len(self.sites) // 3, 2 * len(self.sites) // 3}) if i + 1 < len(self.sites)
                  and self.sites[i].name in ("embed", "resid")]
        if not count or not starts:
            return
        batch = _first(self.text.batches[0])
        found: dict[tuple[int, str], list[tuple[Tensor, Tensor]]] = {}
        clean = self.model.forward(batch.to(self.model.device), capture=self.sites, logits="none")
        usable = batch.flag("unseen") & (batch.positions > 0) & batch.mask
        for start in starts:
            self.removed(start, batch, clean.sites, usable, count // len(starts) or 1, found)
        for (distance, condition), parts in sorted(found.items()):
            gone, was = (torch.cat(t) for t in zip(*parts, strict=True))
            self.add(f"carried@{distance}", ratio(gone, was, torch.arange(len(was)), resamples=self.config.resamples), condition)
        distances = sorted({d for d, _ in found})
        if distances:
            self.line("carried", "Transport of a feature", "A latent is taken away at one token of a site; share of its "
                      "activation that is gone some sites later. `identity`: if nothing in between reacted. `other feature`: "
                      "another latent's direction of the same length taken away instead.", distances)
            near, far = distances[0], distances[-1]
            self.notes.append(
                f"Transport: with a latent taken away at one token, {self.value(f'carried@{near}', 'feature'):.2f} of its "
                f"activation is gone {near} and {self.value(f'carried@{far}', 'feature'):.2f} {far} sites later; another "
                f"latent's direction of the same length takes {self.value(f'carried@{near}', 'other feature'):.2f} and "
                f"{self.value(f'carried@{far}', 'other feature'):.2f}. Only latents that are active at both sites count.")

    def removed(self, start: int, batch: TokenBatch, clean: Any, usable: Tensor, count: int,
                found: dict[tuple[int, str], list[tuple[Tensor, Tensor]]]) -> None:
        """For `count` tokens, each its strongest latent but those that are strongest at most tokens."""
        site, draw = self.sites[start], torch.Generator().manual_seed(self.inputs.seed + start)
        places = torch.nonzero(usable)
        places = places[torch.randperm(len(places), generator=draw)[:count]]
        rows, where = places[:, 0], places[:, 1]
        x = clean[site]
        z = self.basis.encode(site, x[rows, where])
        usual = self.basis.encode(site, x[usable.to(x.device)]).gt(0).float().mean(0)
        own = torch.where(usual < 0.5, z, torch.zeros_like(z))
        latent = own.argmax(1)
        direction = self.basis.directions(site)
        vector = own.gather(1, latent[:, None]) * direction[latent]
        other = latent[torch.randperm(len(latent), generator=draw)].roll(1)
        fake = torch.nn.functional.normalize(direction[other], dim=1) * vector.norm(dim=1, keepdim=True)
        later = {d: self.sites[start + d] for d in self.distances if start + d < len(self.sites)}
        deepest = self.sites[start + max(later)]
        for at in torch.arange(len(rows)).split(16):
            few = batch.take(rows[at]).to(self.model.device)
            before = {d: self.read(s, clean[s][rows[at], where[at]], latent[at]) for d, s in later.items()}
            for condition, taken in (("feature", vector), ("other feature", fake)):
                value = x[rows[at]].clone()
                value[torch.arange(len(at)), where[at]] -= taken[at]
                result = self.model.forward(few, start=Start(site, value), capture=list(later.values()), stop_at=deepest,
                                            logits="none")
                for d, s in later.items():
                    after = self.read(s, result.sites[s][torch.arange(len(at)), where[at]], latent[at])
                    found.setdefault((d, condition), []).append(_gone(before[d], after))
            for d, s in later.items():
                after = self.read(s, clean[s][rows[at], where[at]] - vector[at], latent[at])
                found.setdefault((d, "identity"), []).append(_gone(before[d], after))

    def read(self, site: Site, x: Tensor, latent: Tensor) -> Tensor:
        """[n] activation of one latent each."""
        return self.basis.encode(site, x).gather(1, latent[:, None])[:, 0]

    def line(self, prefix: str, title: str, caption: str, distances: Sequence[int] | None = None) -> None:
        """A curve over distance."""
        shown = list(self.distances if distances is None else distances)
        self.figures.append(Figure("line", title, caption, self.series(prefix, shown), shown, x_label="sites between",
                                   y_label=prefix))


def _first(batch: TokenBatch, columns: int = 64) -> TokenBatch:
    """The first columns of a batch without further inputs; what comes later does not change what they hold."""
    if batch.extra:
        return batch
    cut = (batch.ids, batch.mask, batch.positions, batch.segments, batch.sequences)
    return TokenBatch(*(t[:, :columns] for t in cut), {k: v[:, :columns] for k, v in batch.flags.items()})


def _gone(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """What is gone of each activation, and what there was; nothing where there was none."""
    return ((before - after) * (before > 0)).cpu(), before.cpu()
