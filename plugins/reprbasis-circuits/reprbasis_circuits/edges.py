"""Are the edges of a circuit enough? Every node sees only the earlier nodes that it has an edge from.

Between two neighbouring sites of the circuit each later latent is computed by the model itself, with its threshold, from a stream
in which only the latents with a kept edge into it have their own values and all others their ablated ones (path patching,
Goldowsky-Dill et al. 2023). So with every edge the circuit does what it always does, and with none each site says what it says
when the site before is ablated. Error nodes of the circuit are no ends of edges: they keep their own values.

Shapes: B prompts, T tokens, D width, K latents, U nodes of the site before, V nodes of a site, G sets of sources.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from reprbasis.errors import UserError
from reprbasis.interfaces.evaluator import Measurement
from reprbasis.interfaces.finder import Circuit
from reprbasis.interfaces.model import Start
from reprbasis.interfaces.scorer import ContrastBatch, ScoreTable
from reprbasis.kits.circuits import fill_of
from reprbasis.kits.edges import edges
from reprbasis.kits.nodes import Means, repeated, stream_before
from reprbasis.sites import Site

from .evaluation import Judge, row
from .nodes import split


def edge_faithfulness(judge: Judge, circuit: Circuit, train: Sequence[ContrastBatch], sizes: Sequence[int],
                      name: str) -> tuple[list[Measurement], ScoreTable]:
    """Faithfulness of the circuit with only its strongest edges, and with all of them, on the judge's prompts.

    Beside it, under `shuffled`: as many edges between each two sites, drawn at random. An edge goes from a latent of the circuit
    to one at the next site, at the same token or a later one. Cost: for every size, the model from site to site once for each
    set of sources that some node has.

    Args:
        judge: the held-out prompts.
        circuit: masks per token, mean ablation, residual sites.
        train: prompts that edges are ranked on, by their mean |integrated edge|.
        sizes: numbers of edges, over all pairs of neighbouring sites.
        name: of the circuit.

    Returns:
        measurements, and the edges: mean over the prompts of |e_vu|, as `ScoreTable.edges`.

    Raises:
        UserError: other masks, ablations or sites.
    """
    setup, fill = circuit.setup, fill_of(circuit)
    if setup.index != "token" or setup.ablation != "mean" or fill is None:
        raise UserError("edges are judged for circuits per token position with mean ablation",
                        do="find the circuit with index: token and ablation: mean")
    if other := [s for s in setup.sites if stream_before(judge.runner.model.info, s) != s]:
        raise UserError(f"edges are judged between residual sites, not at {', '.join(map(str, other))}", do="use sites: resid.*")
    links = _measured(judge, circuit, train, fill)
    possible = torch.cat([link.strength[link.possible] for link in links.values()])
    order = possible.argsort(descending=True, stable=True)
    found = []
    for size in sorted({0, *(s for s in sizes if s < len(order)), len(order)}):
        chosen = torch.zeros(len(order), dtype=torch.bool)
        chosen[order[:size]] = True
        for label, shuffle in (("", False), (", shuffled", True)) if 0 < size < len(order) else (("", False),):
            kept, first = {}, 0
            for number, (site, link) in enumerate(links.items()):
                count = int(link.possible.sum())
                some = chosen[first:first + count]
                if shuffle:
                    generator = torch.Generator().manual_seed(judge.seed + number)
                    some = some[torch.randperm(count, generator=generator)]
                kept[site], first = link.with_edges(some), first + count
            value = torch.cat([_run(judge, index, circuit, kept, fill) for index in range(len(judge.runner.prompts))])
            condition = f"{name}, {size} of {len(order)} edges{label}"
            found.append(row("edge_faithfulness", judge.share(value.double().cpu()), condition))
    shape = len(fill.counts), judge.runner.basis.d_dict + 1
    edges_of = {(link.before, site): link.table(*shape) for site, link in links.items()}
    return found, ScoreTable({}, edges_of, {"kind": "integrated", "prompts": sum(len(item.clean.ids) for item in train)})


@dataclass(frozen=True)
class _Links:
    """Edges into one site: sources [U, 2] and targets [V, 2] as (token, latent), mean |e| [V, U], which are kept [V, U]."""

    before: Site
    sources: Tensor
    targets: Tensor
    strength: Tensor
    kept: Tensor

    @property
    def possible(self) -> Tensor:
        """[V, U] nothing acts on an earlier token."""
        return self.sources[None, :, 0] <= self.targets[:, None, 0]

    def with_edges(self, some: Tensor) -> "_Links":
        """`some`: one entry for each possible edge."""
        kept = torch.zeros_like(self.kept)
        kept[self.possible] = some
        return replace(self, kept=kept)

    def table(self, rows: int, width: int) -> Tensor:
        """Sparse [rows, width, rows, width]."""
        v, u = self.strength.nonzero().T
        index = torch.cat([self.sources[u].T, self.targets[v].T])
        return torch.sparse_coo_tensor(index, self.strength[v, u], (rows, width, rows, width), check_invariants=True).coalesce()


def _measured(judge: Judge, circuit: Circuit, train: Sequence[ContrastBatch], fill: Means) -> dict[Site, _Links]:
    """Strengths of the edges into every site but the first, from one prompt after the other: in the mean over prompts in both
    directions they cancel.
    """
    setup, runner, width = circuit.setup, judge.runner, judge.runner.basis.d_dict
    basis = runner.basis.at(setup.sites)
    masks = {s: torch.cat([m, m.new_zeros(len(fill.counts) - len(m), m.shape[1])]).cpu() for s, m in circuit.masks.items()}
    nodes = {s: m[:, :width].nonzero() for s, m in masks.items()}
    strength = {b: torch.zeros(len(nodes[b]), len(nodes[a]), dtype=torch.float64) for a, b in pairwise(setup.sites)}
    prompts = split(train, 1)
    for item in prompts:
        table = edges(runner.model, basis, [item], runner.metric, masks, baseline=fill, places=fill.places, protect=setup.protect)
        for (a, b), edge in table.edges.items():
            if b in strength:
                strength[b] += _dense(edge, nodes[a], nodes[b]).abs() / len(prompts)
    return {b: _Links(a, nodes[a], nodes[b], strength[b], torch.zeros_like(strength[b], dtype=torch.bool))
            for a, b in pairwise(setup.sites)}


def _dense(edge: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """[V, U] of sparse edges."""
    edge = edge.coalesce()
    known = {tuple(where): value for where, value in zip(edge.indices().T.tolist(), edge.values().tolist(), strict=True)}
    rows = [[known.get((*u, *v), 0.0) for u in sources.tolist()] for v in targets.tolist()]
    return torch.tensor(rows, dtype=torch.float64).view(len(targets), len(sources))


def _run(judge: Judge, index: int, circuit: Circuit, links: Mapping[Site, _Links], fill: Means) -> Tensor:
    """[B] the metric when every latent of the circuit sees its kept sources alone."""
    runner, setup = judge.runner, circuit.setup
    p, model, sites = runner.prompts[index], runner.model, setup.sites
    opened, size = (p.rows >= 0)[..., None], p.item.clean.shape[1]

    def rebuilt(site: Site, x: Tensor, codes: Tensor) -> Tensor:
        """The stream [..., B, T, D] of these codes, with the error of x [B, T, D] where the circuit has it."""
        own = x - runner.basis.decode(site, runner.basis.encode(site, x))
        mean = fill.errors[site].to(x)[:size] if setup.error in ("node", "mean") else torch.zeros_like(x[:1])
        keep = circuit.masks[site][:size, -1:].to(x.device) if setup.error == "node" else torch.tensor(setup.error == "own")
        error = torch.where(keep.to(x.device), own, mean)
        return torch.where(opened, runner.basis.decode(site, codes) + error, x)

    captured = model.forward(p.item.clean, start=p.start, capture=sites[:1], logits="none").sites[sites[0]]
    x = captured.to(runner.dtype)
    mask = circuit.masks[sites[0]][:size, :-1].to(x.device)
    mu = fill.codes[sites[0]].to(x)[:size]
    codes = torch.where(mask, runner.basis.encode(sites[0], x), mu)
    for before, site in pairwise(sites):
        link = links[site]
        sets, group = torch.unique(torch.cat([torch.ones_like(link.kept[:1]), link.kept]), dim=0, return_inverse=True)
        r, u = link.sources.T.to(x.device)
        q, v = link.targets.T.to(x.device)
        some = (codes if not len(r) else mu).expand(len(sets), *codes.shape).clone()  # [G, B, T, K]
        some[..., r, u] = torch.where(sets[:, None].to(x.device), codes[:, r, u], mu[r, u])
        stream = rebuilt(before, x, some)
        batch = repeated(p.item.clean, len(sets))
        result = model.forward(batch, start=Start(before, stream.flatten(0, 1).to(captured.dtype)), capture=[site], logits="none")
        seen = result.sites[site].to(runner.dtype).view(len(sets), -1, *x.shape[1:])
        x, mu = seen[group[0]], fill.codes[site].to(x)[:size]
        codes = mu.expand(*x.shape[:2], -1).clone()
        z = runner.basis.encode(site, seen)
        for number in range(len(sets)):
            mine = (group[1:] == number).to(x.device)
            codes[:, q[mine], v[mine]] = z[number][:, q[mine], v[mine]]
    end = rebuilt(sites[-1], x, codes).to(captured.dtype)
    result = model.forward(p.item.clean, start=Start(sites[-1], end))
    return runner.metric(result, p.item.clean, p.item.targets)
