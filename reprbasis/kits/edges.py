"""Edges between the nodes of a circuit: how much a node of one site owes to a node of an earlier one.

The segment g maps the value of site a to that of a later site b through the unchanged model; everything before a stays as it is
in the clean run. u is a latent of a with direction d_u, v a latent of b whose tangent at the clean run is r_v = dz_v/dx: the
encoder row while it is active, 0 while it is not. With J_vu = r_v . (dg/dx) d_u, z the codes and z0 their baseline,

    effect        dm/dz_v J_vu (z_u - z0_u)    first order, in units of the metric (Marks et al. 2024)
    activation    J_vu z_u                     first order, in units of v (Ameisen et al. 2025), but nothing is frozen
    integrated    mean of J_vu (z_u - z0_u)    over the path on which all nodes of a move to their baseline; in units of v

Integrated edges into v add up to p_v(clean) - p_v(a at its baseline), p_v = r_v . x the pre-activation, but for quadrature.
Effect edges out of u to all nodes of b, with the error, add up to the first-order score of u, exactly. The error node of b is
read along dm/dx (effect) or along its own difference from its baseline (the others).

Edges are direct: sites between a and b hold their clean value. With a residual site in between nothing is left, and such pairs
are left out.

Shapes: B batch, T tokens, D width, K latents, P places, N points of the path, U source nodes, V target nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..errors import ShapeError
from ..interfaces.metric import Metric
from ..interfaces.model import ModelAdapter, Replace
from ..interfaces.scorer import ContrastBatch, ScoreTable
from ..runtime.basis import Basis
from ..sites import Site
from .nodes import Baseline, Nodes, Places, State, pull

EdgeKind: TypeAlias = Literal["effect", "activation", "integrated"]


def edges(model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any],
          nodes: Mapping[Site, Tensor], *, kind: EdgeKind = "integrated", baseline: Baseline = "corrupt", steps: int = 10,
          places: Places | None = None, rows: int = 64, protect: int = 0) -> ScoreTable:
    """Edges among chosen nodes, as the mean over all examples.

    Args:
        model, basis, batches, metric: as for a scorer.
        nodes: site -> bool [K + 1], or [P, K + 1] for the P `places`: the nodes of the circuit.
        kind: see the module.
        baseline: what source nodes are compared with (`activation`: not used).
        steps: midpoints N of the path (`integrated`).
        places: what the rows of `nodes` are; by default one place.
        rows: prompts times points in one forward.
        protect: leading tokens left alone.

    Returns:
        Edges (a, b) -> sparse [K + 1, K + 1], or [P, K + 1, P, K + 1] for several places. In `details["checks"]["a>b"]`:
        `row_effect`, the largest true change of a target (integrated: of its pre-activation; effect: times dm/dz) when all of a
        takes its baseline, and `row_residual`, the largest difference from it of the sum over all sources, in or out of the
        circuit; for `effect` also `explained`, the share of the first-order scores of the sources that runs through the
        targets. In `details["received"]["a>b"]`: [row, latent, amount] for every target, what all sources together give it.

    Cost of a batch: 2 forwards (`effect`: and 1 forward and backward), and for each pair of sites N forwards and N V backwards
    of the segment between them (N = 1 but for `integrated`).

    Raises:
        ShapeError: masks do not fit the places.
    """
    at = places or Places()
    masks = {s: _rows(m, at, basis, s) for s, m in nodes.items() if s in basis.sites}
    sites = sorted(masks, key=model.info.depth)
    sums: dict[tuple[Site, Site], _Sums] = {}
    n = 0
    for item in batches:
        run = Nodes.of(model, basis, item, baseline, metric=metric, protect=protect)
        slope = _slopes(run, metric) if kind == "effect" else {}
        for i, a in enumerate(sites):
            for b in sites[i + 1:]:
                between = [s for s in sites if model.info.depth(a) < model.info.depth(s) < model.info.depth(b)]
                if any(s.name in ("embed", "resid", "final") for s in between):
                    break
                part = _Segment(run, at, a, b, between, kind, slope.get(b), steps, rows).sums(masks[a], masks[b])
                sums[a, b] = part if (a, b) not in sums else sums[a, b] + part
        n += run.n
    dtype = basis.normaliser.mean.dtype
    found = {(a, b): _sparse((part.edges / n).to(dtype), masks[a], masks[b], at) for (a, b), part in sums.items()}
    details = {"kind": kind, "metric": metric.full_name or type(metric).__name__, "n": n, "index": at.kind, "rows":
    list(at.names),
               "steps": steps if kind == "integrated" else 1,
               "checks": {f"{a}>{b}": part.checks(n, kind) for (a, b), part in sums.items()},
               "received": {f"{a}>{b}": part.received(n, masks[b]) for (a, b), part in sums.items()}}
    return ScoreTable({}, found, details)


@dataclass(frozen=True)
class _Sums:
    """Sums over examples: edges [V, U]; for each target what comes from all sources [V] and its true change [V]; for each source
    its whole first-order score [U] (effect edges).
    """

    edges: Tensor
    through: Tensor
    change: Tensor
    whole: Tensor

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(self.edges + other.edges, self.through + other.through, self.change + other.change, self.whole + other.whole)

    def received(self, n: int, targets: Tensor) -> list[list[float]]:
        """See `edges`."""
        return [[*where, float(value) / n] for where, value in zip(targets.nonzero().tolist(), self.through, strict=True)]

    def checks(self, n: int, kind: EdgeKind) -> dict[str, float]:
        """See `edges`."""
        targets, sources = self.edges.shape
        out: dict[str, float] = {"targets": targets, "sources": sources}
        if kind != "activation" and targets:
            out["row_residual"] = float((self.through - self.change).abs().max()) / n
            out["row_effect"] = float(self.change.abs().max()) / n
        if kind == "effect" and (whole := float(self.whole.sum())):
            out["explained"] = float(self.edges.sum()) / whole
        return out


@dataclass(frozen=True)
class _Segment:
    """One batch, from site a to site b."""

    run: Nodes
    places: Places
    a: Site
    b: Site
    between: Sequence[Site]
    kind: EdgeKind
    slope: Tensor | None
    steps: int
    rows: int

    def sums(self, sources: Tensor, targets: Tensor) -> _Sums:
        """Edges from the source nodes to the target nodes (bool [P, K + 1] each)."""
        run, state = self.run, self.run.state(self.a)
        readers = self._readers(targets)
        count = self.steps if self.kind == "integrated" else 1
        at = (torch.arange(count, device=state.x.device) + 0.5) / count if self.kind == "integrated" else torch.zeros(1)
        base = run.value(self.a, state.base_codes, state.base_error)
        with torch.no_grad():
            gap = run.result[self.b] - self._end(base)
        through = torch.zeros(len(readers), dtype=torch.float64, device=state.x.device)
        table = torch.zeros(len(readers), int(sources.sum()), dtype=torch.float64, device=state.x.device)
        whole, change = torch.zeros_like(table.sum(0)), torch.zeros_like(through)
        for index in torch.arange(count).split(max(1, self.rows // run.n)):  # type: ignore[no-untyped-call]
            x = run.value(self.a, *state.at(1 - at[index][:, None, None, None])).flatten(0, 1).requires_grad_()
            end = self._end(x, grad=True)
            for row, reader in enumerate(readers):
                back = self._back(end, x, reader, len(index)) / count
                table[row] += self._weigh(state, back)[sources]
                through[row] += (back * (state.x - base)).sum()
            if self.slope is not None:
                whole += self._weigh(state, self._back(end, x, self.slope, len(index)))[sources]
        for row, reader in enumerate(readers):
            change[row] = (reader * gap).sum()
        return _Sums(table, through, change, whole)

    def _end(self, x: Tensor, *, grad: bool = False) -> Tensor:
        """[n * B, T, D] the value of b when a has the value x and the sites between have their clean values."""
        many = len(x) // self.run.n
        held = [Replace(s, self.run.result[s].repeat(many, 1, 1)) for s in self.between]
        return self.run.resume(self.a, x, edits=held, stop_at=self.b, capture=[self.b], grad=grad)[self.b]

    def _back(self, end: Tensor, x: Tensor, reader: Tensor, many: int) -> Tensor:
        """[B, T, D] the reader's gradient at site a, summed over the points of the path."""
        [found] = torch.autograd.grad(end, x, reader.to(end.dtype).repeat(many, 1, 1), retain_graph=True, allow_unused=True)
        if found is None:
            return torch.zeros_like(self.run.result[self.a])
        back: Tensor = found.view(many, *reader.shape).sum(0)
        return back

    def _weigh(self, state: State, back: Tensor) -> Tensor:
        """[P, K + 1] the gradient at site a times how far each node moves, or its activation."""
        z, e = state.codes, state.error
        if self.kind != "activation":
            z, e = z - state.base_codes, e - state.base_error
        latents = pull(self.run.basis, self.a, back, state.codes) * z
        error = (back.to(e.dtype) * e).sum(-1, keepdim=True)
        return self.places.total(torch.cat([latents, error], -1), self.run.item)

    def _readers(self, targets: Tensor) -> list[Tensor]:
        """The vectors [B, T, D] with which each target node reads the value of site b."""
        basis, which = self.run.basis, targets.nonzero()
        index = self.places.index(self.run.item)
        x = self.run.result[self.b].detach().to(basis.normaliser.mean.dtype).requires_grad_()
        state = self.run.state(self.b)
        with torch.enable_grad():
            z = basis.encode(self.b, x)
        slope = None if self.slope is None else pull(basis, self.b, self.slope, state.codes)
        rows: dict[int, Tensor] = {}
        for node in sorted({node for _, node in which.tolist()}):
            if node < basis.d_dict:
                weight = torch.ones_like(z[..., node]) if slope is None else slope[..., node]
                [rows[node]] = torch.autograd.grad(z[..., node], x, weight, retain_graph=True)
            else:
                along = self._along_error(state) if self.slope is None else self.slope.to(x.dtype)
                [seen] = torch.autograd.grad(z, x, pull(basis, self.b, along, state.codes), retain_graph=True)
                rows[node] = along - seen
        return [rows[node] * (index == place)[..., None] for place, node in which.tolist()]

    @staticmethod
    def _along_error(state: State) -> Tensor:
        """[B, T, D] unit vectors from the baseline of the error to its value."""
        e = state.error - state.base_error
        length: Tensor = torch.linalg.vector_norm(e, dim=-1, keepdim=True)
        return e / length.clamp_min(torch.finfo(e.dtype).tiny)


def _slopes(run: Nodes, metric: Metric[Any]) -> dict[Site, Tensor]:
    """Gradient of the summed metric at every site of the clean run."""
    sites = run.basis.sites
    result = run.run([], grad=True, capture=sites)
    found = torch.autograd.grad(run.measure(metric, result).sum(), [result[s] for s in sites], allow_unused=True)
    return {s: torch.zeros_like(result[s]) if g is None else g for s, g in zip(sites, found, strict=True)}


def _rows(mask: Tensor, places: Places, basis: Basis, site: Site) -> Tensor:
    """[P, K + 1] bool."""
    out = mask.bool()[None] if mask.ndim == 1 else mask.bool()
    if out.shape != (len(places), basis.d_dict + 1):
        raise ShapeError(f"the mask at {site} has shape {tuple(mask.shape)}",
                         do=f"use [{len(places)}, {basis.d_dict + 1}], or give the places of its rows")
    return out


def _sparse(value: Tensor, sources: Tensor, targets: Tensor, places: Places) -> Tensor:
    """[V, U] -> sparse from sources to targets, as `ScoreTable.edges` has them; zeros are left out."""
    v, u = value.nonzero().T
    start, end = sources.nonzero()[u].T, targets.nonzero()[v].T
    index = torch.cat([start, end])
    size: tuple[int, ...] = (*sources.shape, *targets.shape)
    if places.kind == "shared":
        index, size = index[[1, 3]], (sources.shape[1], targets.shape[1])
    out: Tensor = torch.sparse_coo_tensor(index, value[v, u], size, check_invariants=True).coalesce().cpu()
    return out
