"""Are the edges of a circuit enough? Later latents are computed from earlier ones along the edges alone.

With J_vu the derivative of latent v of a site with respect to latent u of the site before it, z_u what u is in this run, mu_u its
ablated value, and c_v what v is before its threshold when the whole site before is ablated,

    z_v = c_v + sum over kept edges of J_vu (z_u - mu_u)        clamped at 0 where codes cannot be negative

replaces what the model computes; other latents keep their ablated values, error nodes of the circuit their own. J_vu and c_v
are one number for all prompts, and the model between two sites plays no part. With e_vu the integrated edge of one prompt, J_vu =
sum(e_vu (z_u - mu_u)) / sum((z_u - mu_u)^2) over the prompts where v is active (elsewhere its threshold hides how it depends on
u), and c_v is the mean over them of z_v less what all sources give it. Means of e and of z - mu would not do: where prompts come
in both directions the latter vanish.

Shapes: B prompts, T tokens, U nodes of the site before, V nodes of a site.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

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
from .nodes import split


def edge_faithfulness(judge: Judge, circuit: Circuit, train: Sequence[ContrastBatch], sizes: Sequence[int],
                      name: str) -> tuple[list[Measurement], ScoreTable]:
    """Faithfulness of the circuit with only its strongest edges, and with all of them, on the judge's prompts.

    Beside it, under `shuffled`: as many edges of the same weights between other nodes of the same two sites.

    Args:
        judge: the held-out prompts.
        circuit: masks per token, mean ablation.
        train: prompts the edges are measured on.
        sizes: numbers of edges, over all pairs of neighbouring sites; strongest by mean |e_vu|.
        name: of the circuit.

    Returns:
        measurements, and the edges: mean over the prompts of |e_vu|, as `ScoreTable.edges`.

    Raises:
        UserError: other masks or ablations.
    """
    setup, runner, fill = circuit.setup, judge.runner, fill_of(circuit)
    if setup.index != "token" or setup.ablation != "mean" or fill is None:
        raise UserError("edges are judged for circuits per token position with mean ablation",
                        do="find the circuit with index: token and ablation: mean")
    fitted = _fitted(judge, circuit, train, fill)
    strength = torch.cat([link.strength.flatten() for link in fitted.values()]) if fitted else torch.zeros(0)
    strength = strength[strength > 0].sort(descending=True).values
    found = []
    for size in sorted({0, *(s for s in sizes if s < len(strength)), len(strength)}):
        least = float(strength[size - 1]) if size else float("inf")
        for label, shuffle in (("", False), (", shuffled", True)) if size else (("", False),):
            links = {s: link.kept(least, judge.seed if shuffle else None) for s, link in fitted.items()}
            value = torch.cat([_run(judge, index, circuit, links, fill) for index in range(len(runner.prompts))])
            condition = f"{name}, {size} of {len(strength)} edges{label}"
            found.append(row("edge_faithfulness", judge.share(value.double().cpu()), condition))
    edges_of = {(link.before, site): link.table(len(fill.counts), runner.basis.d_dict + 1) for site, link in fitted.items()}
    return found, ScoreTable({}, edges_of, {"kind": "integrated", "prompts": sum(len(item.clean.ids) for item in train)})


@dataclass(frozen=True)
class _Links:
    """Edges into one site: sources [U, 2] and targets [V, 2] as (row, latent), J [V, U], c [V], mean |e| [V, U]."""

    before: Site
    sources: Tensor
    targets: Tensor
    weight: Tensor
    offset: Tensor
    strength: Tensor

    def kept(self, least: float, shuffle: int | None = None) -> "_Links":
        """The edges at least so strong; with a seed, their weights between other nodes."""
        weight = torch.where(self.strength >= least, self.weight, 0)
        if shuffle is not None:
            order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(shuffle))
            weight = weight.flatten()[order.to(weight.device)].view_as(weight)
        return replace(self, weight=weight)

    def table(self, rows: int, width: int) -> Tensor:
        """Sparse [rows, width, rows, width]."""
        v, u = self.strength.nonzero().T
        index = torch.cat([self.sources[u].T, self.targets[v].T])
        return torch.sparse_coo_tensor(index, self.strength[v, u], (rows, width, rows, width), check_invariants=True).coalesce()


def _fitted(judge: Judge, circuit: Circuit, train: Sequence[ContrastBatch], fill: Means) -> dict[Site, _Links]:
    """Weights and offsets of the edges into every site but the first, from one prompt after the other."""
    setup, runner, width = circuit.setup, judge.runner, judge.runner.basis.d_dict
    basis = runner.basis.at(setup.sites)
    masks = {s: torch.cat([m, m.new_zeros(len(fill.counts) - len(m), m.shape[1])]).cpu() for s, m in circuit.masks.items()}
    nodes = {s: m[:, :width].nonzero() for s, m in masks.items()}
    pairs = list(pairwise(setup.sites))
    size = {b: (len(nodes[b]), len(nodes[a])) for a, b in pairs}
    top, bottom, strength = ({b: torch.zeros(n, dtype=torch.float64) for b, n in size.items()} for _ in range(3))
    offset, active = ({b: torch.zeros(n[0], dtype=torch.float64) for b, n in size.items()} for _ in range(2))
    prompts = split(train, 1)
    for item in prompts:
        table = edges(runner.model, basis, [item], runner.metric, masks, baseline=fill, places=fill.places, protect=setup.protect)
        states = basis.states(runner.model.forward(item.clean, capture=setup.sites, logits="none"))
        codes = {s: z[0].cpu().double() for s, (z, _) in states.items()}
        for a, b in pairs:
            if (a, b) not in table.edges:
                continue
            (r, u), (q, v) = nodes[a].T, nodes[b].T
            moved, value = codes[a][r, u] - fill.codes[a].cpu().double()[r, u], codes[b][q, v]
            edge = _dense(table.edges[a, b], nodes[a], nodes[b])
            received = {(q, v): amount for q, v, amount in table.details["received"][f"{a}>{b}"]}
            whole = torch.tensor([received[tuple(node)] for node in nodes[b].tolist()], dtype=torch.float64)
            on = (value != 0).double()
            top[b] += on[:, None] * edge * moved
            bottom[b] += on[:, None] * moved.square()
            strength[b] += edge.abs() / len(prompts)
            offset[b] += on * (value - whole)
            active[b] += on
    out = {}
    for a, b in pairs:
        weight = top[b] / bottom[b].clamp_min(1e-12)
        parts = weight, offset[b] / active[b].clamp_min(1), strength[b]
        out[b] = _Links(a, nodes[a], nodes[b], *(t.to(runner.model.device, runner.dtype) for t in parts))
    return out


def _dense(edge: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """[V, U] of sparse edges."""
    edge = edge.coalesce()
    known = {tuple(where): value for where, value in zip(edge.indices().T.tolist(), edge.values().tolist(), strict=True)}
    rows = [[known.get((*u, *v), 0.0) for u in sources.tolist()] for v in targets.tolist()]
    return torch.tensor(rows, dtype=torch.float64).view(len(targets), len(sources))


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
    kept: dict[Site, Tensor] = field(repr=False)

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        """[B, T, D] -> the same."""
        basis, size = self.judge.runner.basis, x.shape[1]
        keep, mu = self.mask[:size], self.mu[:size]
        z = basis.encode(self.site, x)
        own = x.to(z.dtype) - basis.decode(self.site, z)
        if self.links is None:
            codes = torch.where(keep[:, :-1], z, mu)
        else:
            codes = mu.expand_as(z).clone()
            (r, u), (q, v) = self.links.sources.T, self.links.targets.T
            moved = self.kept[self.links.before][:, r, u]
            value = self.links.offset + moved @ self.links.weight.T
            codes[:, q, v] = value.clamp_min(0) if "nonnegative-latents" in basis.capabilities else value
        self.kept[self.site] = codes - mu
        nodes = self.judge.runner.setup.error == "node"
        error = torch.where(keep[:, -1:], own, self.error[:size]) if nodes else self.error[:size]
        new = basis.decode(self.site, codes) + error
        return torch.where((self.rows >= 0)[..., None], new.to(x.dtype), x)


def _run(judge: Judge, index: int, circuit: Circuit, links: dict[Site, _Links], fill: Means) -> Tensor:
    """[B] the metric with later latents computed from the edges."""
    runner = judge.runner
    p, kept, device = runner.prompts[index], {}, runner.model.device
    edits = []
    silent = runner.setup.error == "none"
    for site in runner.setup.sites:
        mu, error = (t[site].to(device, runner.dtype) for t in (fill.codes, fill.errors))
        error = torch.zeros_like(error) if silent else error
        edits.append(_Linear(site, judge, circuit.masks[site].to(device), p.rows, mu, error, links.get(site), kept))
    result = runner.model.forward(p.item.clean, edits=edits)
    return runner.metric(result, p.item.clean, p.item.targets)
