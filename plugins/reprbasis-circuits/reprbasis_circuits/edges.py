"""Are the edges of a circuit enough? Later latents are computed from earlier ones along the edges alone.

With J_vu the derivative of latent v of a site with respect to latent u of the site before it, z_u what u is in this run, mu_u its
ablated value, and c_v what v is when the whole site before is ablated,

    z_v = c_v + sum over kept edges of J_vu (z_u - mu_u)        clamped at 0 where codes cannot be negative

replaces what the model computes; other latents keep their ablated values, error nodes of the circuit their own. J_vu is the mean
integrated edge over the mean z_u - mu_u, so it is one number for all prompts, and the model between two sites plays no part.

Shapes: B prompts, T tokens, U nodes of the site before, V nodes of a site.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from reprbasis.errors import UserError
from reprbasis.interfaces.evaluator import Measurement
from reprbasis.interfaces.finder import Circuit
from reprbasis.interfaces.scorer import ContrastBatch, ScoreTable
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.kits.circuits import fill_of
from reprbasis.kits.edges import edges
from reprbasis.kits.nodes import Means
from reprbasis.sites import Site

from .evaluation import Judge, row


def edge_faithfulness(judge: Judge, circuit: Circuit, train: Sequence[ContrastBatch], sizes: Sequence[int],
                      name: str) -> tuple[list[Measurement], ScoreTable]:
    """Faithfulness of the circuit with only its strongest edges, and with all of them, on the judge's prompts.

    Args:
        judge: the held-out prompts.
        circuit: masks per token, mean ablation.
        train: prompts the edges are measured on.
        sizes: numbers of edges, over all pairs of neighbouring sites.
        name: of the circuit.

    Raises:
        UserError: other masks or ablations.
    """
    setup, runner, fill = circuit.setup, judge.runner, fill_of(circuit)
    if setup.index != "token" or setup.ablation != "mean" or fill is None:
        raise UserError("edges are judged for circuits per token position with mean ablation",
                        do="find the circuit with index: token and ablation: mean")
    basis = runner.basis.at(setup.sites)
    rows = len(fill.counts)
    masks = {s: torch.cat([m, m.new_zeros(rows - len(m), m.shape[1])]) for s, m in circuit.masks.items()}
    table = edges(runner.model, basis, train, runner.metric, masks, baseline=fill, places=fill.places, protect=setup.protect)
    lift = _lift(judge, train, fill)
    offset = _offsets(judge)
    strength = torch.cat([table.edges[pair].coalesce().values().abs() for pair in table.edges]) if table.edges else torch.zeros(0)
    found = []
    for size in sorted({0, *(s for s in sizes if s < len(strength)), len(strength)}):
        least = float(strength.topk(size).values[-1]) if size else float("inf")
        links = {b: _links(table, a, b, masks, lift[a], least) for a, b in pairwise(setup.sites)}
        value = torch.cat([_run(judge, index, circuit, links, offset, fill) for index in range(len(runner.prompts))])
        found.append(row("edge_faithfulness", judge.share(value.double().cpu()), f"{name}, {size} of {len(strength)} edges"))
    return found, table


def _lift(judge: Judge, train: Sequence[ContrastBatch], fill: Means) -> dict[Site, Tensor]:
    """Mean of z_u - mu_u over clean prompts, [F, K]."""
    runner = judge.runner
    clean = [ContrastBatch(item.clean, None, item.targets, item.roles) for item in train]
    means = Means.of(runner.model, runner.basis.at(runner.setup.sites), clean, "token")
    return {s: means.codes[s] - fill.codes[s].to(means.codes[s])[:len(means.codes[s])] for s in runner.setup.sites}


def _offsets(judge: Judge) -> dict[Site, Tensor]:
    """Codes [T, K] that come in at each site when every node before it is ablated (the same for every prompt)."""
    runner, seen = judge.runner, {}
    prompts = runner.prompts[0]
    edits: list[Any] = []
    for edit in runner.edits(prompts, runner.full(latents=False, errors=False)):
        edits += [_Look(edit.site, seen), edit]
    runner.model.forward(prompts.item.clean, edits=edits, logits="none")
    return {s: runner.basis.encode(s, x[0]) for s, x in seen.items()}


@dataclass(frozen=True)
class _Links:
    """Edges into one site: sources and targets as (row, latent), and J [V, U]."""

    sources: Tensor
    targets: Tensor
    weight: Tensor


def _links(table: ScoreTable, a: Site, b: Site, masks: dict[Site, Tensor], lift: Tensor, least: float) -> _Links:
    width = masks[a].shape[1] - 1
    sources, targets = (masks[s][:, :width].nonzero() for s in (a, b))
    weight = torch.zeros(len(targets), len(sources), dtype=lift.dtype)
    if (a, b) in table.edges:
        edge = table.edges[a, b].coalesce()
        place_u = {tuple(node): i for i, node in enumerate(sources.tolist())}
        place_v = {tuple(node): i for i, node in enumerate(targets.tolist())}
        for (p, u, q, v), value in zip(edge.indices().T.tolist(), edge.values().tolist(), strict=True):
            if abs(value) >= least and (p, u) in place_u and (q, v) in place_v and abs(float(lift[p, u])) > 1e-6:
                weight[place_v[q, v], place_u[p, u]] = value / float(lift[p, u])
    return _Links(sources, targets, weight)


@dataclass(frozen=True)
class _Look:
    """Keeps what comes in."""

    site: Site
    seen: dict[Site, Tensor] = field(repr=False)

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        self.seen[self.site] = x
        return x


@dataclass(frozen=True)
class _Linear:
    """Codes from the edges alone; keeps them for the next site."""

    site: Site
    judge: Judge = field(repr=False)
    mask: Tensor = field(repr=False)
    rows: Tensor = field(repr=False)
    mu: Tensor = field(repr=False)
    error: Tensor = field(repr=False)
    links: _Links | None = field(repr=False)
    offset: Tensor = field(repr=False)
    before: Site | None
    kept: dict[Site, Tensor] = field(repr=False)

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        """[B, T, D] -> the same."""
        basis, size = self.judge.runner.basis, x.shape[1]
        keep, mu = self.mask[:size], self.mu[:size]
        z = basis.encode(self.site, x)
        own = x.to(z.dtype) - basis.decode(self.site, z)
        if self.links is None or self.before is None:
            codes = torch.where(keep[:, :-1], z, mu)
        else:
            codes = mu.expand_as(z).clone()
            (r, u), (q, v) = self.links.sources.T, self.links.targets.T
            moved = self.kept[self.before][:, r, u]
            value = self.offset[q, v] + moved @ self.links.weight.to(moved).T
            codes[:, q, v] = value.clamp_min(0) if "nonnegative-latents" in basis.capabilities else value
        self.kept[self.site] = codes - mu
        nodes = self.judge.runner.setup.error == "node"
        error = torch.where(keep[:, -1:], own, self.error[:size]) if nodes else self.error[:size]
        new = basis.decode(self.site, codes) + error
        return torch.where((self.rows >= 0)[..., None], new.to(x.dtype), x)


def _run(judge: Judge, index: int, circuit: Circuit, links: dict[Site, _Links], offset: dict[Site, Tensor],
         fill: Means) -> Tensor:
    """[B] the metric with later latents computed from the edges."""
    runner = judge.runner
    p, kept, device = runner.prompts[index], {}, runner.model.device
    edits, before = [], None
    silent = runner.setup.error == "none"
    for site in runner.setup.sites:
        mu, error = (t[site].to(device, runner.dtype) for t in (fill.codes, fill.errors))
        error = torch.zeros_like(error) if silent else error
        edits.append(_Linear(site, judge, circuit.masks[site].to(device), p.rows, mu, error, links.get(site), offset[site],
                             before, kept))
        before = site
    result = runner.model.forward(p.item.clean, edits=edits)
    return runner.metric(result, p.item.clean, p.item.targets)
