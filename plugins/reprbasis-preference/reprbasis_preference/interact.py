"""Step `interact`: which features feed which, through which head or MLP, as a graph.

An edge from feature f through a component of block L to feature t: of what the component writes when f alone, at its typical
length, joins what it reads, the part along t, as a share of the typical length of t after the block. A head is taken to attend
the token of f and nothing else, so its edge says what it can move, not how often it does. After the virtual weights of Elhage
et al. 2021; every pair of features is looked at for every component, targets in chunks, outputs never formed (see `table`).

Shapes: N features, C components of a block, k targets kept, E edges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reprbasis.errors import DataError, SiteError
from reprbasis.interfaces.evaluator import FeatureCard
from reprbasis.interfaces.graph import Graph, GraphEdge, GraphNode
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.step import Step, StepContext
from reprbasis.kits.cards import cards
from reprbasis.kits.components import stream_before
from reprbasis.runtime.activations import Activations
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import InteractConfig
from .evaluator import Typical, typical
from .measures import q_values, unit
from .mlps import mlp_bg
from .removal import Removed, removed, told
from .table import Factored, factored_output, factored_ov, preferred


@dataclass(frozen=True)
class Edges:
    """Edges through the components of one block, flat. All [E] but `layer`.

    Args:
        layer: the block.
        part: head, or the number of heads for the MLP.
        source, target: rows of the features.
        weight: signed share, see the module.
        p, z: preference, and how far it stands out of shuffled targets.
    """

    layer: int
    part: Tensor
    source: Tensor
    target: Tensor
    weight: Tensor
    p: Tensor
    z: Tensor

    def take(self, rows: Tensor) -> "Edges":
        """Some of them."""
        return Edges(self.layer, *(x[rows] for x in (self.part, self.source, self.target, self.weight, self.p, self.z)))


class InteractStep(Step[InteractConfig]):
    """Makes the graph."""

    @torch.no_grad()
    def run(self, context: StepContext, basis: Basis, activations: Activations) -> Graph:
        """Takes `basis` and `activations` (typical lengths, contexts of the features that are shown).

        Raises:
            SiteError: a layer that the model does not have.
            DataError: fewer than two features are ever active.
        """
        c, model = self.config, context.model
        layers = list(range(model.info.n_layers) if c.layers is None else sorted(set(c.layers)))
        if wrong := [i for i in layers if not 0 <= i < model.info.n_layers]:
            raise SiteError(f"the model has no layer {wrong[0]}", do=f"use layers from 0 to {model.info.n_layers - 1}")
        every, texts = torch.arange(basis.d_dict), activations.sequences("train")
        after = {n: min(n + 1, model.info.n_layers - 1) for n in layers}
        lengths = typical(model, basis, texts, sorted({*layers, *after.values()}), every)
        rates = torch.stack([lengths[i].rate for i in layers])
        active = ((rates > 0) & (rates <= c.most_active)).any(0)
        chosen = active.nonzero().flatten()[rates[:, active].amax(0).argsort(descending=True)][:c.features].sort().values
        if len(chosen) < 2:
            raise DataError(f"{len(chosen)} features are active in the texts", do="harvest more, or raise most_active")
        features = unit(basis.directions(basis.sites[0])[chosen]).to(model.device)
        draw = torch.Generator().manual_seed(context.seed)
        found = [edges_of(model, n, features, _only(lengths[n], chosen), lengths[after[n]].scale[chosen],
                          torch.randint(len(chosen), (c.null,), generator=draw), mlp=c.mlp, top=c.top, chunk=c.chunk)
                 for n in layers]
        tests = sum(model.info.n_heads + c.mlp for _ in layers) * len(chosen) ** 2
        kept = _strongest(found, c.edges, tests)
        ablated: dict[int, Removed] = {}
        if c.check:
            ablated = removed(model, basis, texts, {e.layer: (e.part, e.source, e.target, e.weight) for e in kept}, chosen,
                              {n: lengths[n].scale[chosen] for n in layers},
                              {n: lengths[after[n]].scale[chosen] for n in layers}, occurrences=c.check, seed=context.seed)
        sites = {int(chosen[i]): [stream_before(e.layer)] for e in kept for i in e.source.tolist()}
        sites |= {int(chosen[i]): [Site("resid", e.layer)] for e in kept for i in e.target.tolist()}
        held = {k: [s for s in v if s in basis.sites] or [basis.sites[0]] for k, v in sites.items()}
        shown = cards(model, basis, activations, held, contexts=c.contexts, tokens=c.tokens)
        counted = sum(len(e.weight) for e in found)
        notes = [f"{len(chosen)} features, {len(layers)} blocks, {model.info.n_heads} heads{' and an MLP' if c.mlp else ''} "
                 f"each: {tests:,} pairs were looked at. Of the {counted:,} of largest gain for each component and source, "
                 f"those that stand out of shuffled targets (false discovery rate 5 %) count, and the strongest of every "
                 "block are drawn.",
                 "Weight of an edge: what the component writes along the target when the source, at its typical length, is all "
                 "that a head attends or joins the mean input of the MLP, as a share of the target's typical length after the "
                 "block. It says what a component can move; whether a prompt makes it do so, attribution and ablation say."]
        return graph_of(model, kept, chosen, shown, [*notes, *([told(ablated)] if ablated else [])], ablated)


def edges_of(model: ModelAdapter, layer: int, features: Tensor, usual: Typical, after: Tensor, null: Tensor, *,
             mlp: bool = True, top: int = 4, chunk: int = 1024) -> Edges:
    """The `top` targets of every component of a block and every source.

    Args:
        model: the model.
        layer: the block.
        features: [N, D] unit directions.
        usual: typical lengths of these features there.
        after: [N] the same after the block.
        null: rows drawn at random, to compare with.
        mlp: whether the MLP is looked at too.
        top, chunk: see `preferred`.

    Cost: 2 H N^2 E FLOPs for the heads, 2 N^2 D for the MLP; memory H N chunk numbers.
    """
    targets = unit(features - features.mean(0))
    # heads read a feature at the stream's own length (root mean square 1); beside the rest it has its share of it
    parts: list[tuple[Factored, Tensor]] = [(factored_ov(model.attention(layer), features), usual.scale / usual.stream)]
    if mlp:
        y = mlp_bg(model.mlp(layer), features, usual.mean, usual.scale)
        parts.append((factored_output(y), torch.ones_like(usual.scale)))
    columns: list[list[Tensor]] = []
    first = 0
    for outputs, size in parts:
        found = preferred(outputs, targets, null, top=min(top + 1, len(targets)), chunk=chunk)
        own = found.target == torch.arange(len(features), device=found.target.device)[None, :, None]
        weight = found.gain * size[None, :, None] / after[found.target]
        part = first + torch.arange(len(found.gain), device=weight.device)[:, None, None].expand_as(weight)
        source = torch.arange(len(features), device=weight.device)[None, :, None].expand_as(weight)
        columns.append([x[~own].cpu() for x in (part, source, found.target, weight, found.p, found.z)])
        first += len(found.gain)
    return Edges(layer, *(torch.cat(column) for column in zip(*columns, strict=True)))


def _only(usual: Typical, chosen: Tensor) -> Typical:
    return Typical(usual.mean, usual.scale[chosen], usual.stream, usual.rate[chosen])


def _strongest(found: Sequence[Edges], most: int, tests: int) -> list[Edges]:
    """Of each block, as many edges of largest absolute weight that stand out of chance; `most` together, at least one each."""
    sure = [e.take((q_values(e.z, tests=tests) < 0.05).nonzero().flatten()) for e in found]
    each = max(1, most // len(found))
    return [e.take(e.weight.abs().topk(min(each, len(e.weight))).indices) for e in sure]


def graph_of(model: ModelAdapter, found: Sequence[Edges], chosen: Tensor, shown: dict[int, FeatureCard], notes: Sequence[str],
             ablated: Mapping[int, Removed] | None = None) -> Graph:
    """Levels are the streams between blocks; a feature is a node wherever an edge leaves or reaches it."""
    levels = [str(stream_before(0)), *(f"resid.{n}" for n in range(model.info.n_layers))]
    nodes: dict[str, GraphNode] = {}
    edges: list[GraphEdge] = []

    def node(level: int, row: int) -> str:
        latent = int(chosen[row])
        key = f"{levels[level]}/{latent}"
        if key not in nodes:
            said = shown.get(latent)
            label = said.promoted[0][0].strip() if said is not None and said.promoted else ""
            nodes[key] = GraphNode(key, "latent", level, None, f"{latent} {label}".strip(), 0.0, "", levels[level], latent,
                                   str(latent) if said is not None else "")
        return key

    total: dict[str, float] = {}
    for here in found:
        moved = ablated[here.layer].moved if ablated else torch.full_like(here.weight, torch.nan)
        rows = zip(*(x.tolist() for x in (here.part, here.source, here.target, here.weight, here.p, here.z, moved)), strict=True)
        for part, source, target, weight, p, z, by_ablation in rows:
            a, b = node(here.layer, source), node(here.layer + 1, target)
            name = f"head {here.layer}.{part}" if part < model.info.n_heads else f"mlp {here.layer}"
            facts = {"P": round(p, 4), "z": round(z, 2)}
            facts |= {"by ablation": round(by_ablation, 4)} if by_ablation == by_ablation else {}
            edges.append(GraphEdge(a, b, weight, name, facts))
            for end in (a, b):
                total[end] = total.get(end, 0.0) + abs(weight)
    weighted = [GraphNode(**{**vars(n), "weight": total[n.id]}) for n in nodes.values()]
    return Graph("Which features feed which", levels, (), weighted, edges, {}, {str(k): v for k, v in shown.items()}, notes,
                 "sum of its edges", "share of the target's typical length",
                 {"layers": [e.layer for e in found], "features": len(chosen)})
